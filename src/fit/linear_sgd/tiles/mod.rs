//! The products of a step with the tiles of AMX, at the accuracy of f32: see [`amx`].
//!
//! ```text
//! rows -> x [panel of features, panel of rows] -> zᵀ = W xᵀ, of each panel of classes [panel of rows] -> ∇ = rᵀ x
//! ```
//!
//! Classes, features and rows come in panels of 32. Weights and features stay f32 in memory, and are split into bf16 as many at
//! once as the second cache has room for: split they are larger than whole, and what comes from beyond that cache takes longer
//! than to split it again.

#![allow(unsafe_code)] // Functions that need instructions.

mod amx;

use std::ops::Range;

use super::{Found, OfRow, Update, each};
use crate::{
    fit::{engine::Batch, give_way::give_way},
    heads::exp_of_negative,
};
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

/// As many classes as a block has rows.
#[derive(Debug)]
pub(super) struct Panel {
    /// The first class of it, and how many; there may be rows of blocks beyond them, which stay 0.
    first: usize,
    n_classes: usize,
    /// `[panel of features]`.
    weights: Vec<Weights>,
    bias: [f32; SIDE],
    bias_velocity: [f32; SIDE],
    /// `[panel of rows]` `[class, row]`: scores, then `exp(z − max of the panel)`, then residuals `ω (p − [right])`.
    scores: Vec<Block>,
    found: Found,
}

type Gathered<'a> = super::Gathered<'a, Panel>;

/// The factors of products, for as long as they are in the second cache.
#[derive(Debug, Default)]
pub(super) struct Scratch {
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

impl super::Panel for Panel {
    type Kernel = Amx;
    type Features = Features;
    type Scratch = Scratch;

    fn n_classes(_: Amx) -> usize {
        SIDE
    }

    fn features(_: Amx, batch_size: usize, feature_dim: usize) -> Features {
        let (n_row_panels, n_panels) = (batch_size.div_ceil(SIDE), feature_dim.div_ceil(SIDE));
        Features { blocks: vec![Block::ZERO; n_panels * n_row_panels], n_row_panels, n_panels }
    }

    fn new(_: Amx, first: usize, weight: &[f32], bias: &[f32], features: &Features) -> Self {
        let n_classes = bias.len();
        let mut panel = Self {
            first,
            n_classes,
            weights: vec![Weights { values: Block::ZERO, velocity: Block::ZERO }; features.n_panels],
            bias: [0.0; SIDE],
            bias_velocity: [0.0; SIDE],
            scores: vec![Block::ZERO; features.n_row_panels],
            found: Found::new(features.n_row_panels * SIDE),
        };
        panel.bias[..n_classes].copy_from_slice(bias);
        for (class, row) in weight.chunks_exact(weight.len() / n_classes).enumerate() {
            for (weights, values) in panel.weights.iter_mut().zip(row.chunks(SIDE)) {
                weights.values.0[class][..values.len()].copy_from_slice(values);
            }
        }
        panel
    }

    fn forward(panels: &mut [Self], batch: &Gathered<'_>, scratch: &mut Scratch) {
        // SAFETY: the instructions are there, as there is `Amx`.
        unsafe { score(panels, batch, scratch) }
    }

    fn update(panels: &mut [Self], batch: &Gathered<'_>, update: Update, scratch: &mut Scratch) {
        // SAFETY: the instructions are there, as there is `Amx`.
        unsafe { descend(panels, batch, update, scratch) }
    }

    fn found(&self) -> &Found {
        &self.found
    }

    fn parameters(&self, feature_dim: usize) -> (Vec<f32>, &[f32]) {
        let of_class =
            |class: usize| self.weights.iter().flat_map(move |weights| weights.values.0[class]).take(feature_dim);
        ((0..self.n_classes).flat_map(of_class).collect(), &self.bias[..self.n_classes])
    }
}

#[target_feature(enable = "avx512f,fma")]
fn score(panels: &mut [Panel], batch: &Gathered<'_>, scratch: &mut Scratch) {
    let Gathered { kernel: amx, features, of_rows } = *batch;
    let tiles = amx.tiles();
    panels.iter_mut().for_each(|panel| panel.found.right.clear());
    for rows in parts(features.n_row_panels, FACTORS_AT_ONCE / PANELS_AT_ONCE) {
        for of_features in parts(features.n_panels, PANELS_AT_ONCE) {
            scratch.take(features, &rows, &of_features);
            let mut rest = &mut *panels;
            while let Some((panel, next)) = rest.split_first_mut() {
                let next_weights = next.first().map_or(&[][..], |next| &next.weights[of_features.clone()]);
                panel.add_scores(&tiles, &rows, &of_features, next_weights, scratch);
                if of_features.end == features.n_panels {
                    panel.exponentiate(rows.clone(), of_rows);
                }
                give_way();
                rest = next;
            }
        }
    }
}

#[target_feature(enable = "avx512f,fma")]
fn descend(panels: &mut [Panel], batch: &Gathered<'_>, update: Update, scratch: &mut Scratch) {
    let Gathered { kernel: amx, features, of_rows } = *batch;
    let (tiles, n_row_panels) = (amx.tiles(), features.n_row_panels);
    for panels in panels.chunks_mut((FACTORS_AT_ONCE / n_row_panels).max(1)) {
        scratch.left.resize(panels.len() * n_row_panels, Factor::ZERO);
        for (panel, left) in panels.iter_mut().zip(scratch.left.chunks_exact_mut(n_row_panels)) {
            panel.residuals(left, of_rows);
            panel.update_bias(update);
            give_way();
        }
        for index in 0..features.n_panels {
            update_weights(panels, &tiles, index, features, update, scratch);
            give_way();
        }
    }
}

/// Of a panel of features, and of the classes whose residuals are in the scratch.
#[target_feature(enable = "avx512f,fma")]
fn update_weights(
    panels: &mut [Panel],
    tiles: &Tiles,
    index: usize,
    features: &Features,
    update: Update,
    Scratch { left, right }: &mut Scratch,
) {
    let n_row_panels = features.n_row_panels;
    let (blocks, next_blocks) = features.blocks[index * n_row_panels..].split_at(n_row_panels);
    right.resize(n_row_panels, Factor::ZERO);
    right.iter_mut().zip(blocks).for_each(|(right, block)| right_factor(block, right));
    for (turn, (panel, residuals)) in panels.iter_mut().zip(left.chunks_exact(n_row_panels)).enumerate() {
        let weights = &mut panel.weights[index];
        let mut gradient = Block::ZERO;
        // Some of the next panel of features in each turn.
        let next = next_blocks.as_ptr().wrapping_byte_add(turn * n_row_panels * BYTES_AHEAD);
        tiles.multiply(residuals, right, &mut gradient, [(&raw const *weights).cast(), next]);
        step(&gradient, weights, update);
    }
}

impl Panel {
    /// What comes of these panels of features, which are in the scratch.
    #[target_feature(enable = "avx512f")]
    fn add_scores(
        &mut self,
        tiles: &Tiles,
        rows: &Range<usize>,
        of_features: &Range<usize>,
        next_weights: &[Weights],
        Scratch { left, right }: &mut Scratch,
    ) {
        let weights = &self.weights[of_features.clone()];
        left.resize(weights.len(), Factor::ZERO);
        left.iter_mut().zip(weights).for_each(|(left, weights)| left_factor(&weights.values, left));
        let scores = &mut self.scores[rows.clone()];
        for (turn, x) in right.chunks_exact(weights.len()).enumerate() {
            // Some of the next panel's weights in each turn; to ask again for the scores costs next to nothing.
            let weights = next_weights.get(turn).map(|weights| &raw const weights.values);
            let next = &raw const scores[(turn + 1) % scores.len()];
            let block = &mut scores[turn];
            if of_features.start == 0 {
                block.0.iter_mut().zip(&self.bias).for_each(|(class, &bias)| class.fill(bias));
            }
            tiles.multiply(left, x, block, [next, weights.unwrap_or(next)]);
        }
    }

    /// Of scores that are all there.
    #[target_feature(enable = "avx512f,fma")]
    fn exponentiate(&mut self, rows: Range<usize>, of_rows: &[OfRow]) {
        let classes = self.classes();
        let Found { max, sum, right } = &mut self.found;
        for index in rows {
            let (scores, first) = (&mut self.scores[index], index * SIDE);
            let places = right_places(&classes, &of_rows[first..][..SIDE]);
            right.extend(places.map(|(class, row)| (first + row, scores.0[class][row])));
            let (maxima, sums) = exponentiate(scores, classes.len());
            max[first..][..SIDE].copy_from_slice(&maxima);
            sum[first..][..SIDE].copy_from_slice(&sums);
        }
    }

    /// As they are and as left factors.
    #[target_feature(enable = "avx512f,fma")]
    fn residuals(&mut self, left: &mut [Factor], of_rows: &[OfRow]) {
        let classes = self.classes();
        let rows = self.found.max.as_chunks::<SIDE>().0.iter().zip(of_rows.as_chunks::<SIDE>().0);
        for ((block, left), (maxima, of_rows)) in self.scores.iter_mut().zip(left).zip(rows) {
            let mut factors = [0.0; SIDE];
            for ((factor, max), of_row) in factors.iter_mut().zip(maxima).zip(of_rows) {
                *factor = of_row.factor * exp_of_negative(max - of_row.max);
            }
            for class in &mut block.0 {
                class.iter_mut().zip(&factors).for_each(|(exp, factor)| *exp *= factor);
            }
            right_places(&classes, of_rows).for_each(|(class, row)| block.0[class][row] -= of_rows[row].weight);
            left_factor(block, left);
        }
    }

    #[target_feature(enable = "avx512f,fma")]
    fn update_bias(&mut self, update: Update) {
        let mut sums = [[0.0f64; 8]; SIDE];
        for block in &self.scores {
            for (sums, residuals) in sums.iter_mut().zip(&block.0) {
                for residuals in residuals.as_chunks::<8>().0 {
                    sums.iter_mut().zip(residuals).for_each(|(sum, &residual)| *sum += f64::from(residual));
                }
            }
        }
        for ((bias, velocity), sums) in self.bias.iter_mut().zip(&mut self.bias_velocity).zip(sums) {
            update.step(sums.iter().sum::<f64>() as f32, bias, velocity);
        }
    }

    fn classes(&self) -> Range<usize> {
        self.first..self.first + self.n_classes
    }
}

/// Where the right classes are in a block of these classes and rows.
#[inline(always)]
fn right_places(classes: &Range<usize>, of_rows: &[OfRow]) -> impl Iterator<Item = (usize, usize)> {
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
