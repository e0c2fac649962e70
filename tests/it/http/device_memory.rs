//! A device whose memory runs out: batches in halves, what is counted, and what one image too large does.

use std::time::Duration;

use equipoise::onnx::DeviceMemory;

use crate::app::{Setup, StandIn, TestApp, copy_of_icons30, guard, image, send};

const CLASSIFY: &str = "/v1/models/icons30/classify";
const OUT_OF_MEMORY: &str = "equipoise_out_of_memory_total{model=\"icons30\"}";
const WORKERS: &str = "equipoise_workers{model=\"icons30\"}";
const CLASSES: [&str; 8] = ["key", "star", "book", "bell", "umbrella", "printer", "key", "star"];

/// The best class of eight images, and its probability, each asked for by a request of its own in one batch.
async fn answers_of_a_batch(app: &TestApp) -> Vec<(String, f64)> {
    let requests = CLASSES
        .iter()
        .enumerate()
        .map(|(index, class)| tokio::spawn(send(app.post(CLASSIFY).body(image(class, index / 6)))));
    let mut answers = Vec::new();
    for request in requests.collect::<Vec<_>>() {
        let best = request.await.unwrap().expect(200).predictions(0)[0].clone();
        answers.push((best["label"].as_str().unwrap().to_owned(), best["probability"].as_f64().unwrap()));
    }
    answers
}

#[tokio::test]
async fn a_batch_that_does_not_fit_is_answered_in_halves_each_request_its_own() {
    let stand_in = StandIn::new();
    let full_batches = |config: &mut equipoise::config::Config| {
        config.max_batch_size = Some(8);
        config.max_queue_delay = Duration::from_secs(20);
    };
    let app = Setup::new().config(full_batches).start_with(&stand_in);
    let expected = answers_of_a_batch(&app).await;
    assert_eq!(stand_in.runs(), [8]);
    assert_eq!(app.metrics().await.get(OUT_OF_MEMORY), 0.0);

    stand_in.has_memory_for(3);
    for ((label, probability), (expected_label, expected_probability)) in
        answers_of_a_batch(&app).await.into_iter().zip(expected)
    {
        assert_eq!(label, expected_label);
        assert!(
            (probability - expected_probability).abs() < 1e-5,
            "{label}: {probability}, not {expected_probability}"
        );
    }
    assert_eq!(stand_in.runs(), [8, 8, 4, 2, 2, 4, 2, 2]);
    assert_eq!(stand_in.sparing_runs(), [4, 2, 2, 4, 2, 2], "the halves leave nothing on the device");
    let samples = app.metrics().await;
    assert_eq!((samples.get(OUT_OF_MEMORY), samples.get(WORKERS)), (3.0, 1.0));
    // What was split is one batch all the same.
    assert_eq!(samples.get("equipoise_batch_size_count{model=\"icons30\"}"), 2.0);
}

#[tokio::test]
async fn where_not_even_one_image_fits_the_session_is_made_again_and_until_then_the_model_is_not_ready() {
    let stand_in = StandIn::new();
    let copy = copy_of_icons30();
    let app = Setup::new().models(&[copy.path()]).start_with(&stand_in);
    let (file, aside) = (copy.path().join("backbone.onnx"), copy.path().join("aside.onnx"));
    std::fs::rename(&file, &aside).unwrap();
    stand_in.holds(DeviceMemory { in_use: 100, reserved: 300, limit: Some(1000) });
    stand_in.has_memory_for(0);
    app.classify("", image("key", 0)).await.problem(500, "model_failed");
    app.until("no worker", |samples| samples.get(WORKERS) == 0.0).await;
    app.get("/readyz").await.expect(503);
    app.classify("", image("key", 0)).await.problem(503, "model_unavailable");
    let samples = app.metrics().await;
    // The image, and the black one that was tried after it.
    assert_eq!(samples.get(OUT_OF_MEMORY), 2.0);
    // The broken session is gone before the next is made: nothing is held.
    assert_eq!(["in_use", "reserved", "limit"].map(|kind| samples.get(&held(kind))), [0.0; 3]);

    stand_in.has_memory_for(8);
    std::fs::rename(&aside, &file).unwrap();
    guard("ready", async { while app.get("/readyz").await.status != 200 {} }).await;
    assert_eq!(app.classify("", image("key", 0)).await.predictions(0)[0]["label"], "key");
    let restarts = "equipoise_worker_restarts_total{model=\"icons30\",reason=\"session\"}";
    let samples = app.metrics().await;
    assert_eq!((samples.get(restarts), samples.get(&held("in_use"))), (1.0, 100.0));
}

fn held(kind: &str) -> String {
    format!("equipoise_device_memory_bytes{{kind=\"{kind}\",model=\"icons30\"}}")
}

#[tokio::test]
async fn memory_on_a_device_is_told_after_each_batch_and_without_a_device_not_at_all() {
    let stand_in = StandIn::new();
    let app = Setup::new().start_with(&stand_in);
    app.classify("", image("key", 0)).await.expect(200);
    assert!(!app.metrics().await.families().contains(&"equipoise_device_memory_bytes"));
    for (held_now, expected) in [
        (DeviceMemory { in_use: 100, reserved: 300, limit: None }, [100.0, 300.0]),
        (DeviceMemory { in_use: 50, reserved: 400, limit: None }, [50.0, 400.0]),
    ] {
        stand_in.holds(held_now);
        app.classify("", image("key", 0)).await.expect(200);
        app.until("it is told", |samples| ["in_use", "reserved"].map(|kind| samples.get(&held(kind))) == expected)
            .await;
    }
    assert!(!app.metrics().await.0.contains("kind=\"limit\",model"), "there is no limit");
}
