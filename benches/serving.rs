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
    onnx::{self, Backbone, DeviceChoice, SessionOptions},
    preprocess::{DecodeLimits, Preprocessor},
    registry::ModelDirectory,
    server::Server,
};

const N_ROUNDS: usize = 5;
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
    let arguments = arguments.into_iter().chain([state.path().into(), model.clone().into()]);
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
    println!(
        "\n| concurrency | bare images/s | bare p50 ms | HTTP images/s | HTTP p50 ms | HTTP p99 ms | HTTP / bare |"
    );
    println!("|---|---|---|---|---|---|---|");
    for concurrency in [1, 8, 32] {
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
    let path = format!("/admin/v1/models/{}/heads/tau", directory.name);
    let patches: Vec<Vec<u8>> = (0..10)
        .map(|step| {
            request("PATCH", &path, &authorization, format!("{{\"tau\": {}}}", f64::from(step) / 10.0).as_bytes())
        })
        .collect();
    let patched = median((0..N_ROUNDS).map(|_| http_loop(address, &patches, 1)).collect());
    println!("\nPATCH of tau: p50 {:.2} ms, p99 {:.2} ms", patched.p50, patched.p99);
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
        let quantile = |q: f64| latencies_ms[((latencies_ms.len() - 1) as f64 * q) as usize];
        Self { rate: latencies_ms.len() as f64 / elapsed.as_secs_f64(), p50: quantile(0.5), p99: quantile(0.99) }
    }
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

/// Decode, resample and run, and nothing else: no head, no queue, no HTTP.
fn bare_loop(directory: &ModelDirectory, images: &[Vec<u8>], n_threads: usize) -> Round {
    let options = SessionOptions { device: DeviceChoice::Cpu, threads: 1, cuda_memory_limit_bytes: None };
    let preprocessor = Preprocessor::new(directory.preprocess.clone(), DecodeLimits::default()).unwrap();
    let (height, width) = preprocessor.output_size().unwrap();
    let sessions: Vec<_> = (0..n_threads)
        .map(|_| {
            let mut session = Backbone::load_file(&directory.backbone, &options).unwrap();
            session.warm_up(&[1], height, width).unwrap();
            session
        })
        .collect();
    let sessions = std::sync::Mutex::new(sessions);
    closed_loop(n_threads, || {
        let mut session = sessions.lock().unwrap().pop().unwrap();
        let preprocessor = preprocessor.clone();
        move |item| {
            let tensor = preprocessor.run(&images[item % images.len()]).unwrap();
            session.run(&tensor.pixels, 1, height, width).unwrap();
        }
    })
}

fn http_loop(address: SocketAddr, requests: &[Vec<u8>], concurrency: usize) -> Round {
    closed_loop(concurrency, || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut buffer = vec![0; 1 << 16];
        move |item| {
            stream.write_all(&requests[item % requests.len()]).unwrap();
            read_answer(&mut stream, &mut buffer);
        }
    })
}

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Reads one answer and checks that it is a 200.
fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) {
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
            assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{}", String::from_utf8_lossy(&buffer[end..length]));
            return;
        }
    }
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
