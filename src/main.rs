//! The `equipoise` command.

fn main() -> std::process::ExitCode {
    equipoise::cli::main()
}
