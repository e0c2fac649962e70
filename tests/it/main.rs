//! The one integration binary.
#![allow(clippy::unwrap_used)]

#[cfg(feature = "server")]
mod app;
#[cfg(feature = "server")]
mod batcher;
#[cfg(feature = "server")]
mod cli;
#[cfg(feature = "server")]
mod contract;
#[cfg(feature = "server")]
mod crash;
mod feature_sets;
mod fit;
#[cfg(feature = "server")]
mod fuzz;
mod heads;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod onnx;
#[cfg(feature = "server")]
mod onnx_cut;
#[cfg(feature = "server")]
mod onnx_library;
#[cfg(feature = "server")]
mod onnx_scorer;
#[cfg(feature = "server")]
mod onnx_session;
#[cfg(feature = "server")]
mod preprocess;
#[cfg(feature = "server")]
mod preprocess_hostile;
#[cfg(feature = "server")]
mod process;
#[cfg(feature = "server")]
mod schema;
#[cfg(feature = "server")]
mod shared;
#[cfg(feature = "server")]
mod tidy;

/// The same cases on every run, and no files of failures.
fn seeded(cases: u32) -> proptest::test_runner::Config {
    use proptest::test_runner::{Config, RngSeed};
    Config { cases, rng_seed: RngSeed::Fixed(0), failure_persistence: None, ..Config::default() }
}
