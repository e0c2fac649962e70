//! The serving line against its own limit, in one run: images a second over HTTP beside a bare loop of the same decoder,
//! resampler and session on the same number of threads; what several heads cost beside one; what a change of tau costs.
//!
//! ```text
//! cargo bench --bench serving                                  icons30, its own test images
//! EQUIPOISE_BENCH_MODEL=DIR cargo bench --bench serving        another model, with 500 x 375 JPEGs made here
//! ```
//!
//! The load generator runs in this process, on the same cores. Rounds of both are interleaved, and the median round counts.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use equipoise::{
    config::{ServeOptions, cores},
    heads::{HeadFile, TensorView, write_safetensors},
    onnx::{self, Backbone, DeviceChoice, Scorer, ScorerSpec, SessionOptions},
    preprocess::{DecodeLimits, Preprocessor},
    registry::ModelDirectory,
    server::Server,
};

const N_ROUNDS: usize = 5;
/// A head of the size of iNaturalist 2018's.
const WIDE: &str = "wide-2048x8142";
const ROUND: Duration = Duration::from_secs(2);

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    serve: ServeOptions,
}

fn main() {
    // Cargo passes `--bench`; a filter is of no use here.
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/icons30");
    let model = std::env::var_os("EQUIPOISE_BENCH_MODEL").map_or(shipped.clone(), PathBuf::from);
    onnx::init(None).unwrap();
    let directory = ModelDirectory::read(&model).unwrap();
    let images = if model == shipped { test_images(&model) } else { photos() };
    let n_bytes: usize = images.iter().map(Vec::len).sum();
    println!(
        "model {}, {} images of {} bytes on average, {} cores",
        directory.name,
        images.len(),
        n_bytes / images.len(),
        cores()
    );

    let state = tempfile::tempdir().unwrap();
    let arguments =
        ["bench", "--listen", "127.0.0.1:0", "--device", "cpu", "--state-dir"].map(std::ffi::OsString::from);
    let wide = wide_model();
    let arguments = arguments.into_iter().chain([state.path().into(), model.clone().into(), wide.path().into()]);
    let config = Options::parse_from(arguments).serve.with_file().unwrap().resolve().unwrap();
    let server = Arc::new(Server::new(config).unwrap());
    server.load().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let token = std::fs::read_to_string(state.path().join("admin-token")).unwrap();
    runtime.spawn({
        let server = Arc::clone(&server);
        async move { server.serve(listener, std::future::pending()).await }
    });

    let path = format!("/v1/models/{}/classify?top_k=5", directory.name);
    let requests: Vec<Vec<u8>> = images.iter().map(|image| request("POST", &path, "", image)).collect();
    let alone = one_by_one(&directory, &images, address, &requests);
    println!("\n| one at a time | p50 ms | p90 ms |\n|---|---|---|");
    for (name, latencies) in [("bare", &alone.bare), ("HTTP", &alone.http), ("HTTP less bare", &alone.added)] {
        println!("| {name} | {:.2} | {:.2} |", quantile(latencies, 0.5), quantile(latencies, 0.9));
    }

    println!(
        "\n| concurrency | bare images/s | bare p50 ms | HTTP images/s | HTTP p50 ms | HTTP p99 ms | HTTP / bare |"
    );
    println!("|---|---|---|---|---|---|---|");
    for concurrency in [8, 32] {
        let (mut bare, mut http) = (Vec::new(), Vec::new());
        for _ in 0..N_ROUNDS {
            bare.push(bare_loop(&directory, &images, concurrency.min(cores())));
            http.push(http_loop(address, &requests, concurrency));
        }
        let (bare, http) = (median(bare), median(http));
        println!(
            "| {concurrency} | {:.0} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} |",
            bare.rate,
            bare.p50,
            http.rate,
            http.p50,
            http.p99,
            http.rate / bare.rate
        );
    }

    let heads: Vec<&String> = directory.heads.keys().collect();
    let all = heads.iter().map(|head| head.as_str()).collect::<Vec<_>>().join(",");
    let all_path = format!("{path}&head={all}");
    let of_all: Vec<Vec<u8>> = images.iter().map(|image| request("POST", &all_path, "", image)).collect();
    println!("\n| concurrency | one head p50 ms | {} heads p50 ms | ratio |\n|---|---|---|---|", heads.len());
    for concurrency in [1, 8] {
        let (mut one, mut several) = (Vec::new(), Vec::new());
        for _ in 0..N_ROUNDS {
            one.push(http_loop(address, &requests, concurrency));
            several.push(http_loop(address, &of_all, concurrency));
        }
        let (one, several) = (median(one), median(several));
        println!("| {concurrency} | {:.3} | {:.3} | {:.2} |", one.p50, several.p50, several.p50 / one.p50);
    }

    let authorization = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", token.trim());
    println!("\n| PATCH of tau | p50 ms | p99 ms |\n|---|---|---|");
    for model in [&directory.name, WIDE] {
        let path = format!("/admin/v1/models/{model}/heads/tau");
        let patches: Vec<Vec<u8>> = (0..10)
            .map(|step| {
                request("PATCH", &path, &authorization, format!("{{\"tau\": {}}}", f64::from(step) / 10.0).as_bytes())
            })
            .collect();
        let patched = median((0..N_ROUNDS).map(|_| http_loop(address, &patches, 1)).collect());
        println!("| {model} | {:.2} | {:.2} |", patched.p50, patched.p99);
    }
    beside_a_fit(&server, address, &directory.name, &requests, &authorization);
}

/// Latencies at half of the rate that the server reaches, alone and while a cRT fit runs in the same process.
///
/// Requests are sent when their time has come, whether or not earlier ones are answered, and timed from then: a server that
/// falls behind cannot hide it.
fn beside_a_fit(server: &Server, address: SocketAddr, model: &str, requests: &[Vec<u8>], authorization: &str) {
    let loaded = server.app().registry.model(Some(model)).unwrap();
    let (dim, n_classes, n_rows) = (loaded.feature_dim(), loaded.labels().len(), 20_000);
    let features: Vec<f32> = (0..n_rows * dim).map(|i| ((i * 7919 % 10_007) as f32) / 10_007.0).collect();
    let labels: Vec<i64> = (0..n_rows).map(|row| (row % n_classes) as i64).collect();
    let tensors = [
        ("features".to_owned(), TensorView::F32(&features, vec![n_rows, dim])),
        ("labels".to_owned(), TensorView::I64(&labels, vec![n_rows])),
    ];
    let mut file = Vec::new();
    write_safetensors(&mut file, &std::collections::BTreeMap::new(), &tensors.into()).unwrap();
    let admin = format!("/admin/v1/models/{model}");
    let octets = authorization.replace("application/json", "application/octet-stream");
    let mut client = Client::connect(address);
    let id =
        |answer: &str| serde_json::from_str::<serde_json::Value>(answer).unwrap()["id"].as_str().unwrap().to_owned();
    let set = id(&client.send(&request("POST", &format!("{admin}/feature-sets?name=bench"), &octets, &file)));
    let rate = http_loop(address, requests, 8).rate / 2.0;
    let alone: Vec<Round> = (0..3).map(|_| open_loop(address, requests, rate)).collect();
    let body = format!(
        "{{\"method\": \"crt\", \"feature_set\": \"{set}\", \"head\": \"bench\", \"params\": {{\"epochs\": 100000}}}}"
    );
    let fit = id(&client.send(&request("POST", &format!("{admin}/fits"), authorization, body.as_bytes())));
    std::thread::sleep(Duration::from_secs(1));
    let beside: Vec<Round> = (0..3).map(|_| open_loop(address, requests, rate)).collect();
    client.send(&request("DELETE", &format!("{admin}/fits/{fit}"), authorization, b""));
    let (alone, beside) = (median(alone), median(beside));
    println!("\n| at {rate:.0} requests/s | p50 ms | p99 ms |\n|---|---|---|");
    println!("| alone | {:.2} | {:.2} |", alone.p50, alone.p99);
    println!("| beside a cRT fit | {:.2} | {:.2} |", beside.p50, beside.p99);
    println!("| ratio | {:.2} | {:.2} |", beside.p50 / alone.p50, beside.p99 / alone.p99);
}

/// Sends requests at a fixed rate for a round, over as many connections as it takes.
fn open_loop(address: SocketAddr, requests: &[Vec<u8>], rate: f64) -> Round {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let n_total = (rate * 2.0 * ROUND.as_secs_f64()) as usize;
    let latencies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut latencies) = (Client::connect(address), Vec::new());
                    loop {
                        let item = next.fetch_add(1, Ordering::Relaxed);
                        if item >= n_total {
                            return latencies;
                        }
                        let due = start + Duration::from_secs_f64(item as f64 / rate);
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        client.send(&requests[item % requests.len()]);
                        latencies.push(due.elapsed().as_secs_f64() * 1e3);
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<f64>>()
    });
    Round::new(latencies, start.elapsed())
}

/// What one round measured.
#[derive(Clone, Copy)]
struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
}

impl Round {
    fn new(mut latencies_ms: Vec<f64>, elapsed: Duration) -> Self {
        latencies_ms.sort_by(f64::total_cmp);
        let rate = latencies_ms.len() as f64 / elapsed.as_secs_f64();
        Self { rate, p50: quantile(&latencies_ms, 0.5), p99: quantile(&latencies_ms, 0.99) }
    }
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}

fn median(mut rounds: Vec<Round>) -> Round {
    rounds.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    rounds[rounds.len() / 2]
}

/// Runs `work` on `n_threads` threads for a round; each call gets the number of an item.
fn closed_loop<W: FnMut(usize)>(n_threads: usize, make: impl Fn() -> W + Sync) -> Round {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let latencies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut work = make();
                    let mut latencies = Vec::new();
                    while start.elapsed() < ROUND {
                        let begin = Instant::now();
                        work(next.fetch_add(1, Ordering::Relaxed));
                        latencies.push(begin.elapsed().as_secs_f64() * 1e3);
                    }
                    latencies
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<f64>>()
    });
    Round::new(latencies, start.elapsed())
}

/// Decode, resample and run to the raw scores, and nothing else: no softmax, no queue, no HTTP.
struct Bare {
    session: Backbone,
    head: Scorer,
    preprocessor: Preprocessor,
    height: usize,
    width: usize,
}

impl Bare {
    fn load(directory: &ModelDirectory) -> Self {
        let options = SessionOptions { device: DeviceChoice::Cpu, threads: 1, cuda_memory_limit_bytes: None };
        let preprocessor = Preprocessor::new(directory.preprocess.clone(), DecodeLimits::default()).unwrap();
        let (height, width) = preprocessor.output_size().unwrap();
        let mut session = Backbone::load_file(&directory.backbone, &options).unwrap();
        session.warm_up(&[1], height, width).unwrap();
        let joint = std::fs::read(directory.path.join("heads/joint.safetensors")).unwrap();
        let joint = HeadFile::parse(&joint).unwrap().head;
        let head = Scorer::build(&ScorerSpec::of(joint.weights()), &options).unwrap();
        Self { session, head, preprocessor, height, width }
    }

    fn run(&mut self, image: &[u8]) {
        let tensor = self.preprocessor.run(image).unwrap();
        let features = self.session.run(&tensor.pixels, 1, self.height, self.width).unwrap();
        self.head.run(&features).unwrap();
    }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: vec![0; 1 << 16] }
    }

    /// Sends a request and gives back the body of the answer.
    fn send(&mut self, request: &[u8]) -> String {
        self.stream.write_all(request).unwrap();
        read_answer(&mut self.stream, &mut self.buffer)
    }
}

/// Latencies in milliseconds, sorted.
struct OneByOne {
    bare: Vec<f64>,
    http: Vec<f64>,
    added: Vec<f64>,
}

/// Each image bare and then over HTTP, one after the other, so that both see the same machine: on a shared host the speed
/// of a core drifts by a quarter within a second, far more than what is to be measured.
fn one_by_one(directory: &ModelDirectory, images: &[Vec<u8>], address: SocketAddr, requests: &[Vec<u8>]) -> OneByOne {
    let (mut bare, mut client) = (Bare::load(directory), Client::connect(address));
    let timed = |work: &mut dyn FnMut()| {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64() * 1e3
    };
    let mut result = OneByOne { bare: Vec::new(), http: Vec::new(), added: Vec::new() };
    let start = Instant::now();
    for item in (0..images.len()).cycle() {
        if start.elapsed() > ROUND * 5 {
            break;
        }
        let alone = timed(&mut || bare.run(&images[item]));
        let served = timed(&mut || _ = client.send(&requests[item]));
        result.bare.push(alone);
        result.http.push(served);
        result.added.push(served - alone);
    }
    for latencies in [&mut result.bare, &mut result.http, &mut result.added] {
        latencies.sort_by(f64::total_cmp);
    }
    result
}

fn bare_loop(directory: &ModelDirectory, images: &[Vec<u8>], n_threads: usize) -> Round {
    let sessions: Vec<_> = (0..n_threads).map(|_| Bare::load(directory)).collect();
    let sessions = std::sync::Mutex::new(sessions);
    closed_loop(n_threads, || {
        let mut bare = sessions.lock().unwrap().pop().unwrap();
        move |item| bare.run(&images[item % images.len()])
    })
}

fn http_loop(address: SocketAddr, requests: &[Vec<u8>], concurrency: usize) -> Round {
    closed_loop(concurrency, || {
        let mut client = Client::connect(address);
        move |item| _ = client.send(&requests[item % requests.len()])
    })
}

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Reads one answer, checks that it is a success, and gives back its body.
fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> String {
    let mut length = 0;
    loop {
        if length == buffer.len() {
            buffer.resize(length * 2, 0);
        }
        let n = stream.read(&mut buffer[length..]).unwrap();
        assert!(n > 0, "the server closed the connection");
        length += n;
        let Some(end) = buffer[..length].windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&buffer[..end]).unwrap();
        let n_body: usize = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse().unwrap())
            })
            .unwrap();
        if length >= end + 4 + n_body {
            let body = String::from_utf8_lossy(&buffer[end + 4..length]);
            assert!(head.starts_with("HTTP/1.1 2"), "{head}\n{body}");
            return body.into_owned();
        }
    }
}

/// A model directory with 2048 features and 8142 classes: what a change of tau costs does not depend on the backbone.
fn wide_model() -> tempfile::TempDir {
    let (feature_dim, n_classes) = (2048, 8142);
    let directory = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx/backbone_wide.onnx");
    std::fs::copy(source, directory.path().join("backbone.onnx")).unwrap();
    let labels: String = (0..n_classes).map(|class| format!("class {class}\n")).collect();
    std::fs::write(directory.path().join("labels.txt"), labels).unwrap();
    let toml = format!(
        "name = \"{WIDE}\"\nbackbone = \"backbone.onnx\"\n[preprocess]\nresize = [8, 8]\n\
         interpolation = \"nearest\"\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n\
         [classes]\nlabels = \"labels.txt\"\n[heads]\ndefault = \"joint\"\n\
         [heads.joint]\nfile = \"heads/joint.safetensors\"\n[heads.tau]\nkind = \"tau_norm\"\nbase = \"joint\"\n"
    );
    std::fs::write(directory.path().join("model.toml"), toml).unwrap();
    std::fs::create_dir(directory.path().join("heads")).unwrap();
    let weight: Vec<f32> = (0..feature_dim * n_classes).map(|i| ((i * 31 % 1009) as f32 - 504.0) / 1e4).collect();
    let metadata = [
        ("format", "equipoise-head/1".to_owned()),
        ("kind", "joint".to_owned()),
        ("classes", n_classes.to_string()),
        ("feature_dim", feature_dim.to_string()),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let tensors = [("weight".to_owned(), TensorView::F32(&weight, vec![n_classes, feature_dim]))].into();
    let mut head = Vec::new();
    write_safetensors(&mut head, &metadata, &tensors).unwrap();
    std::fs::write(directory.path().join("heads/joint.safetensors"), head).unwrap();
    directory
}

fn test_images(model: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(model.join("test"))
        .unwrap()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files.iter().step_by(9).map(|file| std::fs::read(file).unwrap()).collect()
}

/// JPEGs of 500 x 375 with structure at every scale, so that decoding costs what it costs on a photo.
fn photos() -> Vec<Vec<u8>> {
    (0..16u32)
        .map(|seed| {
            let mut noise = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
            let picture = image::RgbImage::from_fn(500, 375, |x, y| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (x, y, s) = (x as f32, y as f32, seed as f32 + 1.0);
                let wave =
                    |k: f32| 127.0 + 60.0 * ((x / (k * s)).sin() + (y / k).cos()) + (noise >> 29) as f32 * 4.0 - 14.0;
                image::Rgb([wave(7.0) as u8, wave(19.0) as u8, wave(53.0) as u8])
            });
            let mut bytes = Vec::new();
            image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&picture).unwrap();
            bytes
        })
        .collect()
}
