//! Compares a cut classifier with the original.

use std::path::Path;

use super::error::CutError;
use super::{CutClassifier, decode, find, graph, rewrite};
use crate::onnx::{Backbone, Features, OnnxError, RandomPixels, Scorer, ScorerSpec, SessionOptions, Transform};

/// Largest difference accepted, relative to the largest logit, for a layer computed in float32 (or wider): the two ways
/// of computing add in different orders, which costs a few units in the last place of sums of thousands of terms.
pub const TOLERANCE: f32 = 1e-4;

/// The same for a layer that the original computes in half precision, and the two parts do not.
pub const HALF_PRECISION_TOLERANCE: f32 = 2e-2;

/// Images in each run: single ones, and a batch whose images must not influence each other.
const BATCHES: [usize; 4] = [1, 1, 2, 5];

/// The comparison of the two parts with the original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CutProof {
    /// The largest difference between a logit of the original and one of the two parts.
    pub max_abs_difference: f32,
    /// The largest logit seen: the scale on which the difference is judged.
    pub max_abs_logit: f32,
    /// The difference that would have been accepted, relative to `max_abs_logit`.
    pub tolerance: f32,
    /// Random images compared.
    pub n_inputs: usize,
}

/// Runs the original and the two parts on the same random images, single and in batches, and compares the logits.
///
/// The original is taken up to the layer that was cut off, so that a softmax behind it hides no difference. The images
/// are the same in every run.
///
/// # Errors
/// [`CutError::NotProved`] if a logit differs by more than [`TOLERANCE`] (or [`HALF_PRECISION_TOLERANCE`]) of the largest
/// logit or is not finite, [`CutError::Run`] if one of the two does not run.
pub fn prove_cut(
    original: &[u8],
    cut: &CutClassifier,
    base_dir: Option<&Path>,
    input_size: (usize, usize),
    options: &SessionOptions,
) -> Result<CutProof, CutError> {
    let failed = |which| move |source| CutError::Run { which, source: Box::new(source) };
    let model = decode(original)?;
    let graph = model.graph.as_ref().ok_or(CutError::NoGraph)?;
    let layer = find::last_layer(&graph::Index::new(&model, graph), graph, base_dir)?;
    let tolerance = if layer.is_half_precision() { HALF_PRECISION_TOLERANCE } else { TOLERANCE };
    let original = rewrite::logits_model(model, &layer)?;
    let mut original = Backbone::load(&original, base_dir, options).map_err(failed("original"))?;
    let mut parts = Parts::load(cut, options).map_err(failed("backbone with its head"))?;

    let (height, width) = input_size;
    let mut random = RandomPixels::new();
    let mut proof = CutProof { max_abs_difference: 0.0, max_abs_logit: 0.0, tolerance, n_inputs: 0 };
    for n in BATCHES {
        let pixels = random.draw(3 * n * height * width);
        let logits = original.run(&pixels, n, height, width).map_err(failed("original"))?;
        let expected = logits.to_host().map_err(failed("original"))?;
        let found = parts.run(&pixels, n, height, width).map_err(failed("backbone with its head"))?;
        for (expected, found) in expected.iter().zip(&found) {
            proof.max_abs_difference = proof.max_abs_difference.max((expected - found).abs());
            proof.max_abs_logit = proof.max_abs_logit.max(expected.abs());
        }
        if expected.len() != found.len() {
            proof.max_abs_difference = f32::INFINITY;
        }
        proof.n_inputs += n;
    }
    let CutProof { max_abs_difference, max_abs_logit, .. } = proof;
    if max_abs_difference <= tolerance * max_abs_logit.max(f32::MIN_POSITIVE) {
        Ok(proof)
    } else {
        Err(CutError::NotProved { max_abs_difference, max_abs_logit, tolerance })
    }
}

/// Backbone and head, put together again.
struct Parts<'a> {
    backbone: Backbone,
    scorer: Scorer,
    cut: &'a CutClassifier,
}

impl<'a> Parts<'a> {
    fn load(cut: &'a CutClassifier, options: &SessionOptions) -> Result<Self, OnnxError> {
        let backbone = Backbone::load(&cut.backbone, None, options)?;
        let spec = ScorerSpec {
            weight: &cut.weight,
            num_classes: cut.num_classes,
            feature_dim: cut.feature_dim,
            transform: Transform::Identity,
            squared_norm: false,
        };
        let options = SessionOptions { device: backbone.provider().into(), ..options.clone() };
        Ok(Self { backbone, scorer: Scorer::build(&spec, &options)?, cut })
    }

    fn run(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Vec<f32>, OnnxError> {
        let features: Features = self.backbone.run(pixels, n, height, width)?;
        let mut logits = self.scorer.run(&features)?.raw;
        if let Some(bias) = &self.cut.bias {
            logits.iter_mut().zip(bias.iter().cycle()).for_each(|(logit, b)| *logit += b);
        }
        Ok(logits)
    }
}
