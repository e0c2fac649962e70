//! equipoise serves long-tailed image classifiers, balanced.

pub mod dataset;
pub mod evaluate;
pub mod heads;

#[cfg(feature = "server")]
pub mod onnx;
#[cfg(feature = "server")]
pub mod preprocess;
