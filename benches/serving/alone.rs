//! HTTP beside the bare loop, with the load in this process, on the same cores; what several heads cost beside one; what a
//! change of tau costs; requests beside a fit. Rounds of both are interleaved, and the median round counts.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use clap::Parser;
use equipoise::{
    config::{ServeOptions, cores},
    heads::{TensorView, write_safetensors},
    onnx,
    registry::ModelDirectory,
    server::Server,
};

use crate::{
    bare::{Bare, bare_loop, one_by_one},
    client::{Client, request},
    images::{has_test_images, photo_jpegs, test_images},
    load::{http_loop, open_loop},
    made::{Heads, MadeModel},
    rounds::{Round, median, quantile},
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

pub(crate) fn run(model: &Path) {
    onnx::init(None).unwrap();
    let directory = ModelDirectory::read(model).unwrap();
    let images = if has_test_images(model) { test_images(model) } else { photo_jpegs() };
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
    // What a change of tau costs does not depend on the backbone.
    let wide = MadeModel { name: WIDE, feature_dim: 2048, n_classes: 8142, heads: Heads { own: 1, taus: 1 } }.write();
    let arguments = arguments.into_iter().chain([state.path().into(), model.into(), wide.path().into()]);
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
    let mut lines: Vec<Bare> = (0..cores()).map(|_| Bare::load(&directory)).collect();
    let alone = one_by_one(&mut lines[0], &images, address, &requests, ROUND * 5).unwrap().sorted();
    println!("\n| one at a time | p50 ms | p90 ms |\n|---|---|---|");
    for (name, latencies) in [("bare", &alone.bare_ms), ("HTTP", &alone.http_ms), ("HTTP less bare", &alone.added_ms)] {
        println!("| {name} | {:.2} | {:.2} |", quantile(latencies, 0.5), quantile(latencies, 0.9));
    }

    println!(
        "\n| concurrency | bare images/s | bare p50 ms | HTTP images/s | HTTP p50 ms | HTTP p99 ms | HTTP / bare |"
    );
    println!("|---|---|---|---|---|---|---|");
    for concurrency in [8, 32] {
        let (mut bare, mut http) = (Vec::new(), Vec::new());
        for _ in 0..N_ROUNDS {
            bare.push(bare_loop(&mut lines, &images, ROUND));
            http.push(http_loop(address, &requests, concurrency, ROUND).unwrap());
        }
        let (bare, http) = (Round::median(&bare), Round::median(&http));
        println!(
            "| {concurrency} | {:.0} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} |",
            bare.per_second,
            bare.p50_ms,
            http.per_second,
            http.p50_ms,
            http.p99_ms,
            http.per_second / bare.per_second
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
            one.push(http_loop(address, &requests, concurrency, ROUND).unwrap().p50_ms);
            several.push(http_loop(address, &of_all, concurrency, ROUND).unwrap().p50_ms);
        }
        let (one, several) = (median(one), median(several));
        println!("| {concurrency} | {one:.3} | {several:.3} | {:.2} |", several / one);
    }

    let authorization = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", token.trim());
    println!("\n| PATCH of tau | p50 ms | p99 ms |\n|---|---|---|");
    for (model, head) in [(directory.name.as_str(), "tau"), (WIDE, "tau-0")] {
        let path = format!("/admin/v1/models/{model}/heads/{head}");
        let patches: Vec<Vec<u8>> = (0..10)
            .map(|step| {
                request("PATCH", &path, &authorization, format!("{{\"tau\": {}}}", f64::from(step) / 10.0).as_bytes())
            })
            .collect();
        let rounds: Vec<Round> = (0..N_ROUNDS).map(|_| http_loop(address, &patches, 1, ROUND).unwrap()).collect();
        let patched = Round::median(&rounds);
        println!("| {model} | {:.2} | {:.2} |", patched.p50_ms, patched.p99_ms);
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
    let mut client = Client::connect(address).unwrap();
    let id =
        |answer: &[u8]| serde_json::from_slice::<serde_json::Value>(answer).unwrap()["id"].as_str().unwrap().to_owned();
    let upload = request("POST", &format!("{admin}/feature-sets?name=bench"), &octets, &file);
    let set = id(client.send(&upload).unwrap());
    let rate = http_loop(address, requests, 8, ROUND).unwrap().per_second / 2.0;
    let rounds = || (0..3).map(|_| open_loop(address, requests, rate, ROUND * 2).unwrap()).collect::<Vec<_>>();
    let alone = Round::median(&rounds());
    let body = format!(
        "{{\"method\": \"crt\", \"feature_set\": \"{set}\", \"head\": \"bench\", \"params\": {{\"epochs\": 100000}}}}"
    );
    let start = request("POST", &format!("{admin}/fits"), authorization, body.as_bytes());
    let fit = id(client.send(&start).unwrap());
    std::thread::sleep(Duration::from_secs(1));
    let beside = Round::median(&rounds());
    client.send(&request("DELETE", &format!("{admin}/fits/{fit}"), authorization, b"")).unwrap();
    println!("\n| at {rate:.0} requests/s | p50 ms | p99 ms |\n|---|---|---|");
    println!("| alone | {:.2} | {:.2} |", alone.p50_ms, alone.p99_ms);
    println!("| beside a cRT fit | {:.2} | {:.2} |", beside.p50_ms, beside.p99_ms);
    println!("| ratio | {:.2} | {:.2} |", beside.p50_ms / alone.p50_ms, beside.p99_ms / alone.p99_ms);
}
