//! Scores that are asked for twice.

use std::collections::HashMap;

use ndarray::ArrayView2;

use super::engine::{Batch, Engine, EngineError, RawScores, Rows};
use crate::heads::{Digest, Weights};

/// An engine that keeps the raw scores of samples that do not change, as long as they take no more than `budget` bytes:
/// what chooses tau and what reports on it ask for the same.
pub(super) struct RememberingEngine<'a> {
    engine: &'a mut dyn Engine,
    budget: u64,
    known: HashMap<(Digest, Place), RawScores>,
}

/// Where rows lie: their first and their number, or those of the list that names them.
type Place = (usize, usize);

impl<'a> RememberingEngine<'a> {
    /// Keeps up to `budget` bytes. Only for samples that outlive it: they are known by where they lie.
    pub(super) fn new(engine: &'a mut dyn Engine, budget: u64) -> Self {
        Self { engine, budget, known: HashMap::new() }
    }
}

impl Engine for RememberingEngine<'_> {
    fn linear_gradient(
        &mut self,
        batch: &Batch<'_>,
        weight: &[f32],
        bias: &[f32],
        gradient: &mut [f32],
    ) -> Result<f64, EngineError> {
        self.engine.linear_gradient(batch, weight, bias, gradient)
    }

    fn scale_gradient(&mut self, batch: &Batch<'_>, scale: &[f32], gradient: &mut [f32]) -> Result<f64, EngineError> {
        self.engine.scale_gradient(batch, scale, gradient)
    }

    fn raw_scores(
        &mut self,
        table: ArrayView2<'_, f32>,
        rows: Rows<'_>,
        weights: &Weights,
    ) -> Result<RawScores, EngineError> {
        let place = match rows {
            Rows::Range { start, end } => (start, end - start),
            Rows::Index(rows) => (rows.as_ptr().addr(), rows.len()),
        };
        let key = (weights.digest(), place);
        // Nobody asks a third time.
        if let Some(scores) = self.known.remove(&key) {
            return Ok(scores);
        }
        let scores = self.engine.raw_scores(table, rows, weights)?;
        let bytes = 4 * scores.raw.len() as u64;
        if let Some(left) = self.budget.checked_sub(bytes) {
            self.budget = left;
            self.known.insert(key, scores.clone());
        }
        Ok(scores)
    }
}
