//! What a comparison found, as tables and as JSON.

use std::iter;

use serde::Serialize;

use crate::{
    rounds::{Round, median},
    servers::Server,
};

/// One model on all servers; equipoise is the first of them.
#[derive(Serialize)]
pub(crate) struct Comparison {
    pub(crate) model: String,
    pub(crate) cores: usize,
    pub(crate) n_images: usize,
    pub(crate) mean_image_bytes: usize,
    pub(crate) n_rounds: usize,
    pub(crate) round_s: f64,
    /// Largest difference of a top probability between equipoise and another server, where the decoders differ.
    pub(crate) jpeg_difference: f64,
    pub(crate) servers: Vec<Measured>,
    pub(crate) beside_the_best_peer: Vec<Ratio>,
}

#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) server: Server,
    pub(crate) closed: Vec<Closed>,
    pub(crate) open: Vec<Open>,
    pub(crate) over_bare_ms: f64,
    pub(crate) resident_bytes: u64,
}

impl Measured {
    /// Nothing measured yet.
    pub(crate) fn new(server: Server) -> Self {
        Self { server, closed: Vec::new(), open: Vec::new(), over_bare_ms: f64::NAN, resident_bytes: 0 }
    }

    /// The most requests that it answered in a second.
    pub(crate) fn saturation(&self) -> f64 {
        self.closed.iter().map(|closed| closed.load.per_second).fold(0.0, f64::max)
    }
}

/// Connections that always have a request under way.
#[derive(Serialize)]
pub(crate) struct Closed {
    pub(crate) concurrency: usize,
    pub(crate) load: Round,
    /// What the server took of the cores for each image, which other programs beside it hardly change.
    pub(crate) core_ms: f64,
    /// The limit, just before the round.
    pub(crate) bare: Round,
    pub(crate) bare_core_ms: f64,
    /// The round beside its own limit.
    pub(crate) of_limit: f64,
    /// What the load generator took.
    pub(crate) client_core_us: f64,
}

impl Closed {
    /// The median of each figure on its own.
    pub(crate) fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(rounds.iter().map(figure).collect());
        let of_rounds = |round: fn(&Self) -> Round| Round::median(&rounds.iter().map(round).collect::<Vec<_>>());
        Self {
            concurrency: rounds[0].concurrency,
            load: of_rounds(|closed| closed.load),
            core_ms: of(|closed| closed.core_ms),
            bare: of_rounds(|closed| closed.bare),
            bare_core_ms: of(|closed| closed.bare_core_ms),
            of_limit: of(|closed| closed.of_limit),
            client_core_us: of(|closed| closed.client_core_us),
        }
    }
}

/// Requests that arrive at a fixed rate.
#[derive(Serialize)]
pub(crate) struct Open {
    pub(crate) rate: &'static str,
    pub(crate) per_second: f64,
    pub(crate) load: Round,
}

/// A figure of equipoise over the best that any other server has.
#[derive(Serialize)]
pub(crate) struct Ratio {
    what: String,
    ratio: f64,
    best_peer: Server,
}

/// Ratios of medians of the first of `servers` to the others'.
pub(crate) fn beside_the_best_peer(servers: &[Measured]) -> Vec<Ratio> {
    let (ours, peers) = servers.split_first().unwrap();
    let ratio = |what: String, figure: &dyn Fn(&Measured) -> f64, is_best: fn(f64, f64) -> bool| {
        let better = |a, b| if is_best(figure(b), figure(a)) { b } else { a };
        let best = peers.iter().reduce(better).unwrap();
        Ratio { what, ratio: figure(ours) / figure(best), best_peer: best.server }
    };
    let (most, least) = (|a: f64, b: f64| a > b, |a: f64, b: f64| a < b);
    let mut ratios = Vec::new();
    for (index, closed) in ours.closed.iter().enumerate() {
        let at = connections(closed.concurrency);
        ratios.push(ratio(format!("throughput, {at}"), &|server| server.closed[index].load.per_second, most));
        ratios.push(ratio(format!("p99, {at}"), &|server| server.closed[index].load.p99_ms, least));
    }
    for (index, open) in ours.open.iter().enumerate() {
        let what = format!("p99, arrivals at {}", open.rate);
        ratios.push(ratio(what, &|server| server.open[index].load.p99_ms, least));
    }
    ratios.push(ratio("resident memory".to_owned(), &|server| server.resident_bytes as f64, least));
    ratios
}

/// Prints the tables, in Markdown.
pub(crate) fn print(comparison: &Comparison) {
    let Comparison { model, cores, n_images, mean_image_bytes, n_rounds, round_s, jpeg_difference, .. } = comparison;
    let servers = &comparison.servers;
    println!(
        "\n### {model}\n\n{n_images} JPEGs of {mean_image_bytes} bytes on average, {cores} cores. Medians of {n_rounds} \
         rounds of {round_s} s, interleaved; servers without a turn were halted. The servers' answers were the same on \
         the same pixels; with each its own JPEG decoder the top probabilities differed by at most {jpeg_difference:.4}.\n"
    );
    println!(
        "| connections | server | images/s | of the limit | p50 ms | p95 ms | p99 ms | core ms per image |\n\
         |---|---|---|---|---|---|---|---|"
    );
    for (index, ours) in servers[0].closed.iter().enumerate() {
        let loads = servers.iter().map(|server| (server.server.name(), &server.closed[index]));
        let rows = loads.map(|(name, closed)| (name, closed.load, closed.of_limit, closed.core_ms));
        for (name, load, of_limit, core_ms) in iter::once(("bare loop", ours.bare, 1.0, ours.bare_core_ms)).chain(rows)
        {
            println!(
                "| {} | {name} | {:.0} | {of_limit:.2} | {} | {core_ms:.2} |",
                ours.concurrency,
                load.per_second,
                latencies(&load)
            );
        }
    }
    println!("\n| arrivals at a rate of | server | requests/s | p50 ms | p95 ms | p99 ms |\n|---|---|---|---|---|---|");
    for index in 0..servers[0].open.len() {
        for server in servers {
            let Open { rate, per_second, load } = &server.open[index];
            println!("| {rate} | {} | {per_second:.0} | {} |", server.server.name(), latencies(load));
        }
    }
    println!("\n| server | resident MB | one at a time, more than bare ms |\n|---|---|---|");
    for server in servers {
        println!(
            "| {} | {:.0} | {:.2} |",
            server.server.name(),
            server.resident_bytes as f64 / 1e6,
            server.over_bare_ms
        );
    }
    println!("\n| equipoise beside the best peer | ratio | the peer |\n|---|---|---|");
    for Ratio { what, ratio, best_peer } in &comparison.beside_the_best_peer {
        println!("| {what} | {ratio:.2} | {} |", best_peer.name());
    }
    let client: Vec<String> = servers[0].closed.iter().map(|closed| format!("{:.0}", closed.client_core_us)).collect();
    println!("\nThe load generator took {} us of a core for each request to equipoise.", client.join(", "));
}

fn latencies(load: &Round) -> String {
    format!("{:.2} | {:.2} | {:.2}", load.p50_ms, load.p95_ms, load.p99_ms)
}

fn connections(n: usize) -> String {
    format!("{n} connection{}", if n == 1 { "" } else { "s" })
}
