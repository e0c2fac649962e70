//! Why a classifier was not cut in two.

use crate::onnx::OnnxError;

/// Name, operator and first output of a node: enough to find it in any viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeName {
    /// Its name; exporters may leave it empty.
    pub name: String,
    /// What it computes.
    pub op_type: String,
    /// The first value it computes.
    pub output: String,
}

impl std::fmt::Display for NodeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node `{}` ({}, output `{}`)", self.name, self.op_type, self.output)
    }
}

/// A classifier could not be cut into backbone and last linear layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// The bytes are no ONNX model.
    #[error("the file is not an ONNX model")]
    Malformed {
        /// Where the reading stopped.
        source: prost::DecodeError,
    },
    /// The bytes are an ONNX message without a graph: an empty file, for one.
    #[error("the file is not an ONNX model: it has no graph")]
    NoGraph,
    /// There is not exactly one output to follow back.
    #[error("the model has {} outputs ({}); a classifier has one, the logits", outputs.len(), outputs.join(", "))]
    Outputs {
        /// Their names.
        outputs: Vec<String>,
    },
    /// The output is not computed by any node.
    #[error("the value `{value}` is not computed by any node, so there is no layer to cut before")]
    NoLayer {
        /// The value reached when following the logits back.
        value: String,
    },
    /// A node in the way of the last layer, or the last layer itself, is of a kind that cannot be cut.
    #[error("{node}: {reason}")]
    Node {
        /// The node.
        node: Box<NodeName>,
        /// What is wrong with it.
        reason: Reason,
    },
    /// A constant that cannot be read.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        reason: TensorFault,
    },
    /// What remains is too large for one file.
    #[error("the backbone would be {n_bytes} bytes, beyond the 2 GB that one ONNX file can hold")]
    TooLarge {
        /// Its size.
        n_bytes: u64,
    },
    /// One of the two halves, or the original, does not run.
    #[error("the {which} does not run")]
    Run {
        /// Which model.
        which: &'static str,
        /// Why.
        #[source]
        source: Box<OnnxError>,
    },
    /// The original's output is not what it should be made of.
    #[error(
        "the original's output is not what its last layer and what is known to follow say: they differ by \
         {max_abs_difference:e} where it reaches {max_abs_answer:e}, more than {tolerance:e} of it"
    )]
    OtherAnswer {
        /// The largest difference seen.
        max_abs_difference: f32,
        /// The largest value seen.
        max_abs_answer: f32,
        /// What would have been accepted, relative to `max_abs_answer`.
        tolerance: f32,
    },
    /// An image is answered otherwise beside others.
    #[error(
        "the images of a batch change each other's logits, as in a model exported in training mode: one's differ by \
         {max_abs_difference:e} alone and in a batch where logits reach {max_abs_logit:e}, more than {tolerance:e} of it"
    )]
    MixedImages {
        /// The largest difference seen.
        max_abs_difference: f32,
        /// The largest logit seen.
        max_abs_logit: f32,
        /// What would have been accepted, relative to `max_abs_logit`.
        tolerance: f32,
    },
    /// Backbone and head together answer something else than the original.
    #[error(
        "backbone and head give other logits than the original: they differ by {max_abs_difference:e} where logits reach \
         {max_abs_logit:e}, more than {tolerance:e} of it"
    )]
    NotProved {
        /// The largest difference seen.
        max_abs_difference: f32,
        /// The largest logit seen.
        max_abs_logit: f32,
        /// What would have been accepted, relative to `max_abs_logit`.
        tolerance: f32,
    },
}

/// What is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Another operator than a linear layer's, and not one that can be looked through.
    #[error("the last layer must be Gemm, MatMul, MatMul with Add, or a 1x1 Conv; this operator is none of them")]
    NotLinear,
    /// If, Loop, Scan.
    #[error("control flow is not followed")]
    ControlFlow,
    /// Integer arithmetic.
    #[error("the last layer is quantised; export the model in float32")]
    Quantised,
    /// The weight depends on the input, or is computed by nodes that are not followed.
    #[error("its weight `{input}` is not a constant but computed at run time")]
    WeightNotConstant {
        /// The input of the node.
        input: String,
    },
    /// The bias is not a constant.
    #[error("its bias `{input}` is not a constant but computed at run time")]
    BiasNotConstant {
        /// The input of the node.
        input: String,
    },
    /// The weight on the left, or both sides variable.
    #[error("its constant is on the left; a linear layer has features on the left and the weight on the right")]
    WeightOnTheLeft,
    /// transA.
    #[error("transA is set, which would mix the images of a batch")]
    TransposedFeatures,
    /// A matrix of another rank.
    #[error("its weight `{input}` has shape {shape:?}; a linear layer's is a matrix")]
    WeightShape {
        /// The input of the node.
        input: String,
        /// Its shape.
        shape: Vec<i64>,
    },
    /// A bias that is not one number a class.
    #[error("its bias `{input}` has shape {shape:?}; expected one number for each of {num_classes} classes")]
    BiasShape {
        /// The input of the node.
        input: String,
        /// Its shape.
        shape: Vec<i64>,
        /// Classes.
        num_classes: usize,
    },
    /// Not `[N,D]`.
    #[error("the features before it, `{input}`, have rank {rank}; expected [N,D]")]
    FeatureRank {
        /// The value.
        input: String,
        /// Its rank.
        rank: usize,
    },
    /// A convolution that looks at more than one pixel.
    #[error("a convolution can be cut only if it is 1x1, with one group, stride 1 and no padding, on a 1x1 image")]
    NotPointwise,
    /// Rows that are not one for each image, with a value for each class.
    #[error("what it makes of the logits is not known to be [N,{num_classes}], one row for each image")]
    Rows {
        /// Classes.
        num_classes: usize,
    },
    /// Softmax over another axis.
    #[error("it works along axis {axis}, which is not that of the classes")]
    Axis {
        /// The axis.
        axis: i64,
    },
    /// An attribute that changes the arithmetic in a way not understood.
    #[error("its attribute `{attribute}` has a value that is not supported")]
    Attribute {
        /// Name of the attribute.
        attribute: String,
    },
}

/// What is wrong with a constant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFault {
    /// Dimensions that are negative or 0, or more values than memory can hold.
    #[error("its dimensions {dims:?} make no sense")]
    Dims {
        /// The dimensions.
        dims: Vec<i64>,
    },
    /// An element type that is not a float.
    #[error("its element type is number {data_type} of ONNX's list; expected float, double, float16 or bfloat16")]
    ElementType {
        /// ONNX's number of the type.
        data_type: i32,
    },
    /// Fewer or more values than its dimensions say.
    #[error("it holds {found} values where its dimensions say {expected}")]
    Length {
        /// Values, or bytes, found.
        found: u64,
        /// Values, or bytes, expected.
        expected: u64,
    },
    /// NaN or infinity.
    #[error("value {index} is not finite")]
    NotFinite {
        /// Which one, counted through.
        index: usize,
    },
    /// Its file may not be read.
    #[error("its values are in the file `{location}`: {reason}")]
    Location {
        /// The file as the model names it.
        location: String,
        /// Why not.
        reason: &'static str,
    },
    /// Offset or length of the external data are no numbers or outside the file.
    #[error(
        "its values are in the file `{location}` of {file_len} bytes, at offset {offset} with length {len}, which does not fit"
    )]
    Range {
        /// The file as the model names it.
        location: String,
        /// The file's size.
        file_len: u64,
        /// As the model says.
        offset: String,
        /// As the model says; `the rest` if it does not.
        len: String,
    },
    /// The file cannot be read.
    #[error("its values are in the file `{location}`, which cannot be read: {source}")]
    File {
        /// The file as the model names it.
        location: String,
        /// Why.
        source: std::io::Error,
    },
}
