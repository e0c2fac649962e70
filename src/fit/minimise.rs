//! Two ways to bring a softmax loss down.

use std::borrow::Cow;

use ndarray::{Array1, Array2, ArrayView2};

use super::{
    FitError, Progress, Sampler, Samples, Sgd, Softmax, Solver, Watch,
    engine::{Batch, Engine, EngineError, Gradient, Rows, pieces},
    lbfgs::{self, End},
    linear_sgd::LinearSgd,
};
use crate::heads::{Parameters, Weights};

/// Rows that are in work at once when all are looked at.
pub(super) const ROWS_AT_ONCE: usize = 2048;

/// A softmax loss of some parameters.
pub(super) enum Loss<'a> {
    /// Of `z = x Wᵀ + b`; parameters are W `[C, D]`, then b `[C]`.
    Linear,
    /// Of `z = s ∘ t`, with the rows of a table of scores as `t`; parameters are s `[C]`.
    Scale,
    /// The same with scores `t = x Wᵀ + b` that are computed when they are needed, because all of them would be too many.
    ScaleOf(&'a FixedLayer),
}

impl Loss<'_> {
    /// `Σᵢ ωᵢ CEᵢ` over a batch and its gradient.
    fn gradient<'e>(
        &self,
        engine: &'e mut dyn Engine,
        batch: &Batch<'_>,
        parameters: &[f32],
    ) -> Result<Gradient<'e>, EngineError> {
        match self {
            Self::Linear => {
                let n_columns = batch.table.ncols();
                let (weight, bias) = parameters.split_at(parameters.len() / (n_columns + 1) * n_columns);
                engine.linear_gradient(batch, weight, bias)
            }
            Self::Scale => engine.scale_gradient(batch, parameters),
            Self::ScaleOf(layer) => {
                let scores = layer.scores(engine, batch.table, batch.rows)?;
                let rows = Rows::Range { start: 0, end: batch.rows.len() };
                engine.scale_gradient(&Batch { table: scores.view(), rows, ..*batch }, parameters)
            }
        }
    }
}

/// A linear layer `x Wᵀ + b` that is not fitted.
pub(super) struct FixedLayer {
    pub(super) weights: Weights,
    pub(super) bias: Array1<f32>,
}

impl FixedLayer {
    /// Its scores of some rows.
    pub(super) fn scores(
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

/// How good a head with these parameters is on the validation set: the larger the better.
pub(super) type Validate<'a> = dyn FnMut(&mut dyn Engine, Parameters, &mut Watch<'_>) -> Result<f64, FitError> + 'a;

/// What is to be brought down, and from where.
pub(super) struct Problem<'a, 't> {
    pub(super) recipe: &'a Softmax,
    pub(super) samples: &'a Samples<'t>,
    pub(super) loss: Loss<'a>,
    pub(super) start: Vec<f32>,
    /// The head that the parameters stand for.
    pub(super) head: &'a dyn Fn(&[f32]) -> Parameters,
}

/// What came of it.
pub(super) struct Minimum {
    pub(super) parameters: Parameters,
    /// The epoch whose parameters these are, if they were chosen by validation.
    pub(super) chosen_epoch: Option<usize>,
    pub(super) warnings: Vec<String>,
}

/// The steps of SGD.
enum Steps {
    /// As one piece of work, where the engine computes on the host.
    Together(LinearSgd),
    /// The engine's gradient, then the update.
    Apart { sgd: Sgd, parameters: Vec<f32> },
}

impl Steps {
    fn new(
        recipe: &Softmax,
        loss: &Loss<'_>,
        feature_dim: usize,
        batch_size: usize,
        start: Vec<f32>,
        engine: &dyn Engine,
    ) -> Self {
        let n_threads = engine.threads();
        let together = match loss {
            Loss::Linear if engine.may_be_left_out() => {
                LinearSgd::new(recipe, &start, feature_dim, batch_size, n_threads)
            }
            _ => None,
        };
        match together {
            Some(steps) => Self::Together(steps),
            None => {
                let sgd = Sgd::new(start.len(), recipe.momentum, recipe.weight_decay, n_threads);
                Self::Apart { sgd, parameters: start }
            }
        }
    }

    /// One step; gives back the loss of before.
    fn step(
        &mut self,
        loss: &Loss<'_>,
        engine: &mut dyn Engine,
        learning_rate: f64,
        batch: &Batch<'_>,
    ) -> Result<f64, EngineError> {
        match self {
            Self::Together(steps) => Ok(steps.step(learning_rate, batch)),
            Self::Apart { sgd, parameters } => {
                let gradient = loss.gradient(engine, batch, parameters)?;
                sgd.step(learning_rate, &gradient.parts, parameters);
                Ok(gradient.loss)
            }
        }
    }

    fn parameters(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Together(steps) => Cow::Owned(steps.parameters()),
            Self::Apart { parameters, .. } => Cow::Borrowed(parameters),
        }
    }
}

impl Problem<'_, '_> {
    /// Brings the loss plus the penalty down. With `validate`, SGD keeps the parameters of the first best epoch.
    pub(super) fn minimise(
        self,
        validate: Option<&mut Validate<'_>>,
        engine: &mut dyn Engine,
        watch: &mut Watch<'_>,
    ) -> Result<Minimum, FitError> {
        engine.hold(self.samples.table())?;
        match self.recipe.solver {
            Solver::Sgd => self.sgd(validate, engine, watch),
            Solver::Lbfgs => self.full_batch(engine, watch),
        }
    }

    /// Stochastic gradient descent. An epoch is `⌊N/B⌋` steps, whatever the sampler. The loss is the mean over the batch.
    fn sgd(
        self,
        mut validate: Option<&mut Validate<'_>>,
        engine: &mut dyn Engine,
        watch: &mut Watch<'_>,
    ) -> Result<Minimum, FitError> {
        let Self { recipe, samples, loss, start, head } = self;
        let batch_size = recipe.batch_size(samples.len());
        let n_steps = samples.len() / batch_size;
        let row_weights = vec![1.0 / batch_size as f32; batch_size];
        let mut sampler = Sampler::new(recipe.sampling, samples.labels(), samples.num_classes(), recipe.seed);
        let mut steps = Steps::new(recipe, &loss, samples.feature_dim(), batch_size, start, engine);
        let (mut batch, mut rows, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let mut best: Option<(f64, usize, Vec<f32>)> = None;
        let mut samples_seen = 0;
        for epoch in 1..=recipe.epochs {
            sampler.start_epoch(epoch, recipe.epochs);
            let learning_rate = recipe.learning_rate(epoch, samples.len());
            let mut sum = 0.0;
            for step in 1..=n_steps {
                sampler.draw(batch_size, &mut batch);
                rows.clear();
                rows.extend(batch.iter().map(|&sample| samples.row(sample)));
                labels.clear();
                labels.extend(batch.iter().map(|&sample| samples.labels()[sample as usize]));
                let drawn = Batch {
                    table: samples.table(),
                    rows: Rows::Index(&rows),
                    labels: &labels,
                    row_weights: &row_weights,
                };
                sum += steps.step(&loss, engine, learning_rate, &drawn)?;
                samples_seen += batch_size;
                let done = ((epoch - 1) * n_steps + step) as f64 / (recipe.epochs * n_steps) as f64;
                watch.tell(Progress {
                    done,
                    epoch,
                    epochs: recipe.epochs,
                    loss: Some(sum / step as f64),
                    samples_seen,
                })?;
            }
            if !sum.is_finite() {
                return Err(FitError::Diverged { epoch });
            }
            if let Some(validate) = &mut validate {
                let parameters = steps.parameters();
                let value = validate(engine, head(&parameters), &mut watch.quiet())?;
                if best.as_ref().is_none_or(|(best, ..)| value > *best) {
                    best = Some((value, epoch, parameters.into_owned()));
                }
            }
        }
        let mut warnings = Vec::new();
        if recipe.batch_size.is_some_and(|asked| asked > batch_size) {
            warnings.push(format!("`batch_size` is {batch_size}, as many as there are rows"));
        }
        if n_steps * recipe.epochs < 100 {
            warnings.push(format!(
            "SGD took {} steps in all, far from any optimum: a smaller `batch_size`, more `epochs`, or `solver` lbfgs",
            n_steps * recipe.epochs
        ));
        }
        let (chosen_epoch, parameters) = match best {
            Some((_, epoch, best)) => (Some(epoch), Cow::Owned(best)),
            None => (None, steps.parameters()),
        };
        Ok(Minimum { parameters: head(&parameters), chosen_epoch, warnings })
    }

    /// The optimum of `Σᵢ ωᵢ CEᵢ + λ/2 ‖θ‖²` over all rows, `ωᵢ = p_yᵢ / n_yᵢ`: what the sampler has in the mean.
    fn full_batch(self, engine: &mut dyn Engine, watch: &mut Watch<'_>) -> Result<Minimum, FitError> {
        let Self { recipe, samples, loss, start, head } = self;
        let counts = samples.class_counts();
        let shares = recipe.sampling.class_probabilities(&counts, 1, 1);
        let row_weights: Vec<f32> = samples
            .labels()
            .iter()
            .map(|&label| (shares[label as usize] / counts[label as usize] as f64) as f32)
            .collect();
        let n_pieces = samples.len().div_ceil(ROWS_AT_ONCE);
        let mut rounded = vec![0.0f32; start.len()];
        let (mut iteration, mut samples_seen) = (0, 0);
        let mut evaluate = |point: &[f64], gradient: &mut [f64]| -> Result<f64, FitError> {
            iteration += 1;
            for (rounded, &exact) in rounded.iter_mut().zip(point) {
                *rounded = exact as f32;
            }
            let mut value = 0.0;
            gradient.fill(0.0);
            for (piece, range) in pieces(samples.len(), ROWS_AT_ONCE).enumerate() {
                let batch = Batch {
                    table: samples.table(),
                    rows: samples.piece(range.clone()),
                    labels: &samples.labels()[range.clone()],
                    row_weights: &row_weights[range.clone()],
                };
                let of_piece = loss.gradient(engine, &batch, &rounded)?;
                value += of_piece.loss;
                for (sum, &part) in gradient.iter_mut().zip(of_piece.parts.into_iter().flatten()) {
                    *sum += f64::from(part);
                }
                samples_seen += range.len();
                // Nobody knows how many iterations it takes: what is told nears 1 and never gets there.
                let passes = iteration as f64 - 1.0 + (piece + 1) as f64 / n_pieces as f64;
                let done = 1.0 - (-passes / 100.0).exp();
                watch.tell(Progress { done, epoch: iteration, epochs: 0, loss: None, samples_seen })?;
            }
            for (gradient, &point) in gradient.iter_mut().zip(point) {
                value += 0.5 * recipe.weight_decay * point * point;
                *gradient += recipe.weight_decay * point;
            }
            Ok(value)
        };
        let start: Vec<f64> = start.into_iter().map(f64::from).collect();
        let end = lbfgs::minimise(start, &mut evaluate)?;
        let End { point, value, iterations, gradient_norm, has_converged } = end;
        // Beside what zeros cost, from which L-BFGS starts, or to which it could have come; up to rounding at an optimum that is zeros.
        let gained = (samples.num_classes() as f64).ln() - value;
        let least = if has_converged { -1e-3 } else { 1e-5 };
        if gained.is_nan() || gained < least {
            return Err(FitError::NothingGained { iterations, gradient: gradient_norm });
        }
        let mut warnings = Vec::new();
        if !has_converged {
            warnings.push(format!(
                "L-BFGS stopped after {iterations} iterations with a gradient of {gradient_norm:.1e}: with a larger \
                 `weight_decay`, or features that are standardised, there is an optimum to reach"
            ));
        }
        let parameters: Vec<f32> = point.into_iter().map(|value| value as f32).collect();
        Ok(Minimum { parameters: head(&parameters), chosen_epoch: None, warnings })
    }
}
