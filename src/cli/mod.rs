//! The command line: one file a subcommand.

mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Serves long-tailed image classifiers, balanced: one backbone, swappable decoupled heads, tau adjustable at run time.
#[derive(Debug, Parser)]
#[command(name = "equipoise", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTP
    Serve(Box<crate::config::ServeOptions>),
}

/// Runs the command that the process was given: exit code 2 for wrong usage, 1 for a failure, with one line that says what
/// and where.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(options) => serve::run(*options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("equipoise: {error:#}");
            ExitCode::FAILURE
        }
    }
}
