//! equipoise serves long-tailed image classifiers, balanced.
//!
//! A network trained on data where few classes have thousands of images and most have a handful never says the rare ones.
//! Kang et al. (ICLR 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition") train it jointly on the
//! data as it is, keep its representation, and re-balance only the classifier. Here that classifier is served: one
//! backbone, several heads on its features, and for the tau-normalised one a tau that changes while it serves.
//!
//! # The serving line
//!
//! ```text
//! http/classify -> batcher: decode pool -> queue -> worker: backbone -> heads -> reply
//!  bytes, heads              [3,H,W] f32             [n,D]       [n,C]    top-k, JSON
//!  and settings of one
//!  registry state
//! ```
//!
//! # The modules, in reading order
//!
//! | module | what is in it |
//! |---|---|
//! | [`dataset`] | training counts, shots, feature sets |
//! | [`heads`] | what turns features into logits; settings; head files |
//! | [`fit`] | how a head is made: samplers, softmax regression, the choice of tau, class means |
//! | [`evaluate`] | reports by shot |
//! | `preprocess` | from the bytes of an image to the tensor that the network was trained on, exactly as Pillow does it |
//! | `onnx` | the only place that knows ONNX Runtime: library, sessions, graphs, cutting a classifier in two |
//! | `batcher` | admission, decoding, batching; the threads that own the sessions |
//! | `registry` | what is loaded, and the changes that an operator makes to it |
//! | `jobs` | fits and evaluations in the background of a server |
//! | `json` | what JSON from outside may say, and what is said of it when it is wrong |
//! | `access`, `reload`, `files` | tokens with roles, limits for each caller; files that are read again; errors that name a file |
//! | `metrics`, `telemetry`, `config` | what the process counts, logs and is told |
//! | `http`, `cli` | the edges |
//! | `server` | wires them |
//!
//! The first four are the mathematics: no HTTP, no runtime, no clock. Everything else sits behind the default feature
//! `server`.

pub mod dataset;
pub mod evaluate;
pub mod fit;
pub mod heads;
mod json;

#[cfg(feature = "server")]
pub mod access;
#[cfg(feature = "server")]
pub mod batcher;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod files;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod jobs;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod onnx;
#[cfg(feature = "server")]
pub mod preprocess;
#[cfg(feature = "server")]
pub mod registry;
#[cfg(feature = "server")]
pub mod reload;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
mod sync;
#[cfg(feature = "server")]
pub mod telemetry;
