//! Rounds of load, and what is said of them.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::client::Client;

/// Connections of an open loop: more than there are requests in flight at any rate that a server can keep up with.
const N_OPEN: usize = 32;

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
    fn new(mut latencies_ms: Vec<f64>, elapsed: Duration) -> Self {
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

/// Runs `work` on `n_threads` threads for so long; each call gets the number of an item.
pub(crate) fn closed_loop<W: FnMut(usize) -> io::Result<()>>(
    n_threads: usize,
    duration: Duration,
    make: impl Fn() -> io::Result<W> + Sync,
) -> io::Result<Round> {
    let start = Instant::now();
    on_threads(n_threads, |_| start.elapsed() < duration, || Ok(timed(make()?)))
}

/// As [`closed_loop`], but only what `work` says true of counts.
pub(crate) fn counting_loop<W: FnMut(usize) -> io::Result<bool>>(
    n_threads: usize,
    duration: Duration,
    make: impl Fn() -> io::Result<W> + Sync,
) -> io::Result<Round> {
    let start = Instant::now();
    let timed = |mut work: W| {
        move |item| {
            let begin = Instant::now();
            Ok(work(item)?.then(|| begin.elapsed()))
        }
    };
    on_threads(n_threads, |_| start.elapsed() < duration, || Ok(timed(make()?)))
}

/// As many connections as `concurrency`, each with its next request as soon as it has the answer to the last.
pub(crate) fn http_loop(
    address: SocketAddr,
    requests: &[Vec<u8>],
    concurrency: usize,
    duration: Duration,
) -> io::Result<Round> {
    closed_loop(concurrency, duration, || one_after_the_other(address, requests))
}

/// As [`http_loop`], but for `n_requests`.
pub(crate) fn http_requests(
    address: SocketAddr,
    requests: &[Vec<u8>],
    concurrency: usize,
    n_requests: usize,
) -> io::Result<Round> {
    on_threads(concurrency, |item| item < n_requests, || Ok(timed(one_after_the_other(address, requests)?)))
}

/// Sends requests at a fixed rate, whether or not earlier ones are answered.
///
/// They are timed from when they are due: a server that falls behind cannot hide it.
pub(crate) fn open_loop(
    address: SocketAddr,
    requests: &[Vec<u8>],
    per_second: f64,
    duration: Duration,
) -> io::Result<Round> {
    let start = Instant::now();
    let n_requests = (per_second * duration.as_secs_f64()) as usize;
    on_threads(
        N_OPEN,
        |item| item < n_requests,
        || {
            let mut send = one_after_the_other(address, requests)?;
            Ok(move |item: usize| {
                let due = start + Duration::from_secs_f64(item as f64 / per_second);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                send(item)?;
                Ok(Some(due.elapsed()))
            })
        },
    )
}

/// A connection that sends the request of an item.
fn one_after_the_other(address: SocketAddr, requests: &[Vec<u8>]) -> io::Result<impl FnMut(usize) -> io::Result<()>> {
    let mut client = Client::connect(address)?;
    Ok(move |item: usize| client.send(&requests[item % requests.len()]).map(drop))
}

fn timed(mut work: impl FnMut(usize) -> io::Result<()>) -> impl FnMut(usize) -> io::Result<Option<Duration>> {
    move |item| {
        let begin = Instant::now();
        work(item)?;
        Ok(Some(begin.elapsed()))
    }
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

/// Hands items out to threads as long as there is another one and none has failed, and gathers how long each took that
/// counts.
fn on_threads<W: FnMut(usize) -> io::Result<Option<Duration>>>(
    n_threads: usize,
    is_another: impl Fn(usize) -> bool + Sync,
    make: impl Fn() -> io::Result<W> + Sync,
) -> io::Result<Round> {
    let (next, has_failed, start) = (AtomicUsize::new(0), AtomicBool::new(false), Instant::now());
    let run = || {
        let (mut work, mut latencies_ms) = (make()?, Vec::new());
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if !is_another(item) || has_failed.load(Ordering::Relaxed) {
                return Ok(latencies_ms);
            }
            latencies_ms.extend(work(item)?.map(|latency| latency.as_secs_f64() * 1e3));
        }
    };
    let latencies_ms = std::thread::scope(|scope| {
        let run = || run().inspect_err(|_: &io::Error| has_failed.store(true, Ordering::Relaxed));
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<io::Result<Vec<Vec<f64>>>>()
    })?;
    Ok(Round::new(latencies_ms.concat(), start.elapsed()))
}
