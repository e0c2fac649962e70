//! equipoise serves long-tailed image classifiers, balanced.

pub mod dataset;
pub mod evaluate;
pub mod heads;

#[cfg(feature = "server")]
pub mod batcher;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod onnx;
#[cfg(feature = "server")]
pub mod preprocess;
#[cfg(feature = "server")]
pub mod registry;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod telemetry;
