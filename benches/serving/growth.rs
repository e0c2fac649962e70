//! What more of one thing costs, everything else being equal: pixels, heads, models, classes, connections.
//!
//! The server is a process of its own; the load comes from this one, on the same cores. Every point of a curve has its turn
//! in each of several rounds, each time another one first, and each figure is the median of its rounds: the speed of a
//! shared machine drifts. Where all points share a server, its resident memory is taken in the first round, in which the
//! points grow. Every answer is checked: that it is one, and that it has as many predictions as were asked for.

use std::{
    fmt::Write,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use equipoise::{config::cores, heads::HeadFile, onnx, registry::ModelDirectory};
use serde_json::{Map, Value, json};

use crate::{
    bare::{Bare, one_by_one},
    client::{Answer, Client, request},
    images::{photo_jpeg, photo_jpegs, test_images},
    load::http_loop,
    made::{Heads, MadeModel, copies, with_heads},
    memory::resident_bytes,
    rounds::{Round, closed_loop, in_turn, median, quantile},
    servers::{Server, ServerProcess, Setting, end_with_ctrl_c},
};

/// Connections where nothing else is said: enough to keep all cores at work.
const N_CONNECTIONS: usize = 8;
const TOP_K: usize = 5;

const SIZES: [(u32, u32); 7] = [(32, 32), (96, 96), (224, 224), (500, 375), (1024, 768), (2048, 1536), (4000, 3000)];
const HEADS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Those of EfficientNet-Lite0 on ImageNet.
const HEAD_SIZE: (usize, usize) = (1000, 1280);
const MODELS: [usize; 5] = [1, 2, 4, 8, 16];
const CLASSES: [usize; 5] = [10, 100, 1000, 10_000, 100_000];
const CLASSES_DIM: usize = 96;
const CONNECTIONS: [usize; 6] = [1, 8, 32, 128, 512, 1024];

#[derive(Args)]
pub(crate) struct GrowthOptions {
    /// A model directory to measure heads on as well, beside a backbone that computes nothing; its heads are made here
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// The one curve to measure [default: all]
    #[arg(long, value_name = "CURVE")]
    only: Option<What>,

    /// Rounds of each point
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,

    /// Length of a round in seconds, of each thing that is measured in it
    #[arg(long, value_name = "S", default_value_t = 0.5)]
    round_s: f64,

    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    Pixels,
    Heads,
    Models,
    Classes,
    Connections,
}

pub(crate) fn run(options: &GrowthOptions) {
    assert!(Path::new("/proc/self/smaps").exists(), "memory is read from /proc, which is Linux's");
    end_with_ctrl_c();
    onnx::init(None).unwrap();
    let growth = Growth { n_rounds: options.rounds, round: Duration::from_secs_f64(options.round_s) };
    let mut curves = Vec::new();
    let mut add = |curve: Curve| {
        if !options.json {
            print!("{}", curve.markdown());
        }
        curves.push(curve.json());
    };
    let is_wanted = |what| options.only.is_none_or(|only| only == what);
    if !options.json {
        println!("{} cores, medians of {} rounds of {} s", cores(), options.rounds, options.round_s);
    }
    if is_wanted(What::Pixels) {
        add(growth.pixels());
    }
    if is_wanted(What::Heads) {
        add(growth.heads(None));
        if let Some(model) = &options.model {
            add(growth.heads(Some(model)));
        }
    }
    if is_wanted(What::Models) {
        add(growth.models());
    }
    if is_wanted(What::Classes) {
        add(growth.classes());
    }
    if is_wanted(What::Connections) {
        add(growth.connections());
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&curves).unwrap());
    }
}

/// A name for programs, one for people, and how many digits after the point.
type Column = (&'static str, &'static str, usize);

struct Curve {
    what: String,
    /// What grows.
    axis: &'static str,
    columns: Vec<Column>,
    points: Vec<(String, Vec<f64>)>,
}

impl Curve {
    /// The median of each figure of each point on its own.
    fn new(
        what: impl Into<String>,
        axis: &'static str,
        columns: &[Column],
        points: impl IntoIterator<Item = (impl ToString, Vec<Vec<f64>>)>,
    ) -> Self {
        let median_of = |rounds: &[Vec<f64>], column: usize| median(rounds.iter().map(|round| round[column]).collect());
        let point = |(at, rounds): (_, Vec<Vec<f64>>)| {
            (ToString::to_string(&at), (0..columns.len()).map(|column| median_of(&rounds, column)).collect())
        };
        let points = points.into_iter().map(|(at, rounds)| point((at.to_string(), rounds))).collect();
        Self { what: what.into(), axis, columns: columns.to_vec(), points }
    }

    /// Adds a column: one of the others over that of the first point.
    fn with_ratio(mut self, of: &'static str, key: &'static str, title: &'static str) -> Self {
        let column = self.columns.iter().position(|(key, ..)| *key == of).unwrap();
        let first = self.points[0].1[column];
        self.columns.insert(column + 1, (key, title, 2));
        for (_, figures) in &mut self.points {
            figures.insert(column + 1, figures[column] / first);
        }
        self
    }

    fn markdown(&self) -> String {
        let titles: Vec<&str> = self.columns.iter().map(|(_, title, _)| *title).collect();
        let mut out = format!("\n{}\n\n| {} | {} |\n|---|", self.what, self.axis, titles.join(" | "));
        out += &"---|".repeat(titles.len());
        for (at, figures) in &self.points {
            write!(out, "\n| {at} |").unwrap();
            for (figure, (_, _, decimals)) in figures.iter().zip(&self.columns) {
                write!(out, " {figure:.decimals$} |").unwrap();
            }
        }
        out + "\n"
    }

    fn json(&self) -> Value {
        let point = |(at, figures): &(String, Vec<f64>)| {
            let mut point = Map::from_iter([(self.axis.to_owned(), json!(at))]);
            point
                .extend(self.columns.iter().zip(figures).map(|((key, ..), figure)| ((*key).to_owned(), json!(figure))));
            Value::Object(point)
        };
        json!({ "what": self.what, "points": self.points.iter().map(point).collect::<Vec<_>>() })
    }
}

const PER_SECOND: Column = ("images_per_second", "images/s", 0);
const P50: Column = ("p50_ms", "p50 ms", 2);
const P99: Column = ("p99_ms", "p99 ms", 2);
const ALONE: Column = ("one_connection_p50_ms", "p50 ms of one connection", 2);
const RESIDENT: Column = ("resident_mb", "resident MB", 0);
const START: Column = ("start_s", "start s", 2);

/// A server, and how to ask it.
struct Asked {
    process: ServerProcess,
    address: SocketAddr,
}

impl Asked {
    fn start(models: &[&Path], image: &[u8]) -> Self {
        let setting =
            Setting { models: models.iter().map(|model| (*model).to_owned()).collect(), tune: false, python: None };
        let process = ServerProcess::start(Server::Equipoise, &setting, image);
        Self { address: process.address, process }
    }

    /// Every image to each of `paths` in turn.
    fn requests(paths: &[String], images: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let n = paths.len() * images.len();
        (0..n).map(|item| request("POST", &paths[item % paths.len()], "", &images[item % images.len()])).collect()
    }

    fn load(&self, requests: &[Vec<u8>], n_connections: usize, duration: Duration, n_heads: usize) -> Round {
        let make = || {
            let mut client = Client::connect(self.address)?;
            Ok(move |item: usize| check(&client.ask(&requests[item % requests.len()])?, n_heads).map(|()| true))
        };
        closed_loop(n_connections, duration, make).unwrap()
    }

    /// As [`Self::load`], but a request may be refused; it is sent again when the answer says, or at once. Also gives how many
    /// were.
    fn overload(&self, requests: &[Vec<u8>], n_connections: usize, duration: Duration, waits: bool) -> (Round, f64) {
        let (n_refused, end) = (AtomicUsize::new(0), Instant::now() + duration);
        let make = || {
            let mut client = Client::connect(self.address)?;
            let n_refused = &n_refused;
            Ok(move |item: usize| {
                let answer = client.ask(&requests[item % requests.len()])?;
                if answer.status != 503 {
                    return check(&answer, 1).map(|()| true);
                }
                n_refused.fetch_add(1, Ordering::Relaxed);
                let pause = answer.retry_after().ok_or_else(|| io::Error::other("a refusal without Retry-After"))?;
                if waits {
                    std::thread::sleep(pause.min(end.saturating_duration_since(Instant::now())));
                }
                Ok(false)
            })
        };
        let round = closed_loop(n_connections, duration, make).unwrap();
        (round, n_refused.into_inner() as f64)
    }

    fn resident_mb(&self) -> f64 {
        resident_bytes(self.process.group()) as f64 / 1e6
    }

    /// Median time that the server spent in the heads of a request, by its own word.
    fn head_ms(&self, requests: &[Vec<u8>]) -> f64 {
        let mut client = Client::connect(self.address).unwrap();
        let mut head_ms = |request: &Vec<u8>| {
            let answer: Value = serde_json::from_slice(client.send(request).unwrap()).unwrap();
            answer["timing_ms"]["head"].as_f64().unwrap()
        };
        median(requests.iter().cycle().take(30).map(&mut head_ms).collect())
    }
}

/// That an answer is one, with the predictions of so many heads.
fn check(answer: &Answer<'_>, n_heads: usize) -> io::Result<()> {
    const PREDICTION: &[u8] = b"{\"class\":";
    let n_predictions = answer.body.windows(PREDICTION.len()).filter(|window| *window == PREDICTION).count();
    if (answer.status, n_predictions) == (200, n_heads * TOP_K) {
        return Ok(());
    }
    let (status, body) = (answer.status, String::from_utf8_lossy(answer.body));
    Err(io::Error::other(format!("{status} with {n_predictions} predictions: {body}")))
}

fn path(model: &str, heads: &[String]) -> String {
    format!("/v1/models/{model}/classify?top_k={TOP_K}&head={}", heads.join(","))
}

struct Growth {
    n_rounds: usize,
    round: Duration,
}

impl Growth {
    fn in_turn(&self, n: usize, measure: impl FnMut(usize) -> Vec<f64>) -> Vec<Vec<Vec<f64>>> {
        in_turn(n, self.n_rounds, measure)
    }

    fn pixels(&self) -> Curve {
        let model = crate::shipped_model();
        let images = SIZES.map(|(width, height)| vec![photo_jpeg(width, height)]);
        let directory = ModelDirectory::read(&model).unwrap();
        let server = Asked::start(&[&model], &images[0][0]);
        let (mut bare, mut resident_mb) = (Bare::load(&directory), [None; SIZES.len()]);
        let paths = [path(&directory.name, &["joint".to_owned()])];
        let rounds = self.in_turn(SIZES.len(), |index| {
            let images = &images[index];
            let requests = Asked::requests(&paths, images);
            let load = server.load(&requests, N_CONNECTIONS, self.round * 2, 1);
            let one = one_by_one(&mut bare, images, server.address, &requests, self.round).unwrap().sorted();
            let (start, mut prepare_ms) = (Instant::now(), Vec::new());
            while start.elapsed() < self.round / 2 {
                let begin = Instant::now();
                bare.prepare(&images[0]);
                prepare_ms.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            let (bare_ms, added_ms) = (quantile(&one.bare_ms, 0.5), quantile(&one.added_ms, 0.5));
            let resident_mb = *resident_mb[index].get_or_insert_with(|| server.resident_mb());
            vec![
                images[0].len() as f64 / 1e3,
                load.per_second,
                load.p50_ms,
                load.p99_ms,
                median(prepare_ms),
                bare_ms,
                added_ms,
                resident_mb,
            ]
        });
        let columns = [
            ("kilobytes", "kB", 1),
            PER_SECOND,
            P50,
            P99,
            ("prepare_ms", "decode and resize ms", 2),
            ("bare_ms", "bare ms", 2),
            ("added_ms", "HTTP less bare ms", 2),
            RESIDENT,
        ];
        let what =
            format!("Pixels: icons30, one JPEG, {N_CONNECTIONS} connections; bare and HTTP less bare one at a time");
        Curve::new(
            what,
            "image",
            &columns,
            SIZES.map(|(width, height)| format!("{width} x {height}")).into_iter().zip(rounds),
        )
    }

    /// On a backbone that computes nothing, or on that of a model.
    fn heads(&self, model: Option<&Path>) -> Curve {
        let heads = Heads { own: 32, taus: 32 };
        let (name, size, images, directory);
        match model {
            None => {
                (name, size, images) = ("made".to_owned(), HEAD_SIZE, test_images(&crate::shipped_model()));
                directory = MadeModel { name: "made", feature_dim: size.1, n_classes: size.0, heads }.write();
            }
            Some(model) => {
                let read = ModelDirectory::read(model).unwrap();
                let joint = std::fs::read(model.join("heads/joint.safetensors")).unwrap();
                let joint = HeadFile::parse(&joint).unwrap().head;
                (name, size, images) = (read.name, (joint.num_classes(), joint.feature_dim()), photo_jpegs());
                directory = with_heads(model, size, heads);
            }
        }
        let server = Asked::start(&[directory.path()], &images[0]);
        let (own, taus) = (heads.own_names(), heads.tau_names());
        let mut points: Vec<(String, &[String])> = HEADS.iter().map(|&n| (n.to_string(), &own[..n])).collect();
        points.push(("32 taus of one head".to_owned(), &taus));
        let rounds = self.in_turn(points.len(), |index| {
            let heads = points[index].1;
            let requests = Asked::requests(&[path(&name, heads)], &images);
            let alone = server.load(&requests, 1, self.round, heads.len());
            let loaded = server.load(&requests, N_CONNECTIONS, self.round, heads.len());
            vec![alone.p50_ms, server.head_ms(&requests), loaded.per_second, loaded.p50_ms]
        });
        let columns = [ALONE, ("head_ms", "of it heads", 2), PER_SECOND, P50];
        let what = format!(
            "Heads on one request: {name}, {} classes, {} features, {N_CONNECTIONS} connections; {:.0} MB resident",
            size.0,
            size.1,
            server.resident_mb()
        );
        Curve::new(what, "heads", &columns, points.into_iter().map(|(at, _)| at).zip(rounds))
            .with_ratio("one_connection_p50_ms", "one_connection_ratio", "ratio")
            .with_ratio("p50_ms", "ratio", "ratio")
    }

    fn models(&self) -> Curve {
        let model = crate::shipped_model();
        let images = test_images(&model);
        let copies = copies(&model, MODELS[MODELS.len() - 1]);
        let rounds = self.in_turn(MODELS.len(), |index| {
            let copies = &copies[..MODELS[index]];
            let server = Asked::start(&copies.iter().map(|(_, copy)| copy.path()).collect::<Vec<_>>(), &images[0]);
            let paths: Vec<String> = copies.iter().map(|(name, _)| path(name, &["joint".to_owned()])).collect();
            let load = server.load(&Asked::requests(&paths, &images), N_CONNECTIONS, self.round * 2, 1);
            vec![
                load.per_second,
                load.p50_ms,
                load.p99_ms,
                server.resident_mb(),
                server.process.started_in.as_secs_f64(),
            ]
        });
        let what =
            format!("Loaded models: copies of icons30, {N_CONNECTIONS} connections, requests to all of them in turn");
        Curve::new(what, "models", &[PER_SECOND, P50, P99, RESIDENT, START], MODELS.into_iter().zip(rounds))
    }

    fn classes(&self) -> Curve {
        let images = test_images(&crate::shipped_model());
        let heads = Heads { own: 1, taus: 1 };
        let start = |n_classes: usize| {
            let directory = MadeModel { name: "made", feature_dim: CLASSES_DIM, n_classes, heads }.write();
            Asked::start(&[directory.path()], &images[0])
        };
        let servers = CLASSES.map(start);
        let requests = Asked::requests(&[path("made", &["joint".to_owned()])], &images);
        let rounds = self.in_turn(CLASSES.len(), |index| {
            let server = &servers[index];
            let alone = server.load(&requests, 1, self.round, 1);
            let loaded = server.load(&requests, N_CONNECTIONS, self.round, 1);
            let patches: Vec<Vec<u8>> = (0..10)
                .map(|step| {
                    let body = format!("{{\"tau\": {}}}", f64::from(step) / 10.0);
                    let path = "/admin/v1/models/made/heads/tau-0";
                    request("PATCH", path, &server.process.admin_headers(), body.as_bytes())
                })
                .collect();
            let patched = http_loop(server.address, &patches, 1, self.round).unwrap();
            vec![
                alone.p50_ms,
                server.head_ms(&requests),
                loaded.per_second,
                loaded.p50_ms,
                patched.p50_ms,
                server.resident_mb(),
                server.process.started_in.as_secs_f64(),
            ]
        });
        let patch = ("patch_p50_ms", "PATCH of tau p50 ms", 2);
        let columns = [ALONE, ("head_ms", "of it head", 3), PER_SECOND, P50, patch, RESIDENT, START];
        let what = format!("Classes: {CLASSES_DIM} features, the {TOP_K} best, {N_CONNECTIONS} connections");
        Curve::new(what, "classes", &columns, CLASSES.into_iter().zip(rounds))
    }

    fn connections(&self) -> Curve {
        let model = crate::shipped_model();
        let images = test_images(&model);
        let server = Asked::start(&[&model], &images[0]);
        let requests = Asked::requests(&[path("icons30", &["joint".to_owned()])], &images);
        let mut points: Vec<(String, usize, bool)> = CONNECTIONS.map(|n| (n.to_string(), n, true)).into();
        points.push(("1024, refused ones again at once".to_owned(), 1024, false));
        let mut resident_mb = vec![None; points.len()];
        let rounds = self.in_turn(points.len(), |index| {
            let (_, n, waits) = points[index];
            let (load, n_refused) = server.overload(&requests, n, self.round * 4, waits);
            let share = n_refused / (n_refused + load.requests) * 100.0;
            let resident_mb = *resident_mb[index].get_or_insert_with(|| server.resident_mb());
            vec![load.per_second, load.p50_ms, load.p99_ms, share, resident_mb]
        });
        let refused = ("refused_percent", "refused %", 1);
        let what = "Connections: icons30, a request always under way on each; room for 512 images";
        let at = points.into_iter().map(|(at, ..)| at);
        Curve::new(what, "connections", &[PER_SECOND, P50, P99, refused, RESIDENT], at.zip(rounds))
    }
}
