//! The same load on several servers in turn.
//!
//! All of them are started, and checked to give the same answers; then only the one that has its turn runs, and the others
//! are halted, so that what their workers do while idle costs nobody anything. Each turn is a round: a bare loop, a moment
//! to warm up, the load. Rounds of all servers are interleaved, each time with another one first, and the median counts.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use equipoise::{config::cores, onnx, registry::ModelDirectory};

use crate::{
    bare::{Bare, bare_loop, one_by_one},
    images::{Images, has_test_images},
    load::{http_loop, open_loop},
    memory::{core_seconds, own_core_seconds, resident_bytes},
    plot,
    report::{Closed, Comparison, Measured, Open, beside_the_best_peer, print},
    rounds::{Round, in_turn, median},
    servers::{Best, Server, ServerProcess, Setting, end_with_ctrl_c},
};

const CONCURRENCIES: [usize; 3] = [1, 8, 32];
/// Load before each round that does not count: a server that was halted finds its caches cold.
const WARM_UP: Duration = Duration::from_millis(200);
/// Of probabilities, where all decoders give the same pixels.
const TOLERANCE: f64 = 1e-4;
/// Where they do not: decoders of JPEG differ by up to 3 of 255.
const JPEG_TOLERANCE: f64 = 2e-2;

#[derive(Args)]
pub(crate) struct BesideOptions {
    /// Model directories [default: icons30]
    #[arg(long = "model", value_name = "DIR")]
    models: Vec<PathBuf>,

    /// A Python with the packages of benches/peers/requirements.txt
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,

    /// Send so many requests to equipoise alone, and say what each leaves behind in memory, instead of comparing
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) requests: usize,

    /// Rounds of each server in each measurement
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Length of a round in seconds [default: 2.5, and 4 for models without test images, whose photos are larger]
    #[arg(long, value_name = "S")]
    round_s: Option<f64>,

    /// Print JSON instead of tables
    #[arg(long)]
    pub(crate) json: bool,

    /// Folder for the plots, one of each model
    #[arg(long, value_name = "DIR", default_value = "docs")]
    plots: PathBuf,
}

impl BesideOptions {
    pub(crate) fn models(&self) -> Vec<PathBuf> {
        if self.models.is_empty() { vec![crate::shipped_model()] } else { self.models.clone() }
    }

    fn round(&self, model: &Path) -> Duration {
        let default = if has_test_images(model) { 2.5 } else { 4.0 };
        Duration::from_secs_f64(self.round_s.unwrap_or(default))
    }
}

pub(crate) fn run(options: &BesideOptions) {
    assert!(Path::new("/proc/self/smaps").exists(), "memory is read from /proc, which is Linux's");
    end_with_ctrl_c();
    onnx::init(None).unwrap();
    let mut comparisons = Vec::new();
    for model in options.models() {
        let comparison = compare(options, &model);
        let file = options.plots.join(format!("bench-serving-{}.svg", comparison.model));
        std::fs::write(&file, plot::svg(&comparison)).unwrap();
        eprintln!("wrote {}", file.display());
        if !options.json {
            print(&comparison);
        }
        comparisons.push(comparison);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&comparisons).unwrap());
    }
}

/// The servers of one model, all halted but the one whose turn it is.
struct Field {
    n_rounds: usize,
    round: Duration,
    images: Images,
    servers: Vec<Entrant>,
}

struct Entrant {
    process: ServerProcess,
    requests: Vec<Vec<u8>>,
}

fn compare(options: &BesideOptions, model: &Path) -> Comparison {
    let directory = ModelDirectory::read(model).unwrap();
    let round = options.round(model);
    let mut field = Field { n_rounds: options.rounds, round, images: Images::of(model), servers: Vec::new() };
    let jpeg_difference =
        field.start(&Setting { models: vec![model.to_owned()], tune: true, python: options.python.clone() });
    let mut lines: Vec<Bare> = (0..cores()).map(|_| Bare::load(&directory)).collect();

    let mut servers: Vec<Measured> = Server::ALL.map(Measured::new).into();
    for concurrency in CONCURRENCIES {
        eprintln!("{}: {concurrency} connections", directory.name);
        let closed = field.closed(concurrency, &mut lines);
        servers.iter_mut().zip(closed).for_each(|(server, closed)| server.closed.push(closed));
    }
    let saturation: Vec<f64> = servers.iter().map(Measured::saturation).collect();
    let slowest = saturation.iter().copied().fold(f64::INFINITY, f64::min);
    for (rate, per_second) in [
        ("half of the slowest server's", vec![slowest * 0.5; servers.len()]),
        ("0.8 of its own", saturation.iter().map(|own| own * 0.8).collect()),
    ] {
        eprintln!("{}: arrivals at {rate}", directory.name);
        let open = field.open(rate, &per_second);
        servers.iter_mut().zip(open).for_each(|(server, open)| server.open.push(open));
    }
    eprintln!("{}: one at a time", directory.name);
    for (server, over_bare_ms) in servers.iter_mut().zip(field.over_bare(&mut lines[0])) {
        server.over_bare_ms = over_bare_ms;
    }
    for (server, entrant) in servers.iter_mut().zip(&field.servers) {
        server.resident_bytes = resident_bytes(entrant.process.group());
    }
    Comparison {
        model: directory.name,
        cores: cores(),
        n_images: field.images.jpegs.len(),
        mean_image_bytes: field.images.mean_bytes(),
        n_rounds: field.n_rounds,
        round_s: round.as_secs_f64(),
        jpeg_difference,
        beside_the_best_peer: beside_the_best_peer(&servers),
        servers,
    }
}

impl Field {
    /// Starts one server after the other, holds its answers against those of the first, and halts it. Gives back the largest
    /// difference of a probability on the JPEGs.
    fn start(&mut self, setting: &Setting) -> f64 {
        let (mut of_pngs, mut of_jpegs, mut difference) = (Vec::new(), Vec::new(), 0.0f64);
        for server in Server::ALL {
            eprintln!("starting {}", server.name());
            let process = ServerProcess::start(server, setting, &self.images.jpegs[0]);
            let ask = |images: &[Vec<u8>]| images.iter().map(|image| process.best(image)).collect::<Vec<_>>();
            let (pngs, jpegs) = (ask(&self.images.pngs), ask(&self.images.jpegs));
            if server == Server::Equipoise {
                (of_pngs, of_jpegs) = (pngs, jpegs);
            } else {
                same_answers(server, &of_pngs, &pngs, TOLERANCE);
                difference = difference.max(same_answers(server, &of_jpegs, &jpegs, JPEG_TOLERANCE));
            }
            let requests: Vec<_> = self.images.jpegs.iter().map(|image| process.request(image)).collect();
            let entrant = Entrant { process, requests };
            entrant.running(|| http_loop(entrant.process.address, &entrant.requests, 32, self.round));
            self.servers.push(entrant);
        }
        difference
    }

    /// Gives every server its turn in every round; the results by server.
    fn in_turn<T>(&self, mut measure: impl FnMut(&Entrant, usize) -> T) -> Vec<Vec<T>> {
        in_turn(self.servers.len(), self.n_rounds, |index| measure(&self.servers[index], index))
    }

    /// Connections that always have a request under way, each round after one of the bare loop.
    fn closed(&self, concurrency: usize, lines: &mut [Bare]) -> Vec<Closed> {
        let n_lines = concurrency.min(lines.len());
        let rounds = self.in_turn(|server, _| {
            let own_before = own_core_seconds();
            let bare = bare_loop(&mut lines[..n_lines], &self.images.jpegs, self.round / 2);
            let bare_seconds = own_core_seconds() - own_before;
            server.running(|| {
                let group = server.process.group();
                let (before, own_before) = (core_seconds(group), own_core_seconds());
                let load = http_loop(server.process.address, &server.requests, concurrency, self.round)?;
                Ok(Closed {
                    concurrency,
                    load,
                    core_ms: (core_seconds(group) - before) / load.requests * 1e3,
                    bare,
                    bare_core_ms: bare_seconds / bare.requests * 1e3,
                    of_limit: load.per_second / bare.per_second,
                    client_core_us: (own_core_seconds() - own_before) / load.requests * 1e6,
                })
            })
        });
        rounds.into_iter().map(|rounds| Closed::median(&rounds)).collect()
    }

    /// Requests at a fixed rate for each server.
    fn open(&self, rate: &'static str, per_second: &[f64]) -> Vec<Open> {
        let rounds = self.in_turn(|server, index| {
            server.running(|| open_loop(server.process.address, &server.requests, per_second[index], self.round))
        });
        let of_server = |(rounds, per_second): (Vec<Round>, &f64)| Open {
            rate,
            per_second: *per_second,
            load: Round::median(&rounds),
        };
        rounds.into_iter().zip(per_second).map(of_server).collect()
    }

    /// What each server adds to the bare line, in milliseconds: the median of differences image by image.
    fn over_bare(&self, line: &mut Bare) -> Vec<f64> {
        let images = &self.images.jpegs;
        let rounds = self.in_turn(|server, _| {
            let address = server.process.address;
            server.running(|| one_by_one(line, images, address, &server.requests, self.round / 2)).added_ms
        });
        rounds.into_iter().map(|rounds| median(rounds.concat())).collect()
    }
}

impl Entrant {
    /// Runs `load` while the server is not halted. A request that fails ends the comparison.
    fn running<T>(&self, load: impl FnOnce() -> io::Result<T>) -> T {
        self.process.resume();
        let result = http_loop(self.process.address, &self.requests, cores(), WARM_UP).and_then(|_| load());
        self.process.halt();
        result.unwrap_or_else(|error| panic!("{}: {error}", self.process.server.name()))
    }
}

/// The largest difference of a probability.
///
/// # Panics
/// If it is above `tolerance`, or any class is another.
fn same_answers(server: Server, ours: &[Best], theirs: &[Best], tolerance: f64) -> f64 {
    let mut largest = 0.0f64;
    for (index, (our, their)) in ours.iter().zip(theirs).enumerate() {
        let difference = (our.probability - their.probability).abs();
        assert!(
            our.class == their.class && difference <= tolerance,
            "image {index}: equipoise says {our:?}, {} says {their:?}: they do not serve the same model",
            server.name()
        );
        largest = largest.max(difference);
    }
    largest
}
