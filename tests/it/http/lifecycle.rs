//! From the first connection to the last: loading, deadlines, callers that hang up, backbones that fail, shutting down.

use std::time::Duration;

use serde_json::json;

use super::feature_rows;
use crate::app::{Fault, Setup, StandIn, TestApp, copy_of_icons30, guard, image, pooled_client, send, try_send};

const CLASSIFY: &str = "/v1/models/icons30/classify";
const DEPTH: &str = "equipoise_queue_depth{model=\"icons30\"}";

/// Starts a request on a task of its own.
fn start(app: &TestApp) -> tokio::task::JoinHandle<crate::app::Answer> {
    tokio::spawn(send(app.post(CLASSIFY).body(image("key", 0))))
}

#[tokio::test]
async fn while_loading_the_server_lives_and_is_not_ready() {
    let app = Setup::new().listen();
    app.get("/livez").await.expect(200);
    let ready = app.get("/readyz").await.expect(503);
    assert_eq!((ready.json(), ready.header("retry-after")), (json!({ "status": "loading" }), Some("1")));
    app.classify("", image("key", 0)).await.problem(503, "loading");
    send(app.post("/v1/classify").body(image("key", 0))).await.problem(503, "loading");
    send(app.post("/v1/models/none/features").body(image("key", 0))).await.problem(503, "loading");
    app.get("/v1/models").await.problem(503, "loading");
    send(app.admin("GET", "heads")).await.problem(503, "loading");
    app.patch("tau", json!({ "tau": 0.5 })).await.problem(503, "loading");
    app.get("/openapi.json").await.expect(200);
    let samples = app.metrics().await;
    assert_eq!(samples.get("equipoise_ready"), 0.0);
    assert_eq!(samples.get("equipoise_rejected_total{reason=\"loading\"}"), 6.0);

    app.server.load().unwrap();
    assert_eq!(app.get("/readyz").await.expect(200).json(), json!({ "status": "ready" }));
    assert_eq!(app.metrics().await.get("equipoise_ready"), 1.0);
    app.classify("", image("key", 0)).await.expect(200);
}

#[tokio::test]
async fn a_request_in_flight_is_finished_on_shutdown() {
    let stand_in = StandIn::new();
    let mut app = Setup::new().start_with(&stand_in);
    stand_in.hold();
    let in_flight = start(&app);
    stand_in.begun(1).await;
    app.begin_shutdown();
    // Until the listener is gone.
    let refused = async { while try_send(app.request("GET", "/livez")).await.is_ok() {} };
    guard("the listener's end", refused).await;
    stand_in.release();
    guard("the answer", in_flight).await.unwrap().expect(200);
    app.shutdown();
}

#[tokio::test]
async fn during_the_shutdown_delay_the_server_is_not_ready_and_still_answers() {
    let delay = std::time::Duration::from_secs(5);
    let mut app = Setup::new().config(move |config| config.shutdown_delay = delay).start();
    app.begin_shutdown();
    let draining = async { while app.get("/readyz").await.status != 503 {} };
    guard("draining", draining).await;
    let ready = app.get("/readyz").await.expect(503);
    assert_eq!((ready.json(), ready.header("retry-after")), (json!({ "status": "draining" }), Some("1")));
    app.get("/livez").await.expect(200);
    app.classify("", image("key", 0)).await.expect(200);
    assert_eq!(app.metrics().await.get("equipoise_ready"), 0.0);
    app.shutdown();
}

#[tokio::test]
async fn a_connection_that_idles_does_not_keep_the_server_from_ending() {
    let app = Setup::new().config(|config| config.shutdown_timeout = std::time::Duration::from_secs(3600)).start();
    let client = pooled_client();
    client.get(format!("{}/livez", app.url)).send().await.unwrap().bytes().await.unwrap();
    let end = tokio::task::spawn_blocking(move || app.shutdown());
    guard("the end of the server", end).await.unwrap();
    drop(client);
}

#[tokio::test]
async fn the_shutdown_timeout_ends_the_server_with_a_request_in_flight() {
    let stand_in = StandIn::new();
    let app = Setup::new().config(|config| config.shutdown_timeout = std::time::Duration::ZERO).start_with(&stand_in);
    stand_in.hold();
    let in_flight = tokio::spawn(try_send(app.post(CLASSIFY).body(image("key", 0))));
    stand_in.begun(1).await;
    let end = tokio::task::spawn_blocking(move || app.shutdown());
    guard("the end of the server", end).await.unwrap();
    assert!(in_flight.await.unwrap().is_err());
    stand_in.release();
}

#[tokio::test]
async fn a_deadline_that_passes_is_504_and_what_waited_is_skipped() {
    let stand_in = StandIn::new();
    let app = Setup::new().config(|config| config.queue_capacity = 2).start_with(&stand_in);
    stand_in.hold();
    let patient = start(&app);
    stand_in.begun(1).await;
    // Features wait for nobody to decode them: they are in the queue until a worker comes by.
    for _ in 0..2 {
        let request = app.post(CLASSIFY).header("x-request-timeout-ms", "50");
        send(request.json(&json!({ "features": feature_rows(1) }))).await.problem(504, "deadline_exceeded");
    }
    // The two hold their places until then: the queue says so, and refuses.
    app.classify("", image("key", 0)).await.problem(503, "overloaded");
    stand_in.release();
    patient.await.unwrap().expect(200);
    app.until("an empty queue", |samples| samples.get(DEPTH) == 0.0).await;
    app.classify("", image("key", 0)).await.expect(200);
    let samples = app.metrics().await;
    assert_eq!(samples.get("equipoise_batch_size_sum{model=\"icons30\"}"), 2.0);
    assert_eq!(samples.get("equipoise_rejected_total{reason=\"deadline_exceeded\"}"), 2.0);
}

#[tokio::test]
async fn a_deadline_that_passes_within_the_backbone_is_504() {
    let stand_in = StandIn::new();
    let app = Setup::new()
        .config(|config| config.max_request_time = std::time::Duration::from_millis(300))
        .start_with(&stand_in);
    stand_in.hold();
    // It asks for more than the server gives.
    let request = app.post(CLASSIFY).header("x-request-timeout-ms", "1000000").body(image("key", 0));
    send(request).await.problem(504, "deadline_exceeded");
    stand_in.release();
    app.classify("", image("key", 0)).await.expect(200);
}

#[tokio::test]
async fn images_of_a_caller_that_hung_up_are_skipped() {
    let stand_in = StandIn::new();
    let app = Setup::new().start_with(&stand_in);
    stand_in.hold();
    let patient = start(&app);
    stand_in.begun(1).await;
    let gone: Vec<_> = (0..3).map(|_| start(&app)).collect();
    app.until("three in the queue", |samples| samples.get(DEPTH) == 3.0).await;
    for request in &gone {
        request.abort();
    }
    // The patient one and the one that asks.
    app.until("the server has noticed", |samples| samples.get("equipoise_requests_in_flight") == 2.0).await;
    stand_in.release();
    patient.await.unwrap().expect(200);
    app.classify("", image("key", 0)).await.expect(200);
    assert_eq!(stand_in.runs(), [1, 1]);
    assert_eq!(app.metrics().await.get(DEPTH), 0.0);
}

#[tokio::test]
async fn no_photo_waits_until_the_next_one_is_decoded() {
    let mut photo = std::io::Cursor::new(Vec::new());
    // So large that no machine decodes it in the time that a batch is decoded for.
    image::DynamicImage::new_rgb8(8000, 6000).write_to(&mut photo, image::ImageFormat::Jpeg).unwrap();
    let photo = photo.into_inner();
    let stand_in = StandIn::new();
    let app = Setup::new().start_with(&stand_in);
    stand_in.hold();
    let first = start(&app);
    stand_in.begun(1).await;
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(send(app.post(CLASSIFY).body(photo.clone())))).collect();
    app.until("three in the queue", |samples| samples.get(DEPTH) == 3.0).await;
    stand_in.release();
    for request in waiting.into_iter().chain([first]) {
        request.await.unwrap().expect(200);
    }
    assert_eq!(stand_in.runs(), [1, 1, 1, 1]);
}

#[tokio::test]
async fn a_full_queue_is_503_at_once_and_free_again_when_a_worker_takes_a_batch() {
    let stand_in = StandIn::new();
    let app = Setup::new().config(|config| config.queue_capacity = 3).start_with(&stand_in);
    stand_in.hold();
    let mut waiting = vec![start(&app)];
    stand_in.begun(1).await;
    waiting.extend((0..3).map(|_| start(&app)));
    app.until("a full queue", |samples| samples.get(DEPTH) == 3.0).await;
    assert_eq!(app.metrics().await.get("equipoise_queue_capacity{model=\"icons30\"}"), 3.0);
    app.classify("", image("key", 0)).await.problem(503, "overloaded");
    app.classify_features("", &feature_rows(1)).await.problem(503, "overloaded");
    stand_in.release();
    for answer in waiting {
        answer.await.unwrap().expect(200);
    }
    assert_eq!(stand_in.runs().iter().sum::<usize>(), 4);
    app.classify_features("", &feature_rows(3)).await.expect(200);
    app.until("an empty queue", |samples| samples.get(DEPTH) == 0.0).await;
    assert_eq!(app.metrics().await.get("equipoise_rejected_total{reason=\"overloaded\"}"), 2.0);
}

#[tokio::test]
async fn a_backbone_that_fails_or_panics_is_500_without_the_cause_and_the_next_request_works() {
    let stand_in = StandIn::new();
    let app = Setup::new().start_with(&stand_in);
    for (fault, code) in [(Fault::Fail, "model_failed"), (Fault::Panic, "worker_lost"), (Fault::Fail, "model_failed")] {
        stand_in.in_run(stand_in.runs().len() + 1, fault);
        let answer = app.classify("", image("key", 0)).await;
        answer.problem(500, code);
        for word in ["finite", "panic", "test", "src/", ".rs"] {
            assert!(!answer.text().contains(word), "{}", answer.text());
        }
        assert_eq!(app.classify("", image("key", 0)).await.predictions(0)[0]["label"], "key");
    }
    app.until("an empty queue", |samples| samples.get(DEPTH) == 0.0).await;
}

#[tokio::test]
async fn a_batch_that_panics_answers_every_request_of_it() {
    let stand_in = StandIn::new();
    let app = Setup::new().start_with(&stand_in);
    stand_in.hold();
    let first = start(&app);
    stand_in.begun(1).await;
    let batch: Vec<_> = (0..3).map(|_| start(&app)).collect();
    app.until("three in the queue", |samples| samples.get(DEPTH) == 3.0).await;
    stand_in.in_run(2, Fault::Panic);
    stand_in.release();
    first.await.unwrap().expect(200);
    let mut failed = 0;
    for answer in batch {
        let answer = answer.await.unwrap();
        if answer.status != 200 {
            answer.problem(500, "worker_lost");
            failed += 1;
        }
    }
    // How many are in it depends on how many were decoded when the worker came by.
    assert_eq!(failed, stand_in.runs()[1]);
    assert_eq!(stand_in.runs().iter().sum::<usize>(), 4);
}

const RESTARTS: [&str; 2] = [
    "equipoise_worker_restarts_total{model=\"icons30\",reason=\"panic\"}",
    "equipoise_worker_restarts_total{model=\"icons30\",reason=\"session\"}",
];
const WORKERS: &str = "equipoise_workers{model=\"icons30\"}";

#[tokio::test]
async fn a_session_that_is_broken_for_batches_alone_is_found_out() {
    let stand_in = StandIn::new();
    let pairs = |config: &mut equipoise::config::Config| {
        config.max_batch_size = Some(2);
        config.max_queue_delay = Duration::from_secs(20);
    };
    let app = Setup::new().config(pairs).start_with(&stand_in);
    stand_in.in_run(1, Fault::BreakBatches);
    for answer in [start(&app), start(&app)] {
        answer.await.unwrap().problem(500, "model_failed");
    }
    app.until("a new session", |samples| RESTARTS.map(|name| samples.get(name)) == [0.0, 1.0]).await;
    for answer in [start(&app), start(&app)] {
        answer.await.unwrap().expect(200);
    }
}

#[tokio::test]
async fn a_worker_that_panicked_or_whose_session_broke_begins_anew() {
    let stand_in = StandIn::new();
    let app = Setup::new().start_with(&stand_in);
    for (fault, code, restarts) in [
        (Fault::Panic, "worker_lost", [1.0, 0.0]),
        (Fault::Break, "model_failed", [1.0, 1.0]),
        (Fault::Panic, "worker_lost", [2.0, 1.0]),
        // Numbers that are no features are not the session's fault.
        (Fault::Fail, "model_failed", [2.0, 1.0]),
    ] {
        stand_in.in_run(stand_in.runs().len() + 1, fault);
        app.classify("", image("key", 0)).await.problem(500, code);
        app.until("a worker", |samples| {
            samples.get(WORKERS) == 1.0 && RESTARTS.map(|name| samples.get(name)) == restarts
        })
        .await;
        assert_eq!(app.classify("", image("key", 0)).await.predictions(0)[0]["label"], "key");
        app.get("/readyz").await.expect(200);
    }
}

#[tokio::test]
async fn a_model_without_a_session_that_works_is_not_ready_until_one_can_be_made() {
    let stand_in = StandIn::new();
    let copy = copy_of_icons30();
    let app = Setup::new().models(&[copy.path()]).start_with(&stand_in);
    let (file, aside) = (copy.path().join("backbone.onnx"), copy.path().join("aside.onnx"));
    std::fs::rename(&file, &aside).unwrap();
    stand_in.in_run(1, Fault::Break);
    app.classify("", image("key", 0)).await.problem(500, "model_failed");
    app.until("no worker", |samples| samples.get(WORKERS) == 0.0).await;
    let ready = app.get("/readyz").await.expect(503);
    assert_eq!((ready.json(), ready.header("retry-after")), (json!({ "status": "failing" }), Some("1")));
    assert_eq!(app.metrics().await.get("equipoise_ready"), 0.0);
    app.get("/livez").await.expect(200);
    app.classify("", image("key", 0)).await.problem(503, "model_unavailable");
    app.classify_features("", &feature_rows(1)).await.problem(503, "model_unavailable");
    // Another model must not take its place.
    std::fs::copy(&aside, &file).unwrap();
    let earlier = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(earlier).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    app.get("/readyz").await.expect(503);
    std::fs::rename(&aside, &file).unwrap();
    guard("ready", async { while app.get("/readyz").await.status != 200 {} }).await;
    assert_eq!(app.classify("", image("key", 0)).await.predictions(0)[0]["label"], "key");
    let samples = app.metrics().await;
    assert_eq!([samples.get("equipoise_ready"), samples.get(WORKERS), samples.get(RESTARTS[1])], [1.0, 1.0, 1.0]);
    assert_eq!(samples.get("equipoise_rejected_total{reason=\"model_unavailable\"}"), 2.0);
}

/// A picture of one colour, as a PNG.
fn square(side: u32) -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(side, side).write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

#[tokio::test]
async fn an_image_of_a_size_that_the_network_cannot_take_is_its_senders_fault_and_costs_nobody_a_session() {
    let copy = copy_of_icons30();
    let toml = std::fs::read_to_string(copy.path().join("model.toml")).unwrap();
    let of_any_size = toml.replace("resize = 36\ncrop = 32\n", "");
    assert_ne!(of_any_size, toml);
    std::fs::write(copy.path().join("model.toml"), of_any_size).unwrap();
    let stand_in = StandIn::new();
    let app = Setup::new().models(&[copy.path()]).start_with(&stand_in);
    stand_in.takes_from(8);
    for (side, reason) in
        [(4, "4 x 4 pixels (height x width): it failed on them, and not on 32 x 32"), (16, "[3,32,32]")]
    {
        let answer = app.classify("", square(side)).await;
        answer.problem(422, "invalid_image");
        assert!(answer.text().contains(reason), "{}", answer.text());
    }
    app.classify("", square(32)).await.expect(200);
    let (kind, body) = crate::app::multipart(&[square(32), square(16)]);
    let answer = send(app.post(CLASSIFY).header("content-type", kind).body(body)).await;
    answer.problem(422, "invalid_image");
    assert!(answer.text().contains("image 1: "), "{}", answer.text());
    let samples = app.metrics().await;
    assert_eq!([samples.get(WORKERS), samples.get(RESTARTS[0]), samples.get(RESTARTS[1])], [1.0, 0.0, 0.0]);
    assert_eq!(samples.get("equipoise_image_errors_total{reason=\"size\"}"), 3.0);
}
