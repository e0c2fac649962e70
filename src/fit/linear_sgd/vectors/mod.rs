//! The products of a step with the vector instructions of x86-64: AVX-512, or AVX2 with FMA.
//!
//! ```text
//! rows -> x [panel of features, row, feature] -> z [panel of classes, row, class]
//! ```

#![allow(unsafe_code)] // Functions that need instructions, and what is to be inlined there.

mod lanes;

use std::arch::x86_64::{__m256, __m512};

use super::{Found, OfRow, Update, each};
use crate::{fit::engine::Batch, heads::exp_of_negative};
use lanes::{Lanes, forward_tile, update_tile};

/// About as much of the features as may stay in the second cache while all columns go past it.
const FEATURES_AT_ONCE_BYTES: usize = 384 << 10;

/// No kernel's tile has more columns.
const MOST_COLUMNS: usize = 32;

/// Which of them the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instructions {
    Avx512,
    Avx2,
}

impl Instructions {
    /// The fastest first.
    pub(super) const ALL: [Self; 2] = [Self::Avx512, Self::Avx2];

    pub(super) fn are_there(self) -> bool {
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
}

/// The features of a batch, `[panel, row, feature of the panel]`: what both products read, one after another.
#[derive(Debug)]
pub(super) struct Features {
    instructions: Instructions,
    values: Vec<f32>,
    /// Rows, a multiple of those of a tile; what goes beyond the batch is 0.
    n_rows: usize,
    /// Panels, of as many features as a tile has rows; what goes beyond the features is 0.
    n_panels: usize,
}

impl super::Features for Features {
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn gather(&mut self, batch: &Batch<'_>, n_threads: usize) {
        match self.instructions {
            Instructions::Avx512 => gather::<{ __m512::ROWS }>(batch, self, n_threads),
            Instructions::Avx2 => gather::<{ __m256::ROWS }>(batch, self, n_threads),
        }
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
            let row = batch.row(index).get(first..).unwrap_or_default();
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

/// Some panels of classes.
#[derive(Debug)]
pub(super) struct Share {
    instructions: Instructions,
    /// The first class of it, and how many; the last panel may have columns beyond them, which stay 0.
    first: usize,
    n_classes: usize,
    /// `[panel, feature, column]`.
    weight: Vec<f32>,
    velocity: Vec<f32>,
    /// `[panel, column]`.
    bias: Vec<f32>,
    bias_velocity: Vec<f32>,
    /// `[panel, row, column]`: scores, then `exp(z − max of the panel)`, then residuals `ω (p − [right])`.
    scores: Vec<f32>,
    found: Found,
}

impl super::Share for Share {
    type Kernel = Instructions;
    type Features = Features;

    fn panel_classes(instructions: Instructions) -> usize {
        instructions.tile().1
    }

    fn features(instructions: Instructions, batch_size: usize, feature_dim: usize) -> Features {
        let (rows, _) = instructions.tile();
        let (n_rows, n_panels) = (batch_size.next_multiple_of(rows), feature_dim.div_ceil(rows));
        Features { instructions, values: vec![0.0; n_rows * n_panels * rows], n_rows, n_panels }
    }

    fn new(instructions: Instructions, first: usize, weight: &[f32], bias: &[f32], features: &Features) -> Self {
        let (rows, columns) = instructions.tile();
        debug_assert!(columns <= MOST_COLUMNS);
        let (n_classes, n_panels, dim) = (bias.len(), bias.len().div_ceil(columns), features.n_panels * rows);
        let n_columns = n_panels * columns;
        let mut share = Self {
            instructions,
            first,
            n_classes,
            weight: vec![0.0; n_columns * dim],
            velocity: vec![0.0; n_columns * dim],
            bias: vec![0.0; n_columns],
            bias_velocity: vec![0.0; n_columns],
            scores: vec![0.0; n_columns * features.n_rows],
            found: Found::new(n_panels, features.n_rows),
        };
        share.bias[..n_classes].copy_from_slice(bias);
        for (class, row) in weight.chunks_exact(weight.len() / n_classes).enumerate() {
            let panel = &mut share.weight[class / columns * dim * columns..][..dim * columns];
            let place = panel[class % columns..].iter_mut().step_by(columns);
            place.zip(row).for_each(|(place, &value)| *place = value);
        }
        share
    }

    fn forward(&mut self, features: &Features, of_rows: &[OfRow]) {
        #[target_feature(enable = "avx512f")]
        fn avx512(share: &mut Share, features: &Features, of_rows: &[OfRow]) {
            // SAFETY: these are the instructions.
            unsafe { share.score::<__m512, { __m512::ROWS }>(features, of_rows) }
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(share: &mut Share, features: &Features, of_rows: &[OfRow]) {
            // SAFETY: these are the instructions.
            unsafe { share.score::<__m256, { __m256::ROWS }>(features, of_rows) }
        }
        // SAFETY: nobody makes a share for instructions that are not there.
        unsafe {
            match self.instructions {
                Instructions::Avx512 => avx512(self, features, of_rows),
                Instructions::Avx2 => avx2(self, features, of_rows),
            }
        }
    }

    fn update(&mut self, features: &Features, of_rows: &[OfRow], update: Update) {
        #[target_feature(enable = "avx512f")]
        fn avx512(share: &mut Share, features: &Features, of_rows: &[OfRow], update: Update) {
            // SAFETY: these are the instructions.
            unsafe { share.descend::<__m512, { __m512::ROWS }>(features, of_rows, update) }
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(share: &mut Share, features: &Features, of_rows: &[OfRow], update: Update) {
            // SAFETY: these are the instructions.
            unsafe { share.descend::<__m256, { __m256::ROWS }>(features, of_rows, update) }
        }
        // SAFETY: nobody makes a share for instructions that are not there.
        unsafe {
            match self.instructions {
                Instructions::Avx512 => avx512(self, features, of_rows, update),
                Instructions::Avx2 => avx2(self, features, of_rows, update),
            }
        }
    }

    fn found(&self) -> &Found {
        &self.found
    }

    fn parameters(&self, feature_dim: usize) -> (Vec<f32>, &[f32]) {
        let (_, columns) = self.instructions.tile();
        let size = self.weight.len() / (self.bias.len() / columns);
        let of_class = |class: usize| {
            let panel = &self.weight[class / columns * size..][..size];
            panel[class % columns..].iter().step_by(columns).take(feature_dim).copied()
        };
        ((0..self.n_classes).flat_map(of_class).collect(), &self.bias[..self.n_classes])
    }
}

impl Share {
    /// Scores, and their exponentials, of all rows.
    ///
    /// # Safety
    /// That of [`Lanes`].
    #[inline(always)]
    unsafe fn score<L: Lanes, const ROWS: usize>(&mut self, features: &Features, of_rows: &[OfRow]) {
        let columns = 2 * L::N;
        let (n_rows, dim) = (features.n_rows, features.n_panels * ROWS);
        let stride = n_rows * ROWS;
        for (scores, bias) in self.scores.chunks_exact_mut(n_rows * columns).zip(self.bias.chunks_exact(columns)) {
            scores.chunks_exact_mut(columns).for_each(|row| row.copy_from_slice(bias));
        }
        let panels_at_once = (L::DEPTH / ROWS).max(1);
        let rows_at_once = (FEATURES_AT_ONCE_BYTES / (L::DEPTH * 4)).next_multiple_of(ROWS);
        for first_row in (0..n_rows).step_by(rows_at_once) {
            let end_row = (first_row + rows_at_once).min(n_rows);
            for first_panel in (0..features.n_panels).step_by(panels_at_once) {
                let n_panels = panels_at_once.min(features.n_panels - first_panel);
                let x = &features.values[first_panel * stride..];
                for (weight, scores) in
                    self.weight.chunks_exact(dim * columns).zip(self.scores.chunks_exact_mut(n_rows * columns))
                {
                    let weight = &weight[first_panel * ROWS * columns..];
                    for row in (first_row..end_row).step_by(ROWS) {
                        let (x, scores) = (&x[row * ROWS..], &mut scores[row * columns..]);
                        // SAFETY: the caller's.
                        unsafe { forward_tile::<L, ROWS>(x, stride, n_panels, weight, scores) };
                    }
                }
            }
        }
        self.exponentiate(n_rows, columns, of_rows);
    }

    #[inline(always)]
    fn exponentiate(&mut self, n_rows: usize, columns: usize, of_rows: &[OfRow]) {
        self.found.right.clear();
        for (row, of_row) in of_rows.iter().enumerate() {
            if let Some(place) = self.place(of_row.label, row, n_rows, columns) {
                self.found.right.push((row, self.scores[place]));
            }
        }
        let maxima = self.found.panel_max.chunks_exact_mut(n_rows).zip(self.found.panel_sum.chunks_exact_mut(n_rows));
        for (panel, (scores, (maxima, sums))) in self.scores.chunks_exact_mut(n_rows * columns).zip(maxima).enumerate()
        {
            let n_valid = (self.n_classes - panel * columns).min(columns);
            for ((row, max), sum) in scores.chunks_exact_mut(columns).zip(maxima).zip(sums) {
                let (row, beyond) = row.split_at_mut(n_valid);
                *max = largest_of(row);
                row.iter_mut().for_each(|score| *score = exp_of_negative(*score - *max));
                *sum = sum_of(row);
                beyond.fill(0.0);
            }
        }
    }

    /// Residuals, the gradient, and the step along it.
    ///
    /// # Safety
    /// That of [`Lanes`].
    #[inline(always)]
    unsafe fn descend<L: Lanes, const ROWS: usize>(&mut self, features: &Features, of_rows: &[OfRow], update: Update) {
        let columns = 2 * L::N;
        let (n_rows, dim) = (features.n_rows, features.n_panels * ROWS);
        self.residuals(n_rows, columns, of_rows);
        self.update_bias(n_rows, columns, update);
        let panel_bytes = n_rows * ROWS * 4;
        let panels_at_once = (FEATURES_AT_ONCE_BYTES / panel_bytes).max(1);
        for first_panel in (0..features.n_panels).step_by(panels_at_once) {
            let panels = first_panel..(first_panel + panels_at_once).min(features.n_panels);
            let parameters =
                self.weight.chunks_exact_mut(dim * columns).zip(self.velocity.chunks_exact_mut(dim * columns));
            for (scores, (weight, velocity)) in self.scores.chunks_exact(n_rows * columns).zip(parameters) {
                for panel in panels.clone() {
                    let x = &features.values[panel * n_rows * ROWS..];
                    let tile = panel * ROWS * columns;
                    let (weight, velocity) = (&mut weight[tile..], &mut velocity[tile..]);
                    // SAFETY: the caller's.
                    unsafe { update_tile::<L, ROWS>(x, scores, n_rows, weight, velocity, update) };
                }
            }
        }
    }

    #[inline(always)]
    fn residuals(&mut self, n_rows: usize, columns: usize, of_rows: &[OfRow]) {
        for (scores, maxima) in
            self.scores.chunks_exact_mut(n_rows * columns).zip(self.found.panel_max.chunks_exact(n_rows))
        {
            for ((row, max), of_row) in scores.chunks_exact_mut(columns).zip(maxima).zip(of_rows) {
                let factor = of_row.factor * exp_of_negative(max - of_row.max);
                row.iter_mut().for_each(|exp| *exp *= factor);
            }
        }
        for (row, of_row) in of_rows.iter().enumerate() {
            if let Some(place) = self.place(of_row.label, row, n_rows, columns) {
                self.scores[place] -= of_row.weight;
            }
        }
    }

    #[inline(always)]
    fn update_bias(&mut self, n_rows: usize, columns: usize, update: Update) {
        let of_bias = self.bias.chunks_exact_mut(columns).zip(self.bias_velocity.chunks_exact_mut(columns));
        for (scores, (bias, velocity)) in self.scores.chunks_exact(n_rows * columns).zip(of_bias) {
            let mut sums = [0.0f64; MOST_COLUMNS];
            for row in scores.chunks_exact(columns) {
                sums.iter_mut().zip(row).for_each(|(sum, &residual)| *sum += f64::from(residual));
            }
            bias.iter_mut().zip(velocity).zip(sums).for_each(|((bias, velocity), sum)| {
                update.step(sum as f32, bias, velocity);
            });
        }
    }

    /// Where the score of a class is, if it is one of these.
    fn place(&self, class: usize, row: usize, n_rows: usize, columns: usize) -> Option<usize> {
        let column = class.checked_sub(self.first).filter(|&column| column < self.n_classes)?;
        Some((column / columns * n_rows + row) * columns + column % columns)
    }
}

/// In eight lanes side by side, which do not wait for one another.
#[inline(always)]
fn largest_of(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<8>();
    let mut lanes = [f32::NEG_INFINITY; 8];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &value)| *lane = if value > *lane { value } else { *lane });
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// In eight lanes too.
#[inline(always)]
fn sum_of(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().chain(rest).sum()
}
