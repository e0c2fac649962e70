//! Cuts a whole classifier into its backbone and its last linear layer (`equipoise import`).
//!
//! ```text
//! find      follows the logits back to the last linear layer
//! constant  reads its weights, in any of ONNX's encodings
//! shape     follows its rows to the output: each must stay one image's
//! rewrite   writes what is before it as a model of its own
//! prove     compares the two parts with the original on random images
//! ```
//! Nothing here trusts the file: every size is checked, and every refusal names the node.

mod constant;
mod error;
mod external;
mod find;
mod graph;
mod prove;
mod rewrite;
mod shape;

use std::path::Path;

use bytes::Bytes;
use prost::Message;

pub use error::{CutError, NodeName, Reason, TensorFault};
pub use prove::{CutProof, HALF_PRECISION_TOLERANCE, TOLERANCE, prove_cut};
pub use rewrite::LARGEST_FILE;

use super::proto::ModelProto;

/// A classifier in two parts: `logits = features Wᵀ + bias`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CutClassifier {
    /// The backbone as an ONNX file, self-contained, its output named `features`.
    pub backbone: Vec<u8>,
    /// W, `[num_classes, feature_dim]` row by row.
    pub weight: Vec<f32>,
    /// `[num_classes]`, if the layer has one.
    pub bias: Option<Vec<f32>>,
    /// C
    pub num_classes: usize,
    /// D
    pub feature_dim: usize,
    /// What was changed on the way, for the user to read.
    pub notes: Vec<String>,
}

/// Cuts a classifier before its last linear layer. `base_dir` is the folder of weights kept in other files.
///
/// The layer is a Gemm, a MatMul with or without an Add, or a 1x1 Conv on one pixel, with constant weights. Between it and
/// the output there may be Softmax or LogSoftmax, which are dropped, and what changes no value: Identity, Flatten,
/// Reshape, Squeeze, Cast, Dropout; as long as what comes out is known to be a row of logits for each image.
///
/// # Errors
/// [`CutError`] names the node and says why it cannot be cut.
pub fn cut_classifier(model: impl Into<Bytes>, base_dir: Option<&Path>) -> Result<CutClassifier, CutError> {
    let model = decode(model.into())?;
    let graph = model.graph.as_ref().ok_or(CutError::NoGraph)?;
    let mut layer = find::last_layer(&graph::Index::new(&model, graph), graph, base_dir)?;
    let mut notes = std::mem::take(&mut layer.notes);
    let backbone = rewrite::backbone(model, &layer, base_dir, &mut notes)?;
    Ok(CutClassifier {
        backbone,
        weight: layer.weight.values,
        bias: layer.bias,
        num_classes: layer.num_classes,
        feature_dim: layer.feature_dim,
        notes,
    })
}

fn decode(model: Bytes) -> Result<ModelProto, CutError> {
    ModelProto::decode(model).map_err(|source| CutError::Malformed { source })
}
