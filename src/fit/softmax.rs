//! Softmax regression: a linear classifier anew (joint, cRT), or a factor for each class of a given one (LWS).

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::{
    FitError, LwsInit, Samples, Softmax, Solver, Watch,
    engine::{Batch, Engine, EngineError, Rows, pieces},
    minimise::{Judge, Loss, Minimum, ROWS_AT_ONCE, minimise},
    sampler::Random,
};
use crate::heads::{FeatureMap, Head, Parameters, Weights};

/// The loss of `z = x Wᵀ + b`; parameters are W `[C, D]`, then b `[C]`.
struct LinearLoss<'a> {
    table: ArrayView2<'a, f32>,
}

impl Loss for LinearLoss<'_> {
    fn gradient(
        &self,
        engine: &mut dyn Engine,
        rows: Rows<'_>,
        labels: &[u32],
        row_weights: &[f32],
        parameters: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, EngineError> {
        let n_classes = parameters.len() / (self.table.ncols() + 1);
        let (weight, bias) = parameters.split_at(n_classes * self.table.ncols());
        engine.linear_gradient(&Batch { table: self.table, rows, labels, row_weights }, weight, bias, gradient)
    }
}

/// Turns what was fitted, of a head with these parameters, into the value of validation.
pub(super) type Validate<'a> = dyn FnMut(&mut dyn Engine, Parameters, &mut Watch<'_>) -> Result<f64, FitError> + 'a;

/// Parameters of a head, and how they came about.
pub(super) struct SoftmaxFit {
    pub(super) parameters: Parameters,
    pub(super) chosen_epoch: Option<usize>,
    pub(super) warnings: Vec<String>,
}

/// A linear classifier from a random start (SGD; `U(−1/√D, 1/√D)`, torch's) or from zeros (L-BFGS; the problem is convex).
///
/// # Reference
/// Kang et al., ICLR 2020, section 4.1 (cRT).
pub(super) fn fit_linear(
    recipe: &Softmax,
    samples: &Samples<'_>,
    mut validate: Option<&mut Validate<'_>>,
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<SoftmaxFit, FitError> {
    let (compact, present) = samples.without_absent_classes();
    let (n_classes, dim) = (present.len(), samples.feature_dim());
    let mut start = vec![0.0f32; n_classes * (dim + 1)];
    if recipe.solver == Solver::Sgd {
        let bound = 1.0 / (dim as f64).sqrt();
        let mut random = Random::new(recipe.seed, 0);
        start.iter_mut().for_each(|value| *value = (bound * (2.0 * random.unit() - 1.0)) as f32);
    }
    let expand = |parameters: &[f32]| {
        let (rows, values) = parameters.split_at(n_classes * dim);
        let mut weight = Array2::zeros((samples.num_classes(), dim));
        let mut bias = Array1::zeros(samples.num_classes());
        for ((&class, row), &value) in present.iter().zip(rows.chunks_exact(dim)).zip(values) {
            weight.row_mut(class).iter_mut().zip(row).for_each(|(target, &value)| *target = value);
            bias[class] = value;
        }
        Parameters::Linear { weight, bias: Some(bias), scale: None }
    };
    let loss = LinearLoss { table: samples.table() };
    let mut judge = validate.as_mut().map(|validate| {
        |engine: &mut dyn Engine, parameters: &[f32], watch: &mut Watch<'_>| validate(engine, expand(parameters), watch)
    });
    let judge = judge.as_mut().map(|judge| judge as &mut Judge<'_>);
    let Minimum { parameters, chosen_epoch, warnings } =
        minimise(recipe, &compact, &loss, start, judge, engine, watch)?;
    Ok(SoftmaxFit { parameters: expand(&parameters), chosen_epoch, warnings })
}

/// The loss of `z = s ∘ t`, with rows `t` of a table of scores.
struct ScaleLoss<'a> {
    scores: ArrayView2<'a, f32>,
}

impl Loss for ScaleLoss<'_> {
    fn gradient(
        &self,
        engine: &mut dyn Engine,
        rows: Rows<'_>,
        labels: &[u32],
        row_weights: &[f32],
        parameters: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, EngineError> {
        engine.scale_gradient(&Batch { table: self.scores, rows, labels, row_weights }, parameters, gradient)
    }
}

/// The same with scores `t = x Wᵀ + b` that are computed when they are needed, because all of them would be too many.
struct ComputedScaleLoss<'a> {
    table: ArrayView2<'a, f32>,
    base: &'a Base,
}

impl Loss for ComputedScaleLoss<'_> {
    fn gradient(
        &self,
        engine: &mut dyn Engine,
        rows: Rows<'_>,
        labels: &[u32],
        row_weights: &[f32],
        parameters: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, EngineError> {
        let scores = self.base.scores(engine, self.table, rows)?;
        let batch =
            Batch { table: scores.view(), rows: Rows::Range { start: 0, end: rows.len() }, labels, row_weights };
        engine.scale_gradient(&batch, parameters, gradient)
    }
}

/// The rows of the base that take part.
struct Base {
    weights: Weights,
    bias: Array1<f32>,
}

impl Base {
    fn scores(
        &self,
        engine: &mut dyn Engine,
        table: ArrayView2<'_, f32>,
        rows: Rows<'_>,
    ) -> Result<Array2<f32>, EngineError> {
        let raw = engine.raw_scores(table, rows, &self.weights)?.raw;
        let mut scores = Array2::from_shape_vec((rows.len(), self.bias.len()), raw)?;
        scores += &self.bias;
        Ok(scores)
    }
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
    mut validate: Option<&mut Validate<'_>>,
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<SoftmaxFit, FitError> {
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
    let expand = |scales: &[f32]| {
        let mut scale = Array1::from_shape_fn(samples.num_classes(), initial);
        for (&class, &value) in present.iter().zip(scales) {
            scale[class] = value;
        }
        Parameters::Linear { weight: weight.clone(), bias: Some(bias.clone()), scale: Some(scale) }
    };
    let rows_of_base = Base {
        weights: Weights::new(weight.select(Axis(0), &present), FeatureMap::Identity, false),
        bias: bias.select(Axis(0), &present),
    };
    let mut judge = validate.as_mut().map(|validate| {
        |engine: &mut dyn Engine, scales: &[f32], watch: &mut Watch<'_>| validate(engine, expand(scales), watch)
    });
    let judge = judge.as_mut().map(|judge| judge as &mut Judge<'_>);
    let fits = (samples.len() as u64).saturating_mul(present.len() as u64).saturating_mul(4) <= cache_bytes;
    let Minimum { parameters, chosen_epoch, warnings } = if fits {
        let mut scores = Vec::with_capacity(samples.len() * present.len());
        for range in pieces(samples.len(), ROWS_AT_ONCE) {
            let piece = rows_of_base.scores(engine, samples.table(), samples.piece(range))?;
            scores.extend_from_slice(piece.as_slice().unwrap_or_default());
            watch.check()?;
        }
        let scores = Array2::from_shape_vec((samples.len(), present.len()), scores).map_err(EngineError::from)?;
        let of_scores = compact.with_table(scores.view());
        minimise(recipe, &of_scores, &ScaleLoss { scores: scores.view() }, start, judge, engine, watch)?
    } else {
        let loss = ComputedScaleLoss { table: samples.table(), base: &rows_of_base };
        minimise(recipe, &compact, &loss, start, judge, engine, watch)?
    };
    Ok(SoftmaxFit { parameters: expand(&parameters), chosen_epoch, warnings })
}
