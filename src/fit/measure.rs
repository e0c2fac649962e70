//! How good heads are on labelled rows: one matrix product for any number of settings.

use std::sync::{Mutex, PoisonError};

use super::{
    FitError, Progress, Samples, Watch,
    engine::{Engine, RawScores, pieces},
    give_way::give_way,
    minimise::ROWS_AT_ONCE,
};
use crate::{
    dataset::Shot,
    evaluate::Evaluation,
    heads::{Head, RawRow, Scores, Scoring, Settings, Weights},
};

/// Rows that one thread looks at before the next piece; fixed, so that the sums do not depend on the number of threads.
const ROWS_OF_A_THREAD: usize = 128;

/// Rows whose scores are looked at under all settings before the next.
const ROWS_OF_A_BLOCK: usize = 8;

/// Counts for classes under all settings that a thread keeps at once: with those of all threads, some tens of megabytes.
const COUNTS_OF_A_THREAD: usize = 1 << 17;

/// Evaluates a head under each of `settings` on `samples`. `shots` has the shot of each class.
///
/// # Errors
/// [`FitError::LogitsNotFinite`] names the row; those of the engine; [`FitError::Cancelled`].
pub fn measure<'s>(
    samples: &Samples<'_>,
    head: &Head,
    settings: &[Settings],
    shots: &'s [Shot],
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<Vec<Evaluation<'s>>, FitError> {
    Scored::new(samples, head.weights(), 0).measure(head, settings, shots, engine, watch)
}

/// Samples and the raw scores that one weight matrix gives them, computed piece by piece; kept for a second pass if they
/// fit.
pub(super) struct Scored<'a, 't> {
    samples: &'a Samples<'t>,
    weights: &'a Weights,
    keeps: bool,
    kept: Vec<RawScores>,
}

impl<'a, 't> Scored<'a, 't> {
    /// Keeps the scores if they take no more than `cache_bytes`.
    pub(super) fn new(samples: &'a Samples<'t>, weights: &'a Weights, cache_bytes: u64) -> Self {
        let n_bytes = (samples.len() as u64).saturating_mul(weights.num_classes() as u64).saturating_mul(4);
        Self { samples, weights, keeps: n_bytes <= cache_bytes, kept: Vec::new() }
    }

    /// With scores that an earlier pass has [kept](Self::into_kept).
    pub(super) fn kept(samples: &'a Samples<'t>, weights: &'a Weights, kept: Vec<RawScores>) -> Self {
        Self { samples, weights, keeps: false, kept }
    }

    /// The scores that were kept: of all pieces, or none.
    pub(super) fn into_kept(self) -> Vec<RawScores> {
        self.kept
    }

    /// The samples.
    pub(super) fn samples(&self) -> &'a Samples<'t> {
        self.samples
    }

    /// Hands every piece of the samples to `take`: their scores and labels, and the first one's place.
    fn each(
        &mut self,
        engine: &mut dyn Engine,
        watch: &mut Watch<'_>,
        mut take: impl FnMut(&RawScores, &[u32], usize) -> Result<(), FitError>,
    ) -> Result<(), FitError> {
        let samples = self.samples;
        for (index, range) in pieces(samples.len(), ROWS_AT_ONCE).enumerate() {
            let labels = &samples.labels()[range.clone()];
            if let Some(scores) = self.kept.get(index) {
                take(scores, labels, range.start)?;
            } else {
                let scores = engine.raw_scores(samples.table(), samples.piece(range.clone()), self.weights)?;
                take(&scores, labels, range.start)?;
                if self.keeps {
                    self.kept.push(scores);
                }
            }
            let done = range.end as f64 / samples.len() as f64;
            watch.tell(Progress { done, epoch: 0, epochs: 0, loss: None, samples_seen: range.end })?;
        }
        Ok(())
    }

    /// [`measure`] with these scores.
    pub(super) fn measure<'s>(
        &mut self,
        head: &Head,
        settings: &[Settings],
        shots: &'s [Shot],
        engine: &mut dyn Engine,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Evaluation<'s>>, FitError> {
        let scorings: Vec<Scoring> = settings.iter().map(|settings| head.scoring(settings)).collect();
        let tried: Vec<(&Settings, &Scoring)> = settings.iter().zip(&scorings).collect();
        let mut evaluations = vec![Evaluation::new(shots); settings.len()];
        let (samples, n_classes) = (self.samples, self.weights.num_classes());
        let (at_once, n_threads) = ((COUNTS_OF_A_THREAD / n_classes).max(1), engine.threads());
        self.each(engine, watch, |scores, labels, first_of_piece| {
            let of_part = |tried: &[(&Settings, &Scoring)], first: usize| -> Result<Vec<Evaluation<'s>>, FitError> {
                let (mut logits, mut parts) = (Vec::new(), vec![Evaluation::new(shots); tried.len()]);
                for (row, &label) in labels.iter().enumerate().skip(first).take(ROWS_OF_A_THREAD) {
                    let squared_norm =
                        scores.squared_norms.as_ref().and_then(|norms| norms.get(row)).copied().unwrap_or(0.0);
                    let raw = &scores.raw[row * n_classes..(row + 1) * n_classes];
                    for ((settings, scoring), part) in tried.iter().zip(&mut parts) {
                        let best = scoring.predict(Scores { raw, squared_norm }, 5, &mut logits).ok_or_else(|| {
                            let is_of_settings = raw.iter().chain([&squared_norm]).all(|score| score.is_finite());
                            FitError::LogitsNotFinite {
                                set: "the feature set",
                                row: samples.row((first_of_piece + row) as u32),
                                settings: is_of_settings.then_some(**settings),
                            }
                        })?;
                        part.add(label as usize, &best);
                    }
                }
                Ok(parts)
            };
            let firsts: Vec<usize> = (0..labels.len()).step_by(ROWS_OF_A_THREAD).collect();
            for (tried, evaluations) in tried.chunks(at_once).zip(evaluations.chunks_mut(at_once)) {
                for parts in in_parallel(n_threads, &firsts, |&first| of_part(tried, first)) {
                    for (evaluation, part) in evaluations.iter_mut().zip(parts?) {
                        evaluation.merge(&part);
                    }
                }
            }
            Ok(())
        })?;
        Ok(evaluations)
    }

    /// How many of each class's samples are predicted as that class under each of `scorings`, `[scorings][C]`: accuracies,
    /// and nothing that needs a softmax. Rows whose logits are not finite count as wrong.
    pub(super) fn count_correct(
        &mut self,
        scorings: &[&Scoring],
        engine: &mut dyn Engine,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Vec<u64>>, FitError> {
        let n_classes = self.weights.num_classes();
        let n_threads = engine.threads();
        let mut correct = vec![vec![0; n_classes]; scorings.len()];
        self.each(engine, watch, |scores, labels, _| {
            // Under every setting before the next rows: these stay in the nearest caches.
            let blocks: Vec<_> =
                scores.raw.chunks(n_classes * ROWS_OF_A_BLOCK).zip(labels.chunks(ROWS_OF_A_BLOCK)).collect();
            let is_best = in_parallel(n_threads, &blocks, |(block, labels)| {
                let rows: Vec<RawRow> = block.chunks_exact(n_classes).map(RawRow::new).collect();
                let of_setting = |scoring: &&Scoring| {
                    rows.iter().zip(*labels).map(|(raw, &label)| scoring.is_best(raw, label as usize)).collect()
                };
                scorings.iter().map(of_setting).collect::<Vec<Vec<bool>>>()
            });
            for (is_best, (_, labels)) in is_best.iter().zip(blocks) {
                for (is_best, correct) in is_best.iter().zip(&mut correct) {
                    for (&is_best, &label) in is_best.iter().zip(labels) {
                        correct[label as usize] += u64::from(is_best);
                    }
                }
            }
            Ok(())
        })?;
        Ok(correct)
    }
}

/// `work` on every item, on at most so many threads; the results are in the order of the items.
pub(super) fn in_parallel<I: Sync, O: Send>(n_threads: usize, items: &[I], work: impl Fn(&I) -> O + Sync) -> Vec<O> {
    let mut results: Vec<Option<O>> = items.iter().map(|_| None).collect();
    each_in_parallel(n_threads, items.iter().zip(&mut results), |(item, result)| *result = Some(work(item)));
    results.into_iter().flatten().collect()
}

/// `work` on every item, on at most so many threads.
pub(super) fn each_in_parallel<I: Send>(
    n_threads: usize,
    items: impl ExactSizeIterator<Item = I> + Send,
    work: impl Fn(I) + Sync,
) {
    let work = |item| {
        work(item);
        give_way();
    };
    let n_threads = n_threads.min(items.len());
    if n_threads <= 1 {
        return items.for_each(work);
    }
    let items = Mutex::new(items);
    let run = || {
        loop {
            let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next else { return };
            work(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(run);
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_more_threads_than_allowed_work() {
        for (n_threads, n_items) in [(1, 50), (3, 50), (8, 2), (0, 1)] {
            let ids = in_parallel(n_threads, &vec![(); n_items], |()| std::thread::current().id());
            let others = ids.iter().filter(|id| **id != std::thread::current().id()).collect::<HashSet<_>>();
            assert!(ids.len() == n_items && others.len() < n_threads.max(1), "{n_threads} threads, {n_items} items");
        }
    }
}
