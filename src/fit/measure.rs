//! How good heads are on labelled rows: one matrix product for any number of settings.

use super::{
    FitError, Progress, Samples, Watch,
    engine::{Engine, pieces},
    minimise::ROWS_AT_ONCE,
};
use crate::{
    dataset::Shot,
    evaluate::Evaluation,
    heads::{Scores, Scoring, Weights},
};

/// Rows that one thread looks at before the next piece; fixed, so that the sums do not depend on the number of threads.
const ROWS_OF_A_THREAD: usize = 128;

/// Rows whose scores are looked at under all settings before the next.
const ROWS_OF_A_BLOCK: usize = 32;

/// Evaluates each of `scorings` on `samples`; they all are of heads with these `weights`. `shots` has the shot of each class.
///
/// # Errors
/// [`FitError::LogitsNotFinite`] names the row; those of the engine; [`FitError::Cancelled`].
pub fn measure<'s>(
    samples: &Samples<'_>,
    weights: &Weights,
    scorings: &[&Scoring],
    shots: &'s [Shot],
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<Vec<Evaluation<'s>>, FitError> {
    let mut evaluations: Vec<Evaluation<'s>> = scorings.iter().map(|_| Evaluation::new(shots)).collect();
    let n_classes = weights.num_classes();
    for range in pieces(samples.len(), ROWS_AT_ONCE) {
        let scores = engine.raw_scores(samples.table(), samples.piece(range.clone()), weights)?;
        let labels = &samples.labels()[range.clone()];
        let of_part = |first: usize| -> Result<Vec<Evaluation<'s>>, FitError> {
            let mut logits = Vec::new();
            let mut parts: Vec<Evaluation<'s>> = scorings.iter().map(|_| Evaluation::new(shots)).collect();
            for (row, &label) in labels.iter().enumerate().skip(first).take(ROWS_OF_A_THREAD) {
                let squared_norm =
                    scores.squared_norms.as_ref().and_then(|norms| norms.get(row)).copied().unwrap_or(0.0);
                let raw = &scores.raw[row * n_classes..(row + 1) * n_classes];
                for (scoring, part) in scorings.iter().zip(&mut parts) {
                    let best = scoring
                        .predict(Scores { raw, squared_norm }, 5, &mut logits)
                        .ok_or(FitError::LogitsNotFinite { row: range.start + row })?;
                    part.add(label as usize, &best);
                }
            }
            Ok(parts)
        };
        let firsts: Vec<usize> = (0..labels.len()).step_by(ROWS_OF_A_THREAD).collect();
        for parts in in_parallel(&firsts, |&first| of_part(first)) {
            for (evaluation, part) in evaluations.iter_mut().zip(parts?) {
                evaluation.merge(&part);
            }
        }
        let done = range.end as f64 / samples.len() as f64;
        watch.tell(Progress { done, epoch: 0, epochs: 0, loss: None, samples_seen: range.end })?;
    }
    Ok(evaluations)
}

/// How many of each class's samples are predicted as that class under each of `scorings`, `[scorings][C]`: accuracies, and
/// nothing that needs a softmax.
///
/// # Errors
/// As [`measure`]; rows whose logits are not finite count as wrong.
pub(super) fn count_correct(
    samples: &Samples<'_>,
    weights: &Weights,
    scorings: &[&Scoring],
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<Vec<Vec<u64>>, FitError> {
    let n_classes = weights.num_classes();
    let mut correct = vec![vec![0; samples.num_classes()]; scorings.len()];
    for range in pieces(samples.len(), ROWS_AT_ONCE) {
        let scores = engine.raw_scores(samples.table(), samples.piece(range.clone()), weights)?;
        let labels = &samples.labels()[range.clone()];
        // Under every setting before the next rows: these stay in the nearest caches.
        let blocks: Vec<&[f32]> = scores.raw.chunks(n_classes * ROWS_OF_A_BLOCK).collect();
        let best = in_parallel(&blocks, |block| {
            let of_setting =
                |scoring: &&Scoring| block.chunks_exact(n_classes).map(|raw| scoring.best_class(raw)).collect();
            scorings.iter().map(of_setting).collect::<Vec<Vec<Option<usize>>>>()
        });
        for (best, labels) in best.iter().zip(labels.chunks(ROWS_OF_A_BLOCK)) {
            for (best, correct) in best.iter().zip(&mut correct) {
                for (best, &label) in best.iter().zip(labels) {
                    correct[label as usize] += u64::from(*best == Some(label as usize));
                }
            }
        }
        let done = range.end as f64 / samples.len() as f64;
        watch.tell(Progress { done, epoch: 0, epochs: 0, loss: None, samples_seen: range.end })?;
    }
    Ok(correct)
}

/// `work` on every item, on all cores; the results are in the order of the items.
pub(super) fn in_parallel<I: Sync, O: Send>(items: &[I], work: impl Fn(&I) -> O + Sync) -> Vec<O> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    if n_threads <= 1 {
        return items.iter().map(work).collect();
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, work(item)));
        }
    };
    let mut results: Vec<(usize, O)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..n_threads).map(|_| scope.spawn(run)).collect();
        let mut results = run();
        for thread in threads {
            match thread.join() {
                Ok(done) => results.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
