//! `equipoise gc`: removes what no state needs any more.

use std::{io::Write, num::NonZeroUsize, path::PathBuf};

use clap::{ArgAction, ArgMatches, Args, builder::FalseyValueParser, parser::ValueSource};

use super::text::{count, printable};
use crate::{
    config::{ConfigError, cloud_options, default_state_dir},
    registry::{Gc, GcOptions as Bounds},
};

pub(super) const NOTES: &str = "\
    Old generations go, and head files that none of the kept ones names; what they changed stays in the audit. A state \
    directory must not be in use by a server. Where servers share a store they may go on, and what was written within \
    the last hour stays.";

#[derive(Args, Debug)]
pub(super) struct GcOptions {
    /// The state directory [default: that of `serve`]
    #[arg(long, env = "EQUIPOISE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// The store that servers share, as `serve --state` has it; then the state directory is left alone, unless it is given as
    /// a flag and this is not
    #[arg(long, env = "EQUIPOISE_STATE", value_name = "URL")]
    state: Option<String>,

    /// The newest generations of each model that are kept
    #[arg(long, env = "EQUIPOISE_KEEP_GENERATIONS", value_name = "N", default_value = "100")]
    keep_generations: NonZeroUsize,

    /// Only say what would be removed
    #[arg(long, env = "EQUIPOISE_DRY_RUN", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    dry_run: bool,
}

/// `matches` are of the command line with its subcommand.
pub(super) fn run(options: &GcOptions, matches: &ArgMatches) -> anyhow::Result<()> {
    let bounds = Bounds { keep_generations: options.keep_generations.get(), is_dry_run: options.dry_run };
    let source = |name| matches.subcommand()?.1.value_source(name);
    // Who names a directory means that one, whatever the environment has for the server.
    let is_directory =
        (source("state_dir"), source("state")) == (Some(ValueSource::CommandLine), Some(ValueSource::EnvVariable));
    let gc = match options.state.as_ref().filter(|_| !is_directory) {
        Some(url) => Gc::of_url(url, &cloud_options())?,
        None => {
            let path = options.state_dir.clone().or_else(default_state_dir).ok_or(ConfigError::NoStateDir)?;
            Gc::of_directory(&path, bounds)?
        }
    };
    let (removed, would) = if options.dry_run { ("would remove", "would be removed") } else { ("removed", "removed") };
    let mut out = std::io::stdout().lock();
    for report in gc.run(bounds)? {
        for name in &report.removed {
            writeln!(out, "{removed} {}", printable(name))?;
        }
        for note in &report.notes {
            eprintln!("equipoise: {}", printable(note));
        }
        writeln!(
            out,
            "{}: {} {would} ({} bytes); {} and {} kept",
            printable(&report.model),
            count(report.removed.len(), "file"),
            report.bytes,
            count(report.n_generations, "generation"),
            count(report.n_blobs, "head file")
        )?;
    }
    Ok(())
}
