//! The serving line against its own limit, and beside other servers.
//!
//! ```text
//! cargo bench --bench serving                            against a bare loop, with the load in the same process
//! EQUIPOISE_BENCH_MODEL=DIR cargo bench --bench serving  another model than icons30
//! make bench-serving                                     beside FastAPI, LitServe and mosec, each a process of its own
//! make bench-serving ARGS="--requests 1000000"           what a request leaves behind in memory
//! make bench-growth                                      what more pixels, heads, models, classes, connections cost
//! ```
//!
//! ```text
//! alone    HTTP beside bare, several heads, a change of tau, beside a fit
//! beside   the same load on several servers in turn: servers starts them, memory weighs them, report and plot show it
//! soak     resident memory over many requests
//! growth   a curve for each thing that there can be more of; made makes the models for it
//! bare     decode, resample and run in a loop: the limit
//! client, rounds, images: the load
//! ```
#![allow(clippy::unwrap_used, missing_docs)]

mod alone;
mod bare;
mod beside;
mod client;
mod growth;
mod images;
mod load;
mod made;
mod memory;
mod plot;
mod report;
mod rounds;
mod servers;
mod soak;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    mode: Option<Mode>,

    /// What cargo adds to the arguments of every benchmark.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Mode {
    /// Compare with other servers
    Beside(beside::BesideOptions),
    /// Measure what more of one thing costs
    Growth(growth::GrowthOptions),
}

fn main() {
    match Options::parse().mode {
        None => alone::run(&std::env::var_os("EQUIPOISE_BENCH_MODEL").map_or_else(shipped_model, PathBuf::from)),
        Some(Mode::Beside(options)) if options.requests > 0 => soak::run(&options),
        Some(Mode::Beside(options)) => beside::run(&options),
        Some(Mode::Growth(options)) => growth::run(&options),
    }
}

fn shipped_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/icons30")
}
