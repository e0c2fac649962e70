//! The gradient of LWS on the CPU: one pass over each row of scores, while it is in the nearest cache.

use multiversion::multiversion;

use super::{
    engine::{Batch, pieces},
    measure::in_parallel,
};
use crate::heads::exp_of_negative;

/// Rows whose gradients are summed up in f32. It is not for the number of threads to say, so that the result does not depend on it.
const ROWS_AT_ONCE: usize = 64;
const LANES: usize = 16;

/// What [`Engine::scale_gradient`](super::Engine::scale_gradient) asks for, on the processor's own vectors and so many threads:
/// the loss `Σᵢ ωᵢ (log Σⱼ exp zᵢⱼ − zᵢ,yᵢ)` of `z = s ∘ t`, with the rows of the table as `t`, and its gradient in `s`, `[C]`.
///
/// # Panics
/// If a row or a label is not there, or the batch has fewer labels or weights than rows.
pub fn scale_gradient(batch: &Batch<'_>, scale: &[f32], n_threads: usize) -> (f64, Vec<f32>) {
    let pieces: Vec<_> = pieces(batch.rows.len(), ROWS_AT_ONCE).collect();
    let of_pieces = in_parallel(n_threads, &pieces, |piece| {
        let mut of_piece = OfPiece::new(scale.len());
        for index in piece.clone() {
            add_row(batch.row(index), scale, batch.labels[index] as usize, batch.row_weights[index], &mut of_piece);
        }
        of_piece
    });
    let mut gradient = vec![0.0f64; scale.len()];
    for piece in &of_pieces {
        gradient.iter_mut().zip(&piece.gradient).for_each(|(sum, &part)| *sum += f64::from(part));
    }
    let loss = of_pieces.iter().map(|piece| piece.loss).sum();
    (loss, gradient.into_iter().map(|sum| sum as f32).collect())
}

struct OfPiece {
    loss: f64,
    gradient: Vec<f32>,
    /// Scratch space: `z`, then `exp(z − max z)`.
    exps: Vec<f32>,
}

impl OfPiece {
    fn new(n_classes: usize) -> Self {
        Self { loss: 0.0, gradient: vec![0.0; n_classes], exps: vec![0.0; n_classes] }
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn add_row(scores: &[f32], scale: &[f32], label: usize, weight: f32, sums: &mut OfPiece) {
    let OfPiece { loss, gradient, exps } = sums;
    exps.iter_mut().zip(scores).zip(scale).for_each(|((logit, score), scale)| *logit = score * scale);
    let logit_of_label = exps[label];
    let (blocks, rest) = exps.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &logit)| *lane = if logit > *lane { logit } else { *lane });
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    exps.iter_mut().for_each(|logit| *logit = exp_of_negative(*logit - max));
    let (blocks, rest) = exps.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, exp)| *lane += exp);
    }
    let sum: f32 = lanes.iter().chain(rest).sum();
    *loss += f64::from(weight) * (f64::from(sum).ln() + f64::from(max) - f64::from(logit_of_label));
    let factor = weight / sum;
    gradient.iter_mut().zip(&*exps).zip(scores).for_each(|((sum, exp), score)| *sum += factor * exp * score);
    gradient[label] -= weight * scores[label];
}
