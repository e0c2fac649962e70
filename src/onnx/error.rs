//! What can go wrong with a session.

use super::device::DeviceChoice;
use super::library::LibraryError;

/// What ONNX Runtime and the libraries under it say when memory runs out.
const OUT_OF_MEMORY: [&str; 7] = [
    // The arena: the device gives no more, or the session's limit is reached.
    "Failed to allocate memory for requested buffer",
    "is smaller than requested bytes of",
    // `CUDA failure 2: out of memory`, and TensorRT.
    "out of memory",
    // cuBLAS, in words; and cuDNN 9, which names the device's memory or the host's.
    "the resource allocation failed",
    "ALLOCATION_FAILED",
    // Both with older libraries.
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
];

/// A model could not be loaded, or a run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// ONNX Runtime itself is missing.
    #[error(transparent)]
    Library(#[from] LibraryError),
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
    /// The model fixes a size that no image has.
    #[error(
        "the model's input must be of at most {max_pixels} pixels an image and {max_batch_pixels} a batch; it has {found}"
    )]
    TooManyPixels {
        /// The input with its type and shape.
        found: String,
        /// Most pixels of an image.
        max_pixels: u64,
        /// Most pixels of a batch.
        max_batch_pixels: u64,
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

    /// Whether a batch did not fit the memory of its device: a smaller one may. ONNX Runtime has no code for it, only words.
    pub fn is_out_of_memory(&self) -> bool {
        let Self::Run { source, .. } = self else { return false };
        let message = source.to_string();
        OUT_OF_MEMORY.iter().any(|words| message.contains(words))
    }

    /// Whether another device might do better: what is wrong with a file is wrong everywhere.
    pub(super) fn is_of_the_device(&self) -> bool {
        matches!(self, Self::Load { .. } | Self::DeviceUnused { .. } | Self::Run { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(message: &str, is_out_of_memory: bool) {
        let error = OnnxError::Run { n: 8, source: ort::Error::new(message.to_owned()) };
        assert_eq!(error.is_out_of_memory(), is_out_of_memory, "{message}");
    }

    #[test]
    fn messages_of_memory_that_ran_out_are_known() {
        crate::onnx::init(None).expect("run `make ort`");
        check(
            "Non-zero status code returned while running FusedConv node. Name:'Conv_3' Status Message: \
             bfc_arena.cc:376 onnxruntime::BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of \
             size 643840",
            true,
        );
        check("Available memory of 1024 is smaller than requested bytes of 4096", true);
        check("CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);", true);
        check("CUBLAS failure 3: the resource allocation failed ; GPU=0 ; expr=cublasCreate(&cublas_handle_);", true);
        check("CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0", true);
        check("CUDNN failure 4001: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ; GPU=0", true);
        check("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_);", true);
        check("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", true);
        check("CUDA failure 700: an illegal memory access was encountered ; GPU=0", false);
        check("Exiting due to terminate flag being set to true.", false);
        let other = OnnxError::NotFinite { image: 0 };
        assert!(!other.is_out_of_memory());
    }
}
