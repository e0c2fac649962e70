//! What can go wrong with a session.

use super::device::DeviceChoice;
use super::library::LibraryError;

/// A model could not be loaded, or a run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// ONNX Runtime itself is missing.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("the file is not an ONNX model")]
    Malformed {
        /// Where the reading stopped.
        source: prost::DecodeError,
    },
    /// The bytes are an ONNX message without a graph: an empty file, for one.
    #[error("the file is not an ONNX model: it has no graph")]
    NoGraph,
    /// A call that does not fit the function called.
    #[error("the model calls its function `{function}` with more inputs or outputs than it has")]
    Call {
        /// The function's name.
        function: String,
    },
    /// Weights in another file, in a place that is not read from.
    #[error("tensor `{tensor}` keeps its values in the file `{location}`: {reason}")]
    ExternalData {
        /// The tensor's name.
        tensor: String,
        /// The file as the model names it.
        location: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The model's inputs are not one image batch.
    #[error("the model must have one input, float32 [N,3,H,W]; it has {found}")]
    Input {
        /// The inputs with their types and shapes.
        found: String,
    },
    /// The model's outputs are not one feature batch.
    #[error(
        "the model must have one output, float32 [N,D], or several of which one is named `features`; it has {found}"
    )]
    Output {
        /// The outputs with their types and shapes.
        found: String,
    },
    /// ONNX Runtime does not accept the model, or the provider.
    #[error("ONNX Runtime cannot load the model on {device}: {source}")]
    Load {
        /// The device asked for.
        device: DeviceChoice,
        /// What it said.
        source: ort::Error,
    },
    /// `ort` gave up on a shape or type that ONNX Runtime let through.
    #[error("the model has an input or output whose type or shape makes no sense")]
    Nonsense,
    /// The session was built, and the provider that was asked for runs none of it.
    #[error("{device} is not really used: ONNX Runtime gave all {n_nodes} nodes of the model to other providers")]
    DeviceUnused {
        /// The device asked for.
        device: DeviceChoice,
        /// Nodes in the model, after optimisation.
        n_nodes: usize,
    },
    /// The numbers given do not make an image batch of the model's size.
    #[error("the backbone takes images of {expected}; got {n} of {height} x {width} in {len} values")]
    ImageShape {
        /// What the model takes.
        expected: String,
        /// Images.
        n: usize,
        /// Pixels down.
        height: usize,
        /// Pixels across.
        width: usize,
        /// Values given.
        len: usize,
    },
    /// The features do not fit the head.
    #[error(
        "the features do not fit: expected {expected_dim} values a row, got {n} rows of {feature_dim} in {len} values"
    )]
    FeatureShape {
        /// What is expected.
        expected_dim: usize,
        /// Rows.
        n: usize,
        /// Values a row.
        feature_dim: usize,
        /// Values given.
        len: usize,
    },
    /// The weights do not make a head.
    #[error("{what} has {len} values; expected {expected} for {num_classes} classes and {feature_dim} features")]
    WeightShape {
        /// Which array.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The length it should have.
        expected: usize,
        /// Classes.
        num_classes: usize,
        /// Values of a feature row.
        feature_dim: usize,
    },
    /// A weight matrix beyond what one ONNX file can hold.
    #[error(
        "a head of {num_classes} classes and {feature_dim} features is beyond the 2 GB that one ONNX graph can hold"
    )]
    TooLarge {
        /// Classes.
        num_classes: usize,
        /// Values of a feature row.
        feature_dim: usize,
    },
    /// A run failed.
    #[error("ONNX Runtime failed on a batch of {n}: {source}")]
    Run {
        /// Rows of the batch.
        n: usize,
        /// What it said.
        source: ort::Error,
    },
    /// The model answered something of another shape than it promised.
    #[error("the model answered shape {found:?} for a batch of {n}; expected [{n},{feature_dim}]")]
    OutputShape {
        /// The shape it answered.
        found: Vec<i64>,
        /// Rows of the batch.
        n: usize,
        /// Values a row should have; 0 when not known yet.
        feature_dim: usize,
    },
    /// NaN or infinity in the features of an image.
    #[error("the features of image {image} are not finite")]
    NotFinite {
        /// Its place in the batch, from 0.
        image: usize,
    },
}

impl OnnxError {
    /// Whether the session may be broken: what is wrong with the numbers is wrong in any session.
    pub fn is_of_the_session(&self) -> bool {
        matches!(self, Self::Run { .. } | Self::OutputShape { .. })
    }

    /// Whether another device might do better: what is wrong with a file is wrong everywhere.
    pub(super) fn is_of_the_device(&self) -> bool {
        matches!(self, Self::Load { .. } | Self::DeviceUnused { .. } | Self::Run { .. })
    }
}
