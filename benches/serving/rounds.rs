//! Rounds of load, and what is said of them.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::client::Client;

/// Connections of an open loop: more than there are requests in flight at any rate that a server can keep up with.
const N_OPEN: usize = 32;

/// What one round measured, or the median of several.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Round {
    fn new(mut latencies_ms: Vec<f64>, elapsed: Duration) -> Self {
        latencies_ms.sort_by(f64::total_cmp);
        let quantile = |q| quantile(&latencies_ms, q);
        Self {
            per_second: latencies_ms.len() as f64 / elapsed.as_secs_f64(),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
        }
    }

    /// The median of each figure on its own.
    pub(crate) fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(rounds.iter().map(figure).collect());
        Self {
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

/// Runs `work` on `n_threads` threads for so long; each call gets the number of an item.
pub(crate) fn closed_loop<W: FnMut(usize)>(n_threads: usize, duration: Duration, make: impl Fn() -> W + Sync) -> Round {
    let start = Instant::now();
    on_threads(
        n_threads,
        |_| start.elapsed() < duration,
        || {
            let mut work = make();
            move |item| {
                let begin = Instant::now();
                work(item);
                begin.elapsed()
            }
        },
    )
}

/// As many connections as `concurrency`, each with its next request as soon as it has the answer to the last.
pub(crate) fn http_loop(address: SocketAddr, requests: &[Vec<u8>], concurrency: usize, duration: Duration) -> Round {
    closed_loop(concurrency, duration, || {
        let mut client = Client::connect(address).unwrap();
        move |item| _ = client.send(&requests[item % requests.len()]).unwrap()
    })
}

/// As [`http_loop`], but for `n_requests`.
pub(crate) fn http_requests(address: SocketAddr, requests: &[Vec<u8>], concurrency: usize, n_requests: usize) -> Round {
    on_threads(
        concurrency,
        |item| item < n_requests,
        || {
            let mut client = Client::connect(address).unwrap();
            move |item| {
                let begin = Instant::now();
                client.send(&requests[item % requests.len()]).unwrap();
                begin.elapsed()
            }
        },
    )
}

/// Sends requests at a fixed rate, whether or not earlier ones are answered.
///
/// They are timed from when they are due: a server that falls behind cannot hide it.
pub(crate) fn open_loop(address: SocketAddr, requests: &[Vec<u8>], per_second: f64, duration: Duration) -> Round {
    let start = Instant::now();
    let n_requests = (per_second * duration.as_secs_f64()) as usize;
    on_threads(
        N_OPEN,
        |item| item < n_requests,
        || {
            let mut client = Client::connect(address).unwrap();
            move |item| {
                let due = start + Duration::from_secs_f64(item as f64 / per_second);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                client.send(&requests[item % requests.len()]).unwrap();
                due.elapsed()
            }
        },
    )
}

/// Hands items out to threads as long as there is another one, and gathers how long each took.
fn on_threads<W: FnMut(usize) -> Duration>(
    n_threads: usize,
    is_another: impl Fn(usize) -> bool + Sync,
    make: impl Fn() -> W + Sync,
) -> Round {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let latencies_ms = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut work, mut latencies_ms) = (make(), Vec::new());
                    loop {
                        let item = next.fetch_add(1, Ordering::Relaxed);
                        if !is_another(item) {
                            return latencies_ms;
                        }
                        latencies_ms.push(work(item).as_secs_f64() * 1e3);
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    Round::new(latencies_ms, start.elapsed())
}
