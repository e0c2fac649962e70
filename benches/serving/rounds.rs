//! Rounds of load, and what is said of them.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde::Serialize;

/// What one round measured, or the median of several.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) requests: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Round {
    pub(crate) fn new(mut latencies_ms: Vec<f64>, elapsed: Duration) -> Self {
        latencies_ms.sort_by(f64::total_cmp);
        let quantile = |q| quantile(&latencies_ms, q);
        let requests = latencies_ms.len() as f64;
        Self {
            requests,
            per_second: requests / elapsed.as_secs_f64(),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
        }
    }

    /// The median of each figure on its own.
    pub(crate) fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(rounds.iter().map(figure).collect());
        Self {
            requests: of(|round| round.requests),
            per_second: of(|round| round.per_second),
            p50_ms: of(|round| round.p50_ms),
            p95_ms: of(|round| round.p95_ms),
            p99_ms: of(|round| round.p99_ms),
        }
    }
}

pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// Runs `work` on `n_threads` threads for so long, or until one of them fails; each call gets the number of an item, and says
/// whether it counts.
pub(crate) fn closed_loop<W: FnMut(usize) -> io::Result<bool>>(
    n_threads: usize,
    duration: Duration,
    make: impl Fn() -> io::Result<W> + Sync,
) -> io::Result<Round> {
    let (next, has_failed, start) = (AtomicUsize::new(0), AtomicBool::new(false), Instant::now());
    let run = || {
        let (mut work, mut latencies_ms) = (make()?, Vec::new());
        while start.elapsed() < duration && !has_failed.load(Ordering::Relaxed) {
            let begin = Instant::now();
            if work(next.fetch_add(1, Ordering::Relaxed))? {
                latencies_ms.push(begin.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(latencies_ms)
    };
    let latencies_ms = std::thread::scope(|scope| {
        let run = || run().inspect_err(|_: &io::Error| has_failed.store(true, Ordering::Relaxed));
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<io::Result<Vec<Vec<f64>>>>()
    })?;
    Ok(Round::new(latencies_ms.concat(), start.elapsed()))
}

/// Gives each of `n` its turn in every round, each time another one first; the results of each.
pub(crate) fn in_turn<T>(n: usize, n_rounds: usize, mut measure: impl FnMut(usize) -> T) -> Vec<Vec<T>> {
    let mut results: Vec<Vec<T>> = (0..n).map(|_| Vec::new()).collect();
    for round in 0..n_rounds {
        for place in 0..n {
            let index = (round + place) % n;
            results[index].push(measure(index));
        }
    }
    results
}
