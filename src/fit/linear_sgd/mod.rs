//! SGD of a linear classifier on the CPU, as one piece of work.
//!
//! ```text
//! rows -> x [panel of features, row, feature] -> z = x Wᵀ + b -> exp -> (all threads) -> r = ω (p − [right])
//!                                                                    W, v, b <- xᵀ r, step
//! ```
//!
//! The same numbers come out of an [`Engine`](super::Engine)'s gradient and [`Sgd`](super::Sgd), but for rounding. There the
//! weights, which no step leaves as they were, are rearranged for each matrix product, and the gradient goes to memory and
//! comes back for the update. Here the weights stay in the arrangement that the products read, for all of the fit; the batch
//! is rearranged once, as it is gathered, for both products; and the update happens where the gradient is, in registers.
//!
//! Each thread has some classes to itself, whose weights nobody else reads or writes. What threads have to agree on is each
//! row's largest score and the sum of its exponentials. These are put together panel by panel, so that the result does not
//! depend on the number of threads.

mod lanes;
mod share;

use std::arch::x86_64::{__m256, __m512};

use super::{
    Softmax,
    engine::{Batch, Rows},
};
use crate::heads::exp_of_negative;
use lanes::{Lanes, Update};
use share::{Features, OfRow, Share};

/// Work on fewer multiplications is done before another thread has begun.
const PRODUCTS_PER_THREAD: usize = 4 << 20;

/// A linear classifier `z = x Wᵀ + b`, and where SGD with momentum and weight decay has brought it.
#[derive(Debug)]
pub(super) struct LinearSgd {
    kernel: Kernel,
    shares: Vec<Share>,
    features: Features,
    of_rows: Vec<OfRow>,
    feature_dim: usize,
    momentum: f32,
    decay: f32,
}

/// Which instructions the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Avx512,
    Avx2,
}

impl Kernel {
    const ALL: [Self; 2] = [Self::Avx512, Self::Avx2];

    fn is_there(self) -> bool {
        match self {
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        }
    }

    /// Rows and columns of a tile.
    fn tile(self) -> (usize, usize) {
        match self {
            Self::Avx512 => (__m512::ROWS, 2 * __m512::N),
            Self::Avx2 => (__m256::ROWS, 2 * __m256::N),
        }
    }

    fn gather(self, batch: &Batch<'_>, features: &mut Features, n_threads: usize) {
        match self {
            Self::Avx512 => gather::<{ __m512::ROWS }>(batch, features, n_threads),
            Self::Avx2 => gather::<{ __m256::ROWS }>(batch, features, n_threads),
        }
    }

    #[expect(unsafe_code, reason = "functions that need instructions")]
    fn forward(self, share: &mut Share, features: &Features, of_rows: &[OfRow]) {
        #[target_feature(enable = "avx512f")]
        fn avx512(share: &mut Share, features: &Features, of_rows: &[OfRow]) {
            // SAFETY: these are the instructions.
            unsafe { share.forward::<__m512, { __m512::ROWS }>(features, of_rows) }
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(share: &mut Share, features: &Features, of_rows: &[OfRow]) {
            // SAFETY: these are the instructions.
            unsafe { share.forward::<__m256, { __m256::ROWS }>(features, of_rows) }
        }
        // SAFETY: there is no other kernel than one whose instructions are there.
        unsafe {
            match self {
                Self::Avx512 => avx512(share, features, of_rows),
                Self::Avx2 => avx2(share, features, of_rows),
            }
        }
    }

    #[expect(unsafe_code, reason = "functions that need instructions")]
    fn update(self, share: &mut Share, features: &Features, of_rows: &[OfRow], update: Update) {
        #[target_feature(enable = "avx512f")]
        fn avx512(share: &mut Share, features: &Features, of_rows: &[OfRow], update: Update) {
            // SAFETY: these are the instructions.
            unsafe { share.update::<__m512, { __m512::ROWS }>(features, of_rows, update) }
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(share: &mut Share, features: &Features, of_rows: &[OfRow], update: Update) {
            // SAFETY: these are the instructions.
            unsafe { share.update::<__m256, { __m256::ROWS }>(features, of_rows, update) }
        }
        // SAFETY: there is no other kernel than one whose instructions are there.
        unsafe {
            match self {
                Self::Avx512 => avx512(share, features, of_rows, update),
                Self::Avx2 => avx2(share, features, of_rows, update),
            }
        }
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
        let kernel = Kernel::ALL.into_iter().find(|kernel| kernel.is_there())?;
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
        let n_classes = parameters.len() / (feature_dim + 1);
        let (weight, bias) = parameters.split_at(n_classes * feature_dim);
        let (tile_rows, columns) = kernel.tile();
        let (n_rows, n_panels) = (batch_size.next_multiple_of(tile_rows), feature_dim.div_ceil(tile_rows));
        let dim = n_panels * tile_rows;
        let n_class_panels = n_classes.div_ceil(columns);
        let n_worth_while = batch_size.saturating_mul(parameters.len()) / PRODUCTS_PER_THREAD;
        let n_shares = n_threads.min(n_class_panels).min(n_worth_while).max(1);
        let shares = (0..n_shares).map(|index| {
            let panels = n_class_panels * index / n_shares..n_class_panels * (index + 1) / n_shares;
            let classes = panels.start * columns..n_classes.min(panels.end * columns);
            let mut share = Share::new(classes.start, classes.len(), columns, dim, n_rows);
            for (column, class) in classes.enumerate() {
                let panel = &mut share.weight[column / columns * dim * columns..][..dim * columns];
                let row = &weight[class * feature_dim..(class + 1) * feature_dim];
                let place = panel[column % columns..].iter_mut().step_by(columns);
                place.zip(row).for_each(|(place, &value)| *place = value);
                share.bias[column] = bias[class];
            }
            share
        });
        Self {
            kernel,
            shares: shares.collect(),
            features: Features { values: vec![0.0; n_rows * dim], n_rows, n_panels },
            of_rows: vec![OfRow::default(); n_rows],
            feature_dim,
            momentum: recipe.momentum as f32,
            decay: recipe.weight_decay as f32,
        }
    }

    /// One step; gives back the loss `Σᵢ ωᵢ CEᵢ` of before. The batch has as many rows as was said.
    pub(super) fn step(&mut self, learning_rate: f64, batch: &Batch<'_>) -> f64 {
        let Self { kernel, shares, features, of_rows, .. } = self;
        for ((of_row, &label), &weight) in of_rows.iter_mut().zip(batch.labels).zip(batch.row_weights) {
            *of_row = OfRow { weight, label: label as usize, ..OfRow::default() };
        }
        kernel.gather(batch, features, shares.len());
        each(shares, |share| kernel.forward(share, features, of_rows));
        let loss = put_together(shares, of_rows);
        let update = Update { rate: learning_rate as f32, momentum: self.momentum, decay: self.decay };
        each(shares, |share| kernel.update(share, features, of_rows, update));
        loss
    }

    /// W `[C, D]`, then b `[C]`.
    pub(super) fn parameters(&self) -> Vec<f32> {
        let (tile_rows, columns) = self.kernel.tile();
        let dim = self.features.n_panels * tile_rows;
        let n_classes: usize = self.shares.iter().map(|share| share.n_classes).sum();
        let mut parameters = Vec::with_capacity(n_classes * (self.feature_dim + 1));
        for share in &self.shares {
            for column in 0..share.n_classes {
                let panel = &share.weight[column / columns * dim * columns..][..dim * columns];
                parameters.extend(panel[column % columns..].iter().step_by(columns).take(self.feature_dim));
            }
        }
        for share in &self.shares {
            parameters.extend_from_slice(&share.bias[..share.n_classes]);
        }
        parameters
    }
}

/// Puts the rows of the batch where the products read them, on as many threads.
fn gather<const TILE_ROWS: usize>(batch: &Batch<'_>, features: &mut Features, n_threads: usize) {
    let n_rows = features.n_rows;
    let n_panels = features.n_panels.div_ceil(n_threads);
    let mut parts: Vec<_> = features.values.chunks_mut(n_panels * n_rows * TILE_ROWS).enumerate().collect();
    each(&mut parts, |(part, values)| {
        let first = *part * n_panels * TILE_ROWS;
        for index in 0..batch.rows.len() {
            let row = match batch.rows {
                Rows::Range { start, .. } => start + index,
                Rows::Index(rows) => rows[index] as usize,
            };
            let row = batch.table.row(row).to_slice().and_then(|row| row.get(first..)).unwrap_or_default();
            let (pieces, rest) = row.as_chunks::<TILE_ROWS>();
            let mut panels = values.chunks_exact_mut(n_rows * TILE_ROWS);
            // Its length is known here, so that nothing is called to copy it.
            for (piece, panel) in pieces.iter().zip(&mut panels) {
                panel[index * TILE_ROWS..][..TILE_ROWS].copy_from_slice(piece);
            }
            if let Some(panel) = panels.next() {
                panel[index * TILE_ROWS..][..rest.len()].copy_from_slice(rest);
            }
        }
    });
}

/// What the shares know of each row, put together; gives back the loss.
fn put_together(shares: &[Share], of_rows: &mut [OfRow]) -> f64 {
    let n_rows = of_rows.len();
    let panels = || {
        shares
            .iter()
            .flat_map(move |share| share.panel_max.chunks_exact(n_rows).zip(share.panel_sum.chunks_exact(n_rows)))
    };
    let mut sums = vec![0.0f64; n_rows];
    of_rows.iter_mut().for_each(|of_row| of_row.max = f32::NEG_INFINITY);
    for (maxima, _) in panels() {
        of_rows.iter_mut().zip(maxima).for_each(|(of_row, &max)| of_row.max = of_row.max.max(max));
    }
    for (maxima, panel_sums) in panels() {
        for (((sum, of_row), max), panel_sum) in sums.iter_mut().zip(&*of_rows).zip(maxima).zip(panel_sums) {
            *sum += f64::from(*panel_sum * exp_of_negative(max - of_row.max));
        }
    }
    for (of_row, sum) in of_rows.iter_mut().zip(&sums) {
        of_row.factor = (f64::from(of_row.weight) / sum) as f32;
    }
    for &(row, score) in shares.iter().flat_map(|share| &share.right) {
        of_rows[row].right = score;
    }
    let losses = of_rows
        .iter()
        .zip(&sums)
        .map(|(of_row, sum)| f64::from(of_row.weight) * (sum.ln() + f64::from(of_row.max) - f64::from(of_row.right)));
    losses.sum()
}

/// Does it with each, each on a thread of its own.
fn each<T: Send>(items: &mut [T], work: impl Fn(&mut T) + Sync) {
    let Some((first, others)) = items.split_first_mut() else { return };
    std::thread::scope(|scope| {
        for item in others {
            scope.spawn(|| work(item));
        }
        work(first);
    });
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::{
        fit::{Engine, PlainEngine, Random, Recipe, Sgd},
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
            let (mut engine, mut sgd) = (PlainEngine::default(), Sgd::new(parameters.len(), 0.9, 5e-4));
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

    fn kernels() -> impl Iterator<Item = Kernel> {
        Kernel::ALL.into_iter().filter(|kernel| kernel.is_there())
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
            [(1, 1, 1), (5, 3, 2), (12, 12, 32), (13, 25, 33), (24, 300, 65), (97, 96, 30), (600, 24, 17)]
        {
            let case = Case::new(batch_size + 3, batch_size, dim, n_classes);
            let (expected_losses, expected) = case.plain();
            for kernel in kernels() {
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
        for kernel in kernels() {
            let one = case.by(kernel, 1);
            for n_threads in [2, 3, 4] {
                assert!(case.by(kernel, n_threads) == one, "{kernel:?}, {n_threads} threads");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_in_the_loss() {
        for value in [f32::NAN, f32::INFINITY] {
            let mut case = Case::new(8, 8, 5, 3);
            case.table[[2, 1]] = value;
            for kernel in kernels() {
                let (losses, _) = case.by(kernel, 1);
                assert!(!losses[0].is_finite(), "{kernel:?}: {value} gives {losses:?}");
            }
        }
    }
}
