//! ONNX Runtime: the only place that knows `ort`.
//!
//! ```text
//! library   finds libonnxruntime and loads it, once per process
//! device    what was asked for, what is in use
//! cuda, cuda_proof, batch_sizes, device_memory  what is different on an NVIDIA device
//! session   the backbone: images [n,3,H,W] -> features [n,D]
//! copies    several sessions of it that hold its weights once
//! scorer    a head's matrix product: features -> raw scores [n,C]
//! fit_engine, fit_graph, device_table  loss and gradient of a softmax classifier: a step of a fit
//! cut       a whole classifier -> backbone and head (`equipoise import`)
//! ```
//! A session belongs to one thread at a time. Features stay on the device between backbone and head.

mod assignment;
mod batch_sizes;
mod build;
mod contract;
mod copies;
mod cuda;
mod cuda_proof;
mod cut;
mod device;
mod device_memory;
mod device_table;
mod error;
mod features;
mod fit_engine;
mod fit_graph;
mod head_graph;
mod library;
mod proto;
mod proto_rest;
mod random_pixels;
mod scorer;
mod session;

pub use batch_sizes::sizes_to_warm;
pub(crate) use copies::remove_copies;
pub use cuda::CudaOptions;
pub use cut::{
    CutClassifier, CutError, CutProof, HALF_PRECISION_TOLERANCE, LARGEST_FILE, NodeName, Reason, TOLERANCE,
    TensorFault, cut_classifier, prove_cut,
};
pub use device::{DeviceChoice, ParseDeviceError, Provider, SessionOptions};
pub use device_memory::DeviceMemory;
pub use error::OnnxError;
pub use features::Features;
pub use fit_engine::FitEngine;
pub use head_graph::{ScorerSpec, Transform};
pub use library::{Found, LibraryError, OLDEST_MINOR_VERSION, Runtime, SearchPlaces, init};
pub(crate) use random_pixels::RandomPixels;
pub use scorer::{Scorer, Scores};
pub use session::Backbone;
