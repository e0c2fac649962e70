//! A failure as one line, and its exit code.

use std::io;

/// Wrong usage that shows only when several flags are looked at together, or a flag beside a file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct WrongUsage(pub(super) String);

/// Says on one line what failed; gives the exit code, 2 for wrong usage and 1 for a failure.
pub(super) fn report(error: &anyhow::Error) -> u8 {
    eprintln!("equipoise: {}", one_line(error));
    if error.is::<WrongUsage>() { 2 } else { 1 }
}

/// What is wrong, then its causes, on one line. A cause that the text before it has already told is left out, and of a
/// text of several lines those that draw the place in a file.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let told = on_one_line(&cause.to_string());
        if line.is_empty() {
            line = told;
        } else if !line.ends_with(&told) {
            line.push_str(": ");
            line.push_str(&told);
        }
    }
    line
}

fn on_one_line(text: &str) -> String {
    // "3 | resize = x" and "  |  ^" in the errors of the TOML reader.
    let is_drawing = |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
    let kept: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_drawing(line)).collect();
    kept.join(": ")
}

/// Whether the reader of our output went away, as `head` does: that is no failure of ours.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_once_and_on_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("{path}: {source}")]
        struct Outer {
            path: &'static str,
            source: io::Error,
        }
        let outer = || Outer { path: "a.toml", source: io::Error::other("line 1\n  |\n1 | x = 2\n  | ^\nunknown `x`") };
        assert_eq!(one_line(&outer().into()), "a.toml: line 1: unknown `x`");
        let error = anyhow::Error::from(outer()).context("model directory m");
        assert_eq!(one_line(&error), "model directory m: a.toml: line 1: unknown `x`");
    }

    #[test]
    fn only_our_own_output_counts_as_a_closed_pipe() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&pipe().into()));
        assert!(!is_closed_pipe(&anyhow::anyhow!("no")));
        assert!(!is_closed_pipe(&io::Error::other("no").into()));
    }
}
