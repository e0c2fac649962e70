//! Compares a cut classifier with the original.

use std::path::Path;

use bytes::Bytes;

use super::error::CutError;
use super::find::{Dropped, LinearLayer};
use super::{CutClassifier, decode, find, graph, rewrite};
use crate::onnx::proto::ModelProto;
use crate::onnx::{Backbone, Features, OnnxError, RandomPixels, Scorer, ScorerSpec, SessionOptions, Transform};

/// Largest difference accepted, relative to the largest logit, for a layer computed in float32 (or wider): the two ways
/// of computing add in different orders, which costs a few units in the last place of sums of thousands of terms.
pub const TOLERANCE: f32 = 1e-4;

/// The same for a layer that the original computes in half precision, and the two parts do not.
pub const HALF_PRECISION_TOLERANCE: f32 = 2e-2;

/// Images in each run: single ones, and batches whose images must not influence each other.
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
/// The original is taken up to the layer that was cut off, so that a softmax behind it hides no difference. Where something
/// stands behind that layer the whole original runs too: it must answer a row for each image, of the logits, or of their
/// softmax if that was dropped. The images are the same in every run, and the first of each batch is run alone too.
///
/// # Errors
/// [`CutError::NotProved`] if a logit differs by more than [`TOLERANCE`] (or [`HALF_PRECISION_TOLERANCE`]) of the largest
/// logit or is not finite, [`CutError::MixedImages`] if an image has other logits alone than in a batch,
/// [`CutError::OtherAnswer`] if the original answers something else than that, [`CutError::Run`] if one of them does not run.
pub fn prove_cut(
    original: impl Into<Bytes>,
    cut: &CutClassifier,
    base_dir: Option<&Path>,
    input_size: (usize, usize),
    options: &SessionOptions,
) -> Result<CutProof, CutError> {
    let model = decode(original.into())?;
    let graph = model.graph.as_ref().ok_or(CutError::NoGraph)?;
    let layer = find::last_layer(&graph::Index::new(&model, graph), graph, base_dir)?;
    let tolerance = if layer.is_half_precision() { HALF_PRECISION_TOLERANCE } else { TOLERANCE };
    let mut answer = Answer::load(&model, &layer, base_dir, options)?;
    let load = |model: Vec<u8>| Backbone::load(&model, base_dir, options).map_err(failed("original"));
    let mut original = load(rewrite::logits_model(model, &layer)?)?;
    let mut parts = Parts::load(cut, options).map_err(failed("backbone with its head"))?;

    let (height, width) = input_size;
    let mut random = RandomPixels::new();
    let mut proof = CutProof { max_abs_difference: 0.0, max_abs_logit: 0.0, tolerance, n_inputs: 0 };
    for n in BATCHES {
        let pixels = random.draw(3 * n * height * width);
        let logits = original.run(&pixels, n, height, width).map_err(failed("original"))?;
        let expected = logits.to_host().map_err(failed("original"))?;
        if 1 < n {
            let alone = original.run(&pixels[..3 * height * width], 1, height, width).map_err(failed("original"))?;
            let alone = alone.to_host().map_err(failed("original"))?;
            let beside = expected.get(..alone.len()).unwrap_or_default();
            let (max_abs_difference, max_abs_logit) = (largest_difference(beside, &alone), largest(&expected));
            if max_abs_difference > tolerance * max_abs_logit {
                return Err(CutError::MixedImages { max_abs_difference, max_abs_logit, tolerance });
            }
        }
        let found = parts.run(&pixels, n, height, width).map_err(failed("backbone with its head"))?;
        proof.max_abs_difference = proof.max_abs_difference.max(largest_difference(&expected, &found));
        proof.max_abs_logit = proof.max_abs_logit.max(largest(&expected));
        if let Some(answer) = &mut answer {
            answer.check(expected.into_owned(), &pixels, n, input_size)?;
        }
        proof.n_inputs += n;
    }
    let CutProof { max_abs_difference, max_abs_logit, .. } = proof;
    if is_small(max_abs_difference, tolerance, max_abs_logit) {
        Ok(proof)
    } else {
        Err(CutError::NotProved { max_abs_difference, max_abs_logit, tolerance })
    }
}

/// The original as it is, where it does something with the logits.
struct Answer<'a> {
    original: Backbone,
    layer: &'a LinearLayer,
    tolerance: f32,
}

impl<'a> Answer<'a> {
    fn load(
        model: &ModelProto,
        layer: &'a LinearLayer,
        base_dir: Option<&Path>,
        options: &SessionOptions,
    ) -> Result<Option<Self>, CutError> {
        if layer.answer == layer.logits {
            return Ok(None);
        }
        let is_half = layer.is_half_precision() || layer.is_answer_half_precision();
        let tolerance = if is_half { HALF_PRECISION_TOLERANCE } else { TOLERANCE };
        let model = rewrite::answer_model(model.clone(), layer)?;
        let original = Backbone::load(&model, base_dir, options).map_err(failed("original"))?;
        Ok(Some(Self { original, layer, tolerance }))
    }

    /// Compares the original's answer with what it should make of these logits.
    fn check(
        &mut self,
        logits: Vec<f32>,
        pixels: &[f32],
        n: usize,
        (height, width): (usize, usize),
    ) -> Result<(), CutError> {
        let found = self.original.run(pixels, n, height, width).map_err(failed("original"))?;
        let found = found.to_host().map_err(failed("original"))?;
        let mut expected = logits;
        for dropped in &self.layer.dropped {
            expected.chunks_mut(self.layer.num_classes).for_each(|row| apply(*dropped, row));
        }
        let (max_abs_difference, max_abs_answer) = (largest_difference(&expected, &found), largest(&expected));
        let tolerance = self.tolerance;
        if is_small(max_abs_difference, tolerance, max_abs_answer) {
            Ok(())
        } else {
            Err(CutError::OtherAnswer { max_abs_difference, max_abs_answer, tolerance })
        }
    }
}

/// Does with the logits of one image what the original does.
fn apply(dropped: Dropped, row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
    for x in row {
        let shifted = f64::from(*x - largest);
        *x = match dropped {
            Dropped::Softmax => (shifted.exp() / sum) as f32,
            Dropped::LogSoftmax => (shifted - sum.ln()) as f32,
            Dropped::Cast(_) => *x,
        };
    }
}

/// Infinite if there are more of one than of the other, or one is no number.
fn largest_difference(expected: &[f32], found: &[f32]) -> f32 {
    let differences = expected.iter().zip(found).map(|(expected, found)| (expected - found).abs());
    let is_comparable = expected.len() == found.len();
    let infinite_if_nan = |x: f32| if x.is_nan() { f32::INFINITY } else { x };
    differences.map(infinite_if_nan).fold(if is_comparable { 0.0 } else { f32::INFINITY }, f32::max)
}

/// Of infinite values none is.
fn is_small(difference: f32, tolerance: f32, largest: f32) -> bool {
    difference.is_finite() && difference <= tolerance * largest.max(f32::MIN_POSITIVE)
}

fn largest(values: &[f32]) -> f32 {
    values.iter().map(|x| x.abs()).fold(0.0, f32::max)
}

fn failed(which: &'static str) -> impl Fn(OnnxError) -> CutError {
    move |source| CutError::Run { which, source: Box::new(source) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_like_nothing() {
        let are_alike = |a: &[f32], b: &[f32]| is_small(largest_difference(a, b), TOLERANCE, largest(a));
        assert!(are_alike(&[1.0, 0.0], &[1.0, 0.0]));
        assert!(!are_alike(&[1.0, f32::INFINITY], &[1.0, f32::INFINITY]));
        assert!(!are_alike(&[1.0, f32::INFINITY], &[1.0, 0.0]));
        assert!(!are_alike(&[1.0, f32::NAN], &[1.0, f32::NAN]));
    }
}
