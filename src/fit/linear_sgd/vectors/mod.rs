//! The products of a step with the vector instructions of x86-64: AVX-512, or AVX2 with FMA.
//!
//! ```text
//! rows -> x [panel of features, row, feature] -> z, of each panel of classes [row, class]
//! ```

#![allow(unsafe_code)] // Functions that need instructions, and what is to be inlined there.

mod lanes;

use std::{
    arch::x86_64::{__m256, __m512},
    ops::{Deref, DerefMut},
};

use super::{Found, OfRow, Update, each};
use crate::{
    fit::{engine::Batch, give_way::give_way},
    heads::exp_of_negative,
};
use lanes::{Lanes, forward_tile, update_tile};

const LINE_BYTES: usize = 64;

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

/// Values that begin where a line of the caches does, so that no vector lies in two lines.
#[derive(Debug)]
struct Aligned {
    values: Vec<f32>,
    /// Where they begin.
    start: usize,
}

impl Aligned {
    fn zeros(n: usize) -> Self {
        let mut values = vec![0.0; n + LINE_BYTES / size_of::<f32>()];
        let start = values.as_ptr().align_offset(LINE_BYTES).min(values.len() - n);
        values.truncate(start + n);
        Self { values, start }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..]
    }
}

/// The features of a batch, `[panel, row, feature of the panel]`: what both products read, one after another.
#[derive(Debug)]
pub(super) struct Features {
    instructions: Instructions,
    values: Aligned,
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

/// As many classes as a tile has columns.
#[derive(Debug)]
pub(super) struct Panel {
    /// The first class of it, and how many; there may be columns beyond them, which stay 0.
    first: usize,
    n_classes: usize,
    /// `[feature, column]`.
    weight: Aligned,
    velocity: Aligned,
    /// `[column]`.
    bias: Vec<f32>,
    bias_velocity: Vec<f32>,
    /// `[row, column]`: scores, then `exp(z − max of the panel)`, then residuals `ω (p − [right])`.
    scores: Aligned,
    found: Found,
}

type Gathered<'a> = super::Gathered<'a, Panel>;

impl super::Panel for Panel {
    type Kernel = Instructions;
    type Features = Features;
    type Scratch = ();

    fn n_classes(instructions: Instructions) -> usize {
        instructions.tile().1
    }

    fn features(instructions: Instructions, batch_size: usize, feature_dim: usize) -> Features {
        let (rows, _) = instructions.tile();
        let (n_rows, n_panels) = (batch_size.next_multiple_of(rows), feature_dim.div_ceil(rows));
        Features { instructions, values: Aligned::zeros(n_rows * n_panels * rows), n_rows, n_panels }
    }

    fn new(instructions: Instructions, first: usize, weight: &[f32], bias: &[f32], features: &Features) -> Self {
        let (rows, columns) = instructions.tile();
        let (n_classes, dim) = (bias.len(), features.n_panels * rows);
        let mut panel = Self {
            first,
            n_classes,
            weight: Aligned::zeros(columns * dim),
            velocity: Aligned::zeros(columns * dim),
            bias: vec![0.0; columns],
            bias_velocity: vec![0.0; columns],
            scores: Aligned::zeros(columns * features.n_rows),
            found: Found::new(features.n_rows),
        };
        panel.bias[..n_classes].copy_from_slice(bias);
        for (column, row) in weight.chunks_exact(weight.len() / n_classes).enumerate() {
            let places = panel.weight[column..].iter_mut().step_by(columns);
            places.zip(row).for_each(|(place, &value)| *place = value);
        }
        panel
    }

    fn forward(panels: &mut [Self], batch: &Gathered<'_>, (): &mut ()) {
        #[target_feature(enable = "avx512f")]
        fn avx512(panels: &mut [Panel], batch: &Gathered<'_>) {
            // SAFETY: these are the instructions.
            unsafe { score::<__m512, { __m512::ROWS }>(panels, batch) }
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(panels: &mut [Panel], batch: &Gathered<'_>) {
            // SAFETY: these are the instructions.
            unsafe { score::<__m256, { __m256::ROWS }>(panels, batch) }
        }
        // SAFETY: there is no kernel whose instructions are not there.
        unsafe {
            match batch.kernel {
                Instructions::Avx512 => avx512(panels, batch),
                Instructions::Avx2 => avx2(panels, batch),
            }
        }
    }

    fn update(panels: &mut [Self], batch: &Gathered<'_>, update: Update, (): &mut ()) {
        #[target_feature(enable = "avx512f")]
        fn avx512(panels: &mut [Panel], batch: &Gathered<'_>, update: Update) {
            // SAFETY: these are the instructions.
            unsafe { descend::<__m512, { __m512::ROWS }>(panels, batch, update) }
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(panels: &mut [Panel], batch: &Gathered<'_>, update: Update) {
            // SAFETY: these are the instructions.
            unsafe { descend::<__m256, { __m256::ROWS }>(panels, batch, update) }
        }
        // SAFETY: there is no kernel whose instructions are not there.
        unsafe {
            match batch.kernel {
                Instructions::Avx512 => avx512(panels, batch, update),
                Instructions::Avx2 => avx2(panels, batch, update),
            }
        }
    }

    fn found(&self) -> &Found {
        &self.found
    }

    fn parameters(&self, feature_dim: usize) -> (Vec<f32>, &[f32]) {
        let columns = self.bias.len();
        let of_class = |class: usize| self.weight[class..].iter().step_by(columns).take(feature_dim).copied();
        ((0..self.n_classes).flat_map(of_class).collect(), &self.bias[..self.n_classes])
    }
}

/// # Safety
/// That of [`Lanes`].
#[inline(always)]
unsafe fn score<L: Lanes, const ROWS: usize>(panels: &mut [Panel], batch: &Gathered<'_>) {
    let Gathered { features, of_rows, .. } = *batch;
    let (columns, stride) = (2 * L::N, features.n_rows * ROWS);
    for Panel { scores, bias, .. } in &mut *panels {
        scores.chunks_exact_mut(columns).for_each(|row| row.copy_from_slice(bias));
    }
    let blocks_at_once = (L::DEPTH / ROWS).max(1);
    let rows_at_once = (L::FEATURES_AT_ONCE_BYTES / (L::DEPTH * 4)).next_multiple_of(ROWS);
    for first_row in (0..features.n_rows).step_by(rows_at_once) {
        let end_row = (first_row + rows_at_once).min(features.n_rows);
        for first in (0..features.n_panels).step_by(blocks_at_once) {
            let n = blocks_at_once.min(features.n_panels - first);
            let x = &features.values[first * stride..];
            for Panel { weight, scores, .. } in &mut *panels {
                let weight = &weight[first * ROWS * columns..];
                for row in (first_row..end_row).step_by(ROWS) {
                    let (x, scores) = (&x[row * ROWS..], &mut scores[row * columns..]);
                    // SAFETY: the caller's.
                    unsafe { forward_tile::<L, ROWS>(x, stride, n, weight, scores) };
                }
                give_way();
            }
        }
    }
    for panel in panels {
        panel.exponentiate(columns, of_rows);
        give_way();
    }
}

/// # Safety
/// That of [`Lanes`].
#[inline(always)]
unsafe fn descend<L: Lanes, const ROWS: usize>(panels: &mut [Panel], batch: &Gathered<'_>, update: Update) {
    const { assert!(2 * L::N <= MOST_COLUMNS) };
    let Gathered { features, of_rows, .. } = *batch;
    let (columns, stride) = (2 * L::N, features.n_rows * ROWS);
    for panel in &mut *panels {
        panel.residuals(columns, of_rows);
        panel.update_bias(columns, update);
        give_way();
    }
    let at_once = (L::FEATURES_AT_ONCE_BYTES / (stride * 4)).max(1);
    for first in (0..features.n_panels).step_by(at_once) {
        let end = (first + at_once).min(features.n_panels);
        for Panel { weight, velocity, scores, .. } in &mut *panels {
            for index in first..end {
                let (x, tile) = (&features.values[index * stride..], index * ROWS * columns);
                let (weight, velocity) = (&mut weight[tile..], &mut velocity[tile..]);
                // SAFETY: the caller's.
                unsafe { update_tile::<L, ROWS>(x, scores, features.n_rows, weight, velocity, update) };
            }
            give_way();
        }
    }
}

impl Panel {
    #[inline(always)]
    fn exponentiate(&mut self, columns: usize, of_rows: &[OfRow]) {
        let Found { max, sum, right } = &mut self.found;
        right.clear();
        let rows = self.scores.chunks_exact_mut(columns).zip(of_rows).zip(max.iter_mut().zip(sum)).enumerate();
        for (row, ((scores, of_row), (max, sum))) in rows {
            let (scores, beyond) = scores.split_at_mut(self.n_classes);
            right.extend(place(of_row, self.first, self.n_classes).map(|column| (row, scores[column])));
            *max = largest_of(scores);
            scores.iter_mut().for_each(|score| *score = exp_of_negative(*score - *max));
            *sum = sum_of(scores);
            beyond.fill(0.0);
        }
    }

    #[inline(always)]
    fn residuals(&mut self, columns: usize, of_rows: &[OfRow]) {
        for ((scores, max), of_row) in self.scores.chunks_exact_mut(columns).zip(&self.found.max).zip(of_rows) {
            let factor = of_row.factor * exp_of_negative(max - of_row.max);
            scores.iter_mut().for_each(|exp| *exp *= factor);
            if let Some(column) = place(of_row, self.first, self.n_classes) {
                scores[column] -= of_row.weight;
            }
        }
    }

    #[inline(always)]
    fn update_bias(&mut self, columns: usize, update: Update) {
        let mut sums = [0.0f64; MOST_COLUMNS];
        for row in self.scores.chunks_exact(columns) {
            sums.iter_mut().zip(row).for_each(|(sum, &residual)| *sum += f64::from(residual));
        }
        self.bias.iter_mut().zip(&mut self.bias_velocity).zip(sums).for_each(|((bias, velocity), sum)| {
            update.step(sum as f32, bias, velocity);
        });
    }
}

/// The column of a row's right class, if that is among these.
fn place(of_row: &OfRow, first: usize, n_classes: usize) -> Option<usize> {
    of_row.label.checked_sub(first).filter(|&column| column < n_classes)
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
