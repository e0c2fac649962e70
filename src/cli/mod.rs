//! The command line: one file a subcommand.
//!
//! ```text
//! serve      classify   extract   fit   evaluate   import   inspect   token   gc
//! model      loads a model without a server, through the same line that the server uses
//! images     runs files through it, some at a time, in order
//! fit_files  what fits and evaluations read: feature sets within a limit, heads, training counts
//! reports    reports as tables
//! failure    one line on standard error, and the exit code
//! whole_file, progress, text
//! ```

mod classify;
mod evaluate;
mod extract;
mod failure;
mod fit;
mod fit_files;
mod gc;
mod images;
mod import;
mod inspect;
mod labelled_files;
mod model;
mod progress;
mod reports;
mod serve;
mod text;
mod token;
mod whole_file;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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
    /// Classify image files
    #[command(after_help = classify::NOTES)]
    Classify(Box<classify::ClassifyOptions>),
    /// Write the features of labelled images to a file, for `fit` and `evaluate`
    #[command(after_help = extract::NOTES)]
    Extract(Box<extract::ExtractOptions>),
    /// Fit a head on features with labels, and report on it
    #[command(after_help = fit::NOTES)]
    Fit(Box<fit::FitOptions>),
    /// Say how often a head is right on features with labels, overall and by shot
    #[command(after_help = evaluate::NOTES)]
    Evaluate(Box<evaluate::EvaluateOptions>),
    /// Make a model directory of an ONNX classifier
    #[command(after_help = import::NOTES)]
    Import(Box<import::ImportOptions>),
    /// Say what is in a model directory, a head file or a feature file
    #[command(after_help = inspect::NOTES)]
    Inspect(Box<inspect::InspectOptions>),
    /// Make tokens for the callers of a server
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Remove old generations of the state, and head files that none of the kept ones names
    #[command(after_help = gc::NOTES)]
    Gc(Box<gc::GcOptions>),
}

/// Runs the command that the process was given: exit code 2 for wrong usage, 1 for a failure, with one line that says what
/// and where.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut Cli::command()).exit());
    let outcome = match cli.command {
        Command::Serve(options) => serve::run(*options),
        Command::Classify(options) => classify::run(&options),
        Command::Extract(options) => extract::run(&options),
        Command::Fit(options) => fit::run(&options),
        Command::Evaluate(options) => evaluate::run(&options),
        Command::Import(options) => import::run(&options),
        Command::Inspect(options) => inspect::run(&options),
        Command::Token(command) => token::run(&command),
        Command::Gc(options) => gc::run(&options, &matches),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if failure::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(failure::report(&error)),
    }
}
