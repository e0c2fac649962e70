//! The classes that one thread has to itself, and what it does with them in a step.

#![allow(unsafe_code)] // What is to be inlined where the instructions are.

use super::lanes::{Lanes, Update, forward_tile, update_tile};
use crate::heads::exp_of_negative;

/// About as much of the features as may stay in the second cache while all columns go past it.
const FEATURES_AT_ONCE_BYTES: usize = 384 << 10;

/// No kernel's tile has more columns.
const MOST_COLUMNS: usize = 32;

/// The features of a batch, `[panel, row, feature of the panel]`: what both products read, one after another.
#[derive(Debug, Default)]
pub(super) struct Features {
    pub(super) values: Vec<f32>,
    /// Rows, a multiple of those of a tile; what goes beyond the batch is 0.
    pub(super) n_rows: usize,
    /// Panels, of as many features as a tile has rows; what goes beyond the features is 0.
    pub(super) n_panels: usize,
}

/// What all shares have to know of a row to turn their scores into its residuals.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OfRow {
    /// `ω`, and the class that is right; 0 of a row beyond the batch.
    pub(super) weight: f32,
    pub(super) label: usize,
    /// The score of that class.
    pub(super) right: f32,
    /// The largest score of the row.
    pub(super) max: f32,
    /// `ω / Σ exp(z − max z)`.
    pub(super) factor: f32,
}

/// Some panels of classes: their weights and their scores.
#[derive(Debug)]
pub(super) struct Share {
    /// The first class of it, and how many; the last panel may have columns beyond them, which stay 0.
    pub(super) first: usize,
    pub(super) n_classes: usize,
    /// `[panel, feature, column]`.
    pub(super) weight: Vec<f32>,
    velocity: Vec<f32>,
    /// `[panel, column]`.
    pub(super) bias: Vec<f32>,
    bias_velocity: Vec<f32>,
    /// `[panel, row, column]`: scores, then `exp(z − max of the panel)`, then residuals `ω (p − [right])`.
    scores: Vec<f32>,
    /// `[panel, row]`: the largest score of a panel's row, and the sum of its exponentials.
    pub(super) panel_max: Vec<f32>,
    pub(super) panel_sum: Vec<f32>,
    /// The scores of the right class, of the rows where that is here.
    pub(super) right: Vec<(usize, f32)>,
}

impl Share {
    /// `columns` are those of a tile, `dim` the features with those that fill the last panel, `n_rows` the rows likewise.
    pub(super) fn new(first: usize, n_classes: usize, columns: usize, dim: usize, n_rows: usize) -> Self {
        debug_assert!(columns <= MOST_COLUMNS);
        let n_panels = n_classes.div_ceil(columns);
        let n_columns = n_panels * columns;
        Self {
            first,
            n_classes,
            weight: vec![0.0; n_columns * dim],
            velocity: vec![0.0; n_columns * dim],
            bias: vec![0.0; n_columns],
            bias_velocity: vec![0.0; n_columns],
            scores: vec![0.0; n_columns * n_rows],
            panel_max: vec![0.0; n_panels * n_rows],
            panel_sum: vec![0.0; n_panels * n_rows],
            right: Vec::new(),
        }
    }

    /// Scores, and their exponentials, of all rows.
    ///
    /// # Safety
    /// That of [`Lanes`].
    #[inline(always)]
    pub(super) unsafe fn forward<L: Lanes, const ROWS: usize>(&mut self, features: &Features, of_rows: &[OfRow]) {
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
        self.right.clear();
        for (row, of_row) in of_rows.iter().enumerate() {
            if let Some(place) = self.place(of_row.label, row, n_rows, columns) {
                self.right.push((row, self.scores[place]));
            }
        }
        let maxima = self.panel_max.chunks_exact_mut(n_rows).zip(self.panel_sum.chunks_exact_mut(n_rows));
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
    pub(super) unsafe fn update<L: Lanes, const ROWS: usize>(
        &mut self,
        features: &Features,
        of_rows: &[OfRow],
        update: Update,
    ) {
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
        for (scores, maxima) in self.scores.chunks_exact_mut(n_rows * columns).zip(self.panel_max.chunks_exact(n_rows))
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
        let Update { rate, momentum, decay } = update;
        let of_bias = self.bias.chunks_exact_mut(columns).zip(self.bias_velocity.chunks_exact_mut(columns));
        for (scores, (bias, velocity)) in self.scores.chunks_exact(n_rows * columns).zip(of_bias) {
            let mut sums = [0.0f64; MOST_COLUMNS];
            for row in scores.chunks_exact(columns) {
                sums.iter_mut().zip(row).for_each(|(sum, &residual)| *sum += f64::from(residual));
            }
            for ((bias, velocity), sum) in bias.iter_mut().zip(velocity).zip(sums) {
                *velocity = momentum * *velocity + (sum as f32 + decay * *bias);
                *bias -= rate * *velocity;
            }
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
