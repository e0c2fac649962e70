//! SGD of a linear classifier on the CPU, as one piece of work.
//!
//! ```text
//! rows -> x -> z = x Wᵀ + b -> exp -> (all threads) -> r = ω (p − [right]);  W, v, b <- xᵀ r, step
//! ```
//!
//! The same numbers come out of an [`Engine`](super::Engine)'s gradient and [`Sgd`](super::Sgd), but for rounding. There the
//! weights, which no step leaves as they were, are rearranged for each matrix product, and the gradient goes to memory and
//! comes back for the update. Here the weights stay in the arrangement that the products read, for all of the fit; the batch
//! is rearranged once, as it is gathered, for both products; and the update happens where the gradient is, before it leaves
//! the registers or the nearest cache.
//!
//! Classes go together in panels, and each thread has some panels to itself in a step, whose weights nobody else reads or writes.
//! What threads have to agree on is each row's largest score and the sum of its exponentials. These are put together panel by
//! panel, so that the result does not depend on which thread has which.

mod threads;
mod tiles;
mod vectors;

use std::fmt::Debug;

use super::{Softmax, engine::Batch};
use crate::heads::exp_of_negative;
use threads::{each, in_shares};

/// Work on fewer multiplications is done before another thread has begun.
const PRODUCTS_PER_THREAD: usize = 4 << 20;

/// A linear classifier `z = x Wᵀ + b`, and where SGD with momentum and weight decay has brought it.
#[derive(Debug)]
pub(super) struct LinearSgd(Box<dyn Steps>);

/// By what it is done.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    Tiles(tiles::Amx),
    Vectors(vectors::Instructions),
}

impl Kernel {
    /// Those that the processor and the system have, the fastest first.
    fn all() -> impl Iterator<Item = Self> {
        let vectors = vectors::Instructions::ALL.into_iter().filter(|instructions| instructions.are_there());
        tiles::Amx::new().map(Self::Tiles).into_iter().chain(vectors.map(Self::Vectors))
    }
}

impl LinearSgd {
    /// From these parameters, W `[C, D]` and then b `[C]`, with the momentum and the weight decay of a recipe; `None` if the
    /// processor has none of the instructions that this is made for.
    pub(super) fn new(
        recipe: &Softmax,
        parameters: &[f32],
        feature_dim: usize,
        batch_size: usize,
        n_threads: usize,
    ) -> Option<Self> {
        let kernel = Kernel::all().next()?;
        Some(Self::with_kernel(kernel, recipe, parameters, feature_dim, batch_size, n_threads))
    }

    fn with_kernel(
        kernel: Kernel,
        recipe: &Softmax,
        parameters: &[f32],
        feature_dim: usize,
        batch_size: usize,
        n_threads: usize,
    ) -> Self {
        let start = Start { recipe, parameters, feature_dim, batch_size, n_threads };
        Self(match kernel {
            Kernel::Tiles(amx) => Box::new(InPanels::<tiles::Panel>::new(amx, &start)),
            Kernel::Vectors(instructions) => Box::new(InPanels::<vectors::Panel>::new(instructions, &start)),
        })
    }

    /// One step; gives back the loss `Σᵢ ωᵢ CEᵢ` of before. The batch has as many rows as was said.
    pub(super) fn step(&mut self, learning_rate: f64, batch: &Batch<'_>) -> f64 {
        self.0.step(learning_rate, batch)
    }

    /// W `[C, D]`, then b `[C]`.
    pub(super) fn parameters(&self) -> Vec<f32> {
        self.0.parameters()
    }
}

/// What [`LinearSgd`] does, whatever by.
trait Steps: Debug {
    fn step(&mut self, learning_rate: f64, batch: &Batch<'_>) -> f64;
    fn parameters(&self) -> Vec<f32>;
}

/// What steps begin with: see [`LinearSgd::new`].
struct Start<'a> {
    recipe: &'a Softmax,
    parameters: &'a [f32],
    feature_dim: usize,
    batch_size: usize,
    n_threads: usize,
}

/// The features of a batch, as the products read them.
trait Features: Debug + Sync {
    /// Rows, with those that fill the last panel.
    fn n_rows(&self) -> usize;
    /// Puts the rows of the batch there, on as many threads.
    fn gather(&mut self, batch: &Batch<'_>, n_threads: usize);
}

/// Classes that the products take together: their weights and their scores.
trait Panel: Debug + Send + Sized {
    type Kernel: Copy + Debug + Sync;
    type Features: Features;
    /// What a thread keeps besides.
    type Scratch: Debug + Default + Send;
    /// How many classes there are in one; the last may have fewer.
    fn n_classes(kernel: Self::Kernel) -> usize;
    /// Zeros, as many as this takes.
    fn features(kernel: Self::Kernel, batch_size: usize, feature_dim: usize) -> Self::Features;
    /// From the weights `[class, D]` and the biases of these classes; `first` is the first of them.
    fn new(kernel: Self::Kernel, first: usize, weight: &[f32], bias: &[f32], features: &Self::Features) -> Self;
    /// Scores, and their exponentials, of all rows.
    fn forward(panels: &mut [Self], batch: &Gathered<'_, Self>, scratch: &mut Self::Scratch);
    /// Residuals, the gradient, and the step along it.
    fn update(panels: &mut [Self], batch: &Gathered<'_, Self>, update: Update, scratch: &mut Self::Scratch);
    /// What [`forward`](Self::forward) found.
    fn found(&self) -> &Found;
    /// The weights `[class, D]`, and the biases.
    fn parameters(&self, feature_dim: usize) -> (Vec<f32>, &[f32]);
}

/// A batch, as panels see it.
struct Gathered<'a, P: Panel> {
    kernel: P::Kernel,
    features: &'a P::Features,
    of_rows: &'a [OfRow],
}

/// What all panels have to know of a row to turn their scores into its residuals.
#[derive(Clone, Copy, Debug, Default)]
struct OfRow {
    /// `ω`, and the class that is right; 0 of a row beyond the batch.
    weight: f32,
    label: usize,
    /// The score of that class.
    right: f32,
    /// The largest score of the row.
    max: f32,
    /// `ω / Σ exp(z − max z)`.
    factor: f32,
}

/// What a panel knows of the rows.
#[derive(Debug)]
struct Found {
    /// `[row]`: the largest score, and the sum of the exponentials.
    max: Vec<f32>,
    sum: Vec<f32>,
    /// The scores of the right class, of the rows where that is in this panel.
    right: Vec<(usize, f32)>,
}

impl Found {
    fn new(n_rows: usize) -> Self {
        Self { max: vec![0.0; n_rows], sum: vec![0.0; n_rows], right: Vec::new() }
    }
}

/// What a step of SGD does to a parameter `θ` with the velocity `v` and the gradient `∇`:
/// `v = μ v + (∇ + λ θ)`, `θ = θ − rate · v`.
#[derive(Clone, Copy, Debug)]
struct Update {
    /// The learning rate.
    rate: f32,
    /// `μ`.
    momentum: f32,
    /// `λ`.
    decay: f32,
}

impl Update {
    #[inline(always)]
    fn step(self, gradient: f32, parameter: &mut f32, velocity: &mut f32) {
        *velocity = self.momentum * *velocity + (gradient + self.decay * *parameter);
        *parameter -= self.rate * *velocity;
    }
}

/// All classes, in panels.
#[derive(Debug)]
struct InPanels<P: Panel> {
    kernel: P::Kernel,
    panels: Vec<P>,
    /// One for each thread.
    scratch: Vec<P::Scratch>,
    features: P::Features,
    of_rows: Vec<OfRow>,
    feature_dim: usize,
    momentum: f32,
    decay: f32,
}

impl<P: Panel> InPanels<P> {
    fn new(kernel: P::Kernel, start: &Start<'_>) -> Self {
        let Start { recipe, parameters, feature_dim, batch_size, n_threads } = *start;
        let (weight, bias) = parameters.split_at(parameters.len() / (feature_dim + 1) * feature_dim);
        let features = P::features(kernel, batch_size, feature_dim);
        let n_classes = P::n_classes(kernel);
        let in_panels = weight.chunks(n_classes * feature_dim).zip(bias.chunks(n_classes)).enumerate();
        let panel = |(index, (weight, bias))| P::new(kernel, index * n_classes, weight, bias, &features);
        let panels: Vec<_> = in_panels.map(panel).collect();
        let n_worth_while = batch_size.saturating_mul(parameters.len()) / PRODUCTS_PER_THREAD;
        let n_threads = n_threads.min(panels.len()).min(n_worth_while).max(1);
        Self {
            kernel,
            panels,
            scratch: (0..n_threads).map(|_| P::Scratch::default()).collect(),
            of_rows: vec![OfRow::default(); features.n_rows()],
            features,
            feature_dim,
            momentum: recipe.momentum as f32,
            decay: recipe.weight_decay as f32,
        }
    }
}

impl<P: Panel> Steps for InPanels<P> {
    fn step(&mut self, learning_rate: f64, batch: &Batch<'_>) -> f64 {
        let Self { kernel, panels, scratch, features, of_rows, .. } = self;
        for ((of_row, &label), &weight) in of_rows.iter_mut().zip(batch.labels).zip(batch.row_weights) {
            *of_row = OfRow { weight, label: label as usize, ..OfRow::default() };
        }
        features.gather(batch, scratch.len());
        let gathered = Gathered { kernel: *kernel, features, of_rows };
        in_shares(panels, scratch, |panels, scratch| P::forward(panels, &gathered, scratch));
        let found: Vec<_> = panels.iter().map(P::found).collect();
        let loss = put_together(&found, of_rows);
        let update = Update { rate: learning_rate as f32, momentum: self.momentum, decay: self.decay };
        let gathered = Gathered { kernel: *kernel, features, of_rows };
        in_shares(panels, scratch, |panels, scratch| P::update(panels, &gathered, update, scratch));
        loss
    }

    fn parameters(&self) -> Vec<f32> {
        let (mut parameters, mut biases) = (Vec::new(), Vec::new());
        for panel in &self.panels {
            let (weight, bias) = panel.parameters(self.feature_dim);
            parameters.extend(weight);
            biases.extend_from_slice(bias);
        }
        parameters.extend(biases);
        parameters
    }
}

/// What the panels know of each row, put together; gives back the loss.
fn put_together(found: &[&Found], of_rows: &mut [OfRow]) -> f64 {
    let mut sums = vec![0.0f64; of_rows.len()];
    of_rows.iter_mut().for_each(|of_row| of_row.max = f32::NEG_INFINITY);
    for panel in found {
        of_rows.iter_mut().zip(&panel.max).for_each(|(of_row, &max)| of_row.max = of_row.max.max(max));
    }
    for panel in found {
        for (((sum, of_row), max), panel_sum) in sums.iter_mut().zip(&*of_rows).zip(&panel.max).zip(&panel.sum) {
            *sum += f64::from(*panel_sum * exp_of_negative(max - of_row.max));
        }
    }
    for (of_row, sum) in of_rows.iter_mut().zip(&sums) {
        of_row.factor = (f64::from(of_row.weight) / sum) as f32;
    }
    for &(row, score) in found.iter().flat_map(|panel| &panel.right) {
        of_rows[row].right = score;
    }
    let losses = of_rows
        .iter()
        .zip(&sums)
        .map(|(of_row, sum)| f64::from(of_row.weight) * (sum.ln() + f64::from(of_row.max) - f64::from(of_row.right)));
    losses.sum()
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::{
        fit::{Engine, PlainEngine, Random, Recipe, Sgd, engine::Rows},
        heads::HeadKind,
    };

    /// Relative to the largest entry; float32 sums of up to 600 products in another order. Measured: at most 1.7e-7.
    const TOLERANCE: f32 = 5e-7;

    struct Case {
        table: Array2<f32>,
        labels: Vec<u32>,
        row_weights: Vec<f32>,
        start: Vec<f32>,
        batch_size: usize,
    }

    impl Case {
        fn new(n: usize, batch_size: usize, dim: usize, n_classes: usize) -> Self {
            let mut random = Random::new(n as u64, 0);
            let mut values = |n: usize| (0..n).map(|_| 2.0 * random.unit() as f32 - 1.0).collect::<Vec<_>>();
            let table = Array2::from_shape_vec((n, dim), values(n * dim)).expect("as many values");
            let start = values(n_classes * (dim + 1));
            let row_weights = values(batch_size).into_iter().map(|value| (1.0 + value) / batch_size as f32).collect();
            let labels = (0..n).map(|row| (row * 7 % n_classes) as u32).collect();
            Self { table, labels, row_weights, start, batch_size }
        }

        fn n_classes(&self) -> usize {
            self.start.len() / (self.table.ncols() + 1)
        }

        /// Loss of each of three steps, and the parameters then.
        fn steps(&self, mut step: impl FnMut(&Batch<'_>) -> f64) -> Vec<f64> {
            (0..3)
                .map(|number| {
                    let rows: Vec<u32> =
                        (0..self.batch_size).map(|i| ((i * 5 + number) % self.table.nrows()) as u32).collect();
                    let labels: Vec<u32> = rows.iter().map(|&row| self.labels[row as usize]).collect();
                    let row_weights = &self.row_weights;
                    step(&Batch { table: self.table.view(), rows: Rows::Index(&rows), labels: &labels, row_weights })
                })
                .collect()
        }

        fn plain(&self) -> (Vec<f64>, Vec<f32>) {
            let mut parameters = self.start.clone();
            let (mut engine, mut sgd) = (PlainEngine::default(), Sgd::new(parameters.len(), 0.9, 5e-4, 1));
            let losses = self.steps(|batch| {
                let (weight, bias) = parameters.split_at(self.n_classes() * self.table.ncols());
                let gradient = engine.linear_gradient(batch, weight, bias).expect("a gradient");
                let loss = gradient.loss;
                sgd.step(0.2, &gradient.parts, &mut parameters);
                loss
            });
            (losses, parameters)
        }

        fn by(&self, kernel: Kernel, n_threads: usize) -> (Vec<f64>, Vec<f32>) {
            let mut steps =
                LinearSgd::with_kernel(kernel, &recipe(), &self.start, self.table.ncols(), self.batch_size, n_threads);
            let losses = self.steps(|batch| steps.step(0.2, batch));
            (losses, steps.parameters())
        }
    }

    fn recipe() -> Softmax {
        let Ok(Recipe::Linear(_, recipe)) = Recipe::new(HeadKind::Crt, serde_json::Map::new()) else {
            panic!("defaults")
        };
        assert_eq!((recipe.momentum, recipe.weight_decay), (0.9, 5e-4));
        recipe
    }

    fn assert_close(found: &[f32], expected: &[f32], what: &str) {
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        assert_eq!(found.len(), expected.len(), "{what}");
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let difference = (found - expected).abs();
            assert!(
                difference <= TOLERANCE * largest,
                "{what}: {found} at {index}, expected {expected} (of {largest})"
            );
        }
    }

    #[test]
    fn its_steps_are_the_plain_engines() {
        // Classes, features and rows that fill tiles exactly, leave one over, or fall short of one; and several blocks.
        for (batch_size, dim, n_classes) in
            [(1, 1, 1), (5, 3, 2), (12, 12, 32), (13, 25, 33), (24, 300, 65), (97, 96, 30), (600, 24, 230)]
        {
            let case = Case::new(batch_size + 3, batch_size, dim, n_classes);
            let (expected_losses, expected) = case.plain();
            for kernel in Kernel::all() {
                let what = format!("{kernel:?}, {batch_size} rows, {dim} features, {n_classes} classes");
                let (losses, parameters) = case.by(kernel, 1);
                assert_close(&parameters, &expected, &what);
                for (loss, expected) in losses.iter().zip(&expected_losses) {
                    assert!(
                        (loss - expected).abs() <= 1e-6 * expected.abs(),
                        "{what}: loss {loss}, expected {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        // As much work as four threads are worth.
        let case = Case::new(300, 256, 200, 330);
        for kernel in Kernel::all() {
            let one = case.by(kernel, 1);
            for n_threads in [2, 3, 4] {
                assert!(case.by(kernel, n_threads) == one, "{kernel:?}, {n_threads} threads");
            }
        }
    }

    #[test]
    fn what_is_too_small_for_a_float_disturbs_nothing() {
        let mut case = Case::new(43, 40, 64, 64);
        // Scores so far apart that most probabilities, and so residuals, are less than the smallest normal f32; and features too.
        case.start.iter_mut().for_each(|weight| *weight *= 100.0);
        case.table.iter_mut().step_by(3).for_each(|value| *value *= 1e-38);
        let (_, expected) = case.plain();
        for kernel in Kernel::all() {
            assert_close(&case.by(kernel, 1).1, &expected, &format!("{kernel:?}"));
        }
    }

    #[test]
    fn what_is_not_finite_is_in_the_loss() {
        for value in [f32::NAN, f32::INFINITY] {
            let mut case = Case::new(8, 8, 5, 3);
            case.table[[2, 1]] = value;
            for kernel in Kernel::all() {
                let (losses, _) = case.by(kernel, 1);
                assert!(!losses[0].is_finite(), "{kernel:?}: {value} gives {losses:?}");
            }
        }
    }
}
