//! Softmax regression: a linear classifier anew (joint, cRT), or a factor for each class of a given one (LWS).

use ndarray::{Array1, Array2, Axis};

use super::{
    FitError, LwsInit, Samples, Softmax, Solver, Watch,
    engine::{Engine, EngineError, pieces},
    minimise::{FixedLayer, Loss, Minimum, Problem, ROWS_AT_ONCE, Validate},
    sampler::Random,
};
use crate::heads::{FeatureMap, Head, Parameters, Weights};

/// A linear classifier from a random start (SGD; `U(−1/√D, 1/√D)`, torch's) or from zeros (L-BFGS; the problem is convex).
///
/// # Reference
/// Kang et al., ICLR 2020, section 4.1 (cRT).
pub(super) fn fit_linear(
    recipe: &Softmax,
    samples: &Samples<'_>,
    validate: Option<&mut Validate<'_>>,
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<Minimum, FitError> {
    let (compact, present) = samples.without_absent_classes();
    let (n_classes, dim) = (present.len(), samples.feature_dim());
    let mut start = vec![0.0f32; n_classes * (dim + 1)];
    if recipe.solver == Solver::Sgd {
        let bound = 1.0 / (dim as f64).sqrt();
        let mut random = Random::new(recipe.seed, 0);
        start.iter_mut().for_each(|value| *value = (bound * (2.0 * random.unit() - 1.0)) as f32);
    }
    let head = |parameters: &[f32]| {
        let (rows, values) = parameters.split_at(n_classes * dim);
        let mut weight = Array2::zeros((samples.num_classes(), dim));
        let mut bias = Array1::zeros(samples.num_classes());
        for ((&class, row), &value) in present.iter().zip(rows.chunks_exact(dim)).zip(values) {
            weight.row_mut(class).iter_mut().zip(row).for_each(|(target, &value)| *target = value);
            bias[class] = value;
        }
        Parameters::Linear { weight, bias: Some(bias), scale: None }
    };
    let problem = Problem { recipe, samples: &compact, loss: Loss::Linear, start, head: &head };
    problem.minimise(validate, engine, watch)
}

/// A factor for each class: `z = s ∘ (x Wᵀ + b)` with W and b of the base. A class without a sample keeps its start.
///
/// # Reference
/// Kang et al., ICLR 2020, section 4.3; that the bias is scaled too is the reference code's.
#[expect(clippy::too_many_arguments, reason = "each is another room's, and a struct for one call would name nothing")]
pub(super) fn fit_lws(
    recipe: &Softmax,
    init: LwsInit,
    base: &Head,
    samples: &Samples<'_>,
    cache_bytes: u64,
    validate: Option<&mut Validate<'_>>,
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<Minimum, FitError> {
    let not_linear = || FitError::Base { reason: format!("it is of kind {}, and LWS needs a linear one", base.kind()) };
    let (weight, bias) = base.linear_layer().ok_or_else(not_linear)?;
    let (compact, present) = samples.without_absent_classes();
    let norms = base.row_norms().unwrap_or_default();
    let initial = |class: usize| match init {
        LwsInit::Ones => 1.0,
        // A row of zeros has nothing to normalise.
        LwsInit::InverseNorm => norms.get(class).filter(|&&norm| norm > 1e-12).map_or(1.0, |norm| (1.0 / norm) as f32),
    };
    let start: Vec<f32> = present.iter().map(|&class| initial(class)).collect();
    let head = |scales: &[f32]| {
        let mut scale = Array1::from_shape_fn(samples.num_classes(), initial);
        for (&class, &value) in present.iter().zip(scales) {
            scale[class] = value;
        }
        Parameters::Linear { weight: weight.clone(), bias: Some(bias.clone()), scale: Some(scale) }
    };
    let layer = FixedLayer {
        weights: Weights::new(weight.select(Axis(0), &present), FeatureMap::Identity, false),
        bias: bias.select(Axis(0), &present),
    };
    let n_bytes = (samples.len() as u64).saturating_mul(present.len() as u64).saturating_mul(4);
    if n_bytes > cache_bytes {
        let problem = Problem { recipe, samples: &compact, loss: Loss::ScaleOf(&layer), start, head: &head };
        return problem.minimise(validate, engine, watch);
    }
    let mut scores = Vec::with_capacity(samples.len() * present.len());
    for range in pieces(samples.len(), ROWS_AT_ONCE) {
        let piece = layer.scores(engine, samples.table(), samples.piece(range))?;
        scores.extend_from_slice(piece.as_slice().unwrap_or_default());
        watch.check()?;
    }
    let scores = Array2::from_shape_vec((samples.len(), present.len()), scores).map_err(EngineError::from)?;
    let of_scores = compact.with_table(scores.view());
    let problem = Problem { recipe, samples: &of_scores, loss: Loss::Scale, start, head: &head };
    problem.minimise(validate, engine, watch)
}
