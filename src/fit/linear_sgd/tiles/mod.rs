//! The products of a step with the tiles of AMX, at the accuracy of f32: see [`amx`].
//!
//! ```text
//! rows -> x [panel of features, panel of rows] -> zᵀ = W xᵀ [panel of classes, panel of rows] -> ∇ = rᵀ x, block by block
//! ```
//!
//! Classes, features and rows come in panels of 32. Weights and features stay f32 in memory, and are split into bf16 as many at
//! once as the second cache has room for: split they are larger than whole, and what comes from beyond that cache takes longer
//! than to split it again.

#![allow(unsafe_code)] // Functions that need instructions.

mod amx;

use std::ops::Range;

use super::{Found, OfRow, Update, each};
use crate::{fit::engine::Batch, heads::exp_of_negative};
pub(super) use amx::Amx;
use amx::{BYTES_AHEAD, Block, Factor, SIDE, Tiles, left_factor, right_factor, transposed_right_factor};

/// Panels of features that one pass of the forward product takes.
const PANELS_AT_ONCE: usize = 8;

/// About as many factors as may stay in the second cache while others go past them.
const FACTORS_AT_ONCE: usize = (768 << 10) / size_of::<Factor>();

/// The features of a batch, `[panel of features, panel of rows]` `[row, feature]`.
#[derive(Debug)]
pub(super) struct Features {
    blocks: Vec<Block>,
    /// Panels of rows; what goes beyond the batch is 0.
    n_row_panels: usize,
    /// Panels of features; what goes beyond the features is 0.
    n_panels: usize,
}

impl super::Features for Features {
    fn n_rows(&self) -> usize {
        self.n_row_panels * SIDE
    }

    fn gather(&mut self, batch: &Batch<'_>, n_threads: usize) {
        let n_row_panels = self.n_row_panels;
        let n_panels = self.n_panels.div_ceil(n_threads);
        let mut parts: Vec<_> = self.blocks.chunks_mut(n_panels * n_row_panels).enumerate().collect();
        each(&mut parts, |(part, blocks)| {
            for index in 0..batch.rows.len() {
                let row = batch.row(index).get(*part * n_panels * SIDE..).unwrap_or_default();
                let (pieces, rest) = row.as_chunks::<SIDE>();
                let mut places = blocks[index / SIDE..].iter_mut().step_by(n_row_panels);
                // Its length is known here, so that nothing is called to copy it.
                for (piece, block) in pieces.iter().zip(&mut places) {
                    block.0[index % SIDE] = *piece;
                }
                if let Some(block) = places.next() {
                    block.0[index % SIDE][..rest.len()].copy_from_slice(rest);
                }
            }
        });
    }
}

/// Weights `[class, feature]`, and their velocities.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Weights {
    values: Block,
    velocity: Block,
}

/// Some panels of classes.
#[derive(Debug)]
pub(super) struct Share {
    amx: Amx,
    /// The first class of it, and how many; the last panel may have classes beyond them, which stay 0.
    first: usize,
    n_classes: usize,
    /// `[panel, panel of features]`.
    weights: Vec<Weights>,
    /// `[panel]` `[class]`.
    bias: Vec<[f32; SIDE]>,
    bias_velocity: Vec<[f32; SIDE]>,
    /// `[panel, panel of rows]` `[class, row]`: scores, then `exp(z − max of the panel)`, then residuals `ω (p − [right])`.
    scores: Vec<Block>,
    found: Found,
    scratch: Scratch,
}

/// The factors of products, for as long as they are in the second cache.
#[derive(Debug, Default)]
struct Scratch {
    left: Vec<Factor>,
    right: Vec<Factor>,
}

impl Scratch {
    /// As right factors, `[panel of rows, panel of features]`.
    #[target_feature(enable = "avx512f")]
    fn take(&mut self, features: &Features, rows: &Range<usize>, panels: &Range<usize>) {
        self.right.resize(rows.len() * panels.len(), Factor::ZERO);
        for (turn, panel) in panels.clone().enumerate() {
            let places = self.right[turn..].iter_mut().step_by(panels.len());
            let blocks = &features.blocks[panel * features.n_row_panels..][rows.clone()];
            places.zip(blocks).for_each(|(right, block)| transposed_right_factor(block, right));
        }
    }
}

impl super::Share for Share {
    type Kernel = Amx;
    type Features = Features;

    fn panel_classes(_: Amx) -> usize {
        SIDE
    }

    fn features(_: Amx, batch_size: usize, feature_dim: usize) -> Features {
        let (n_row_panels, n_panels) = (batch_size.div_ceil(SIDE), feature_dim.div_ceil(SIDE));
        Features { blocks: vec![Block::ZERO; n_panels * n_row_panels], n_row_panels, n_panels }
    }

    fn new(amx: Amx, first: usize, weight: &[f32], bias: &[f32], features: &Features) -> Self {
        let (n_classes, n_panels) = (bias.len(), bias.len().div_ceil(SIDE));
        let mut share = Self {
            amx,
            first,
            n_classes,
            weights: vec![Weights { values: Block::ZERO, velocity: Block::ZERO }; n_panels * features.n_panels],
            bias: vec![[0.0; SIDE]; n_panels],
            bias_velocity: vec![[0.0; SIDE]; n_panels],
            scores: vec![Block::ZERO; n_panels * features.n_row_panels],
            found: Found::new(n_panels, features.n_row_panels * SIDE),
            scratch: Scratch::default(),
        };
        share.bias.as_flattened_mut()[..n_classes].copy_from_slice(bias);
        for (class, row) in weight.chunks_exact(weight.len() / n_classes).enumerate() {
            let panels = &mut share.weights[class / SIDE * features.n_panels..];
            for (panel, values) in panels.iter_mut().zip(row.chunks(SIDE)) {
                panel.values.0[class % SIDE][..values.len()].copy_from_slice(values);
            }
        }
        share
    }

    fn forward(&mut self, features: &Features, of_rows: &[OfRow]) {
        // SAFETY: the instructions are there, as there is `Amx`.
        unsafe { self.score(features, of_rows) }
    }

    fn update(&mut self, features: &Features, of_rows: &[OfRow], update: Update) {
        // SAFETY: the instructions are there, as there is `Amx`.
        unsafe { self.descend(features, of_rows, update) }
    }

    fn found(&self) -> &Found {
        &self.found
    }

    fn parameters(&self, feature_dim: usize) -> (Vec<f32>, &[f32]) {
        let n_panels = feature_dim.div_ceil(SIDE);
        let of_class = |class: usize| {
            let panels = &self.weights[class / SIDE * n_panels..][..n_panels];
            panels.iter().flat_map(move |weights| weights.values.0[class % SIDE]).take(feature_dim)
        };
        ((0..self.n_classes).flat_map(of_class).collect(), &self.bias.as_flattened()[..self.n_classes])
    }
}

impl Share {
    #[target_feature(enable = "avx512f,fma")]
    fn score(&mut self, features: &Features, of_rows: &[OfRow]) {
        let tiles = self.amx.tiles();
        self.found.right.clear();
        for rows in parts(features.n_row_panels, FACTORS_AT_ONCE / PANELS_AT_ONCE) {
            for panels in parts(features.n_panels, PANELS_AT_ONCE) {
                self.scratch.take(features, &rows, &panels);
                for class_panel in 0..self.bias.len() {
                    self.add_scores(&tiles, class_panel, features, &rows, &panels);
                    if panels.end == features.n_panels {
                        self.exponentiate(class_panel, rows.clone(), of_rows);
                    }
                }
            }
        }
    }

    /// What comes of these panels of features, which are in the scratch, of a panel of classes.
    #[target_feature(enable = "avx512f")]
    fn add_scores(
        &mut self,
        tiles: &Tiles,
        class_panel: usize,
        features: &Features,
        rows: &Range<usize>,
        panels: &Range<usize>,
    ) {
        let (weights, next_weights) = self.weights[class_panel * features.n_panels..].split_at(features.n_panels);
        let next_weights = next_weights.get(panels.clone()).unwrap_or_default();
        let Scratch { left, right } = &mut self.scratch;
        left.resize(panels.len(), Factor::ZERO);
        left.iter_mut().zip(&weights[panels.clone()]).for_each(|(left, weights)| left_factor(&weights.values, left));
        let scores = &mut self.scores[class_panel * features.n_row_panels..][rows.clone()];
        for (turn, x) in right.chunks_exact(panels.len()).enumerate() {
            // Some of the next panel's weights in each turn; to ask again for the scores costs next to nothing.
            let weights = next_weights.get(turn).map(|weights| &raw const weights.values);
            let next = &raw const scores[(turn + 1) % scores.len()];
            let block = &mut scores[turn];
            if panels.start == 0 {
                block.0.iter_mut().zip(&self.bias[class_panel]).for_each(|(class, &bias)| class.fill(bias));
            }
            tiles.multiply(left, x, block, [next, weights.unwrap_or(next)]);
        }
    }

    /// Of scores that are all there.
    #[target_feature(enable = "avx512f,fma")]
    fn exponentiate(&mut self, class_panel: usize, rows: Range<usize>, of_rows: &[OfRow]) {
        let classes = self.classes(class_panel);
        for row_panel in rows {
            let place = class_panel * (of_rows.len() / SIDE) + row_panel;
            let scores = &mut self.scores[place];
            let first = row_panel * SIDE;
            let right = right(&classes, &of_rows[first..][..SIDE]);
            self.found.right.extend(right.map(|(class, row)| (first + row, scores.0[class][row])));
            let (maxima, sums) = exponentiate(scores, classes.len());
            self.found.panel_max[place * SIDE..][..SIDE].copy_from_slice(&maxima);
            self.found.panel_sum[place * SIDE..][..SIDE].copy_from_slice(&sums);
        }
    }

    #[target_feature(enable = "avx512f,fma")]
    fn descend(&mut self, features: &Features, of_rows: &[OfRow], update: Update) {
        let n_row_panels = features.n_row_panels;
        let tiles = self.amx.tiles();
        for class_panels in parts(self.bias.len(), (FACTORS_AT_ONCE / n_row_panels).max(1)) {
            self.scratch.left.resize(class_panels.len() * n_row_panels, Factor::ZERO);
            for (turn, class_panel) in class_panels.clone().enumerate() {
                self.residuals(class_panel, turn, of_rows);
                self.update_bias(class_panel, n_row_panels, update);
            }
            for panel in 0..features.n_panels {
                self.update_weights(&tiles, class_panels.clone(), panel, features, update);
            }
        }
    }

    /// Of a panel of features, and of the classes whose residuals are in the scratch.
    #[target_feature(enable = "avx512f,fma")]
    fn update_weights(
        &mut self,
        tiles: &Tiles,
        class_panels: Range<usize>,
        panel: usize,
        features: &Features,
        update: Update,
    ) {
        let n_row_panels = features.n_row_panels;
        let (blocks, next_blocks) = features.blocks[panel * n_row_panels..].split_at(n_row_panels);
        let Scratch { left, right } = &mut self.scratch;
        right.resize(n_row_panels, Factor::ZERO);
        right.iter_mut().zip(blocks).for_each(|(right, block)| right_factor(block, right));
        for (turn, (class_panel, residuals)) in class_panels.zip(left.chunks_exact(n_row_panels)).enumerate() {
            let weights = &mut self.weights[class_panel * features.n_panels + panel];
            let mut gradient = Block::ZERO;
            // Some of the next panel of features in each turn.
            let next = next_blocks.as_ptr().wrapping_byte_add(turn * n_row_panels * BYTES_AHEAD);
            tiles.multiply(residuals, right, &mut gradient, [(&raw const *weights).cast(), next]);
            step(&gradient, weights, update);
        }
    }

    /// Of a panel, and as the left factors of a turn.
    #[target_feature(enable = "avx512f,fma")]
    fn residuals(&mut self, class_panel: usize, turn: usize, of_rows: &[OfRow]) {
        let n_row_panels = of_rows.len() / SIDE;
        let classes = self.classes(class_panel);
        let first = class_panel * n_row_panels;
        let blocks = self.scores[first..].iter_mut().zip(&mut self.scratch.left[turn * n_row_panels..]);
        let maxima = self.found.panel_max[first * SIDE..].as_chunks::<SIDE>().0;
        let rows = maxima.iter().zip(of_rows.as_chunks::<SIDE>().0);
        for ((block, left), (maxima, of_rows)) in blocks.zip(rows) {
            let mut factors = [0.0; SIDE];
            for ((factor, max), of_row) in factors.iter_mut().zip(maxima).zip(of_rows) {
                *factor = of_row.factor * exp_of_negative(max - of_row.max);
            }
            for class in &mut block.0 {
                class.iter_mut().zip(&factors).for_each(|(exp, factor)| *exp *= factor);
            }
            right(&classes, of_rows).for_each(|(class, row)| block.0[class][row] -= of_rows[row].weight);
            left_factor(block, left);
        }
    }

    #[target_feature(enable = "avx512f,fma")]
    fn update_bias(&mut self, class_panel: usize, n_row_panels: usize, update: Update) {
        let mut sums = [[0.0f64; 8]; SIDE];
        for block in &self.scores[class_panel * n_row_panels..][..n_row_panels] {
            for (sums, residuals) in sums.iter_mut().zip(&block.0) {
                for residuals in residuals.as_chunks::<8>().0 {
                    sums.iter_mut().zip(residuals).for_each(|(sum, &residual)| *sum += f64::from(residual));
                }
            }
        }
        let of_bias = self.bias[class_panel].iter_mut().zip(&mut self.bias_velocity[class_panel]);
        for ((bias, velocity), sums) in of_bias.zip(sums) {
            update.step(sums.iter().sum::<f64>() as f32, bias, velocity);
        }
    }

    /// Those of a panel that are not beyond the last.
    fn classes(&self, class_panel: usize) -> Range<usize> {
        let (start, end) = (class_panel * SIDE, self.n_classes.min((class_panel + 1) * SIDE));
        self.first + start..self.first + end
    }
}

/// Where the right classes are in a block of these classes and rows.
#[inline(always)]
fn right(classes: &Range<usize>, of_rows: &[OfRow]) -> impl Iterator<Item = (usize, usize)> {
    let places = of_rows.iter().enumerate().filter(|(_, of_row)| classes.contains(&of_row.label));
    places.map(|(row, of_row)| (of_row.label - classes.start, row))
}

/// Leaves the exponentials of the scores; gives back the largest score of each row, and the sum of its exponentials.
#[target_feature(enable = "avx512f,fma")]
fn exponentiate(scores: &mut Block, n_classes: usize) -> ([f32; SIDE], [f32; SIDE]) {
    let (valid, beyond) = scores.0.split_at_mut(n_classes);
    let mut maxima = [f32::NEG_INFINITY; SIDE];
    for class in &*valid {
        maxima.iter_mut().zip(class).for_each(|(max, &score)| *max = if score > *max { score } else { *max });
    }
    let mut sums = [0.0; SIDE];
    for class in valid {
        for ((score, max), sum) in class.iter_mut().zip(&maxima).zip(&mut sums) {
            *score = exp_of_negative(*score - *max);
            *sum += *score;
        }
    }
    beyond.fill([0.0; SIDE]);
    (maxima, sums)
}

/// So many in turn.
fn parts(n: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(at_once).map(move |start| start..n.min(start + at_once))
}

#[target_feature(enable = "avx512f,fma")]
#[inline]
fn step(gradient: &Block, weights: &mut Weights, update: Update) {
    let rows = weights.values.0.iter_mut().zip(&mut weights.velocity.0);
    for (gradients, (weights, velocities)) in gradient.0.iter().zip(rows) {
        for ((gradient, weight), velocity) in gradients.iter().zip(weights).zip(velocities) {
            update.step(*gradient, weight, velocity);
        }
    }
}
