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
        // Each thread has settings of its own and looks at all rows: nothing is to be merged.
        let indices: Vec<usize> = (0..scorings.len()).collect();
        let counts = in_parallel(&indices, |&index| {
            let mut counts = vec![0u64; samples.num_classes()];
            let is_right = |(raw, &label): (&[f32], &u32)| scorings[index].best_class(raw) == Some(label as usize);
            for row in scores.raw.chunks_exact(n_classes).zip(labels).filter(|&row| is_right(row)) {
                counts[*row.1 as usize] += 1;
            }
            counts
        });
        for (sums, counts) in correct.iter_mut().zip(counts) {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
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
