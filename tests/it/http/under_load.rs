//! Settings that change while thousands of requests are under way.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::feature_rows;
use crate::app::{Setup, StandIn, TOKEN, guard, image, multipart, pooled_client, send};

const DEPTH: &str = "equipoise_queue_depth{model=\"icons30\"}";
const TAUS: [f64; 2] = [0.2, 1.4];

#[tokio::test]
async fn a_change_of_tau_under_load_fails_nobody_and_every_answer_is_of_one_setting() {
    // One row a batch sums in one order: equal answers are equal in every digit.
    let app = Setup::new().config(|config| config.max_batch_size = Some(1)).start();
    let rows = feature_rows(1);
    let mut expected = Vec::new();
    for tau in TAUS {
        let results = app.classify_features(&format!("?head=tau&tau={tau}&top_k=30"), &rows).await.results(0);
        expected.push(results[0].clone());
    }
    assert_ne!(expected[0]["predictions"], expected[1]["predictions"]);
    app.patch("tau", json!({ "tau": TAUS[0] })).await.expect(200);

    let client = pooled_client();
    let url = format!("{}/v1/models/icons30/classify?head=tau&top_k=30", app.url);
    let body = serde_json::to_vec(&json!({ "features": rows })).unwrap();
    let ask = async |client: &reqwest::Client| -> Value {
        let request = client.post(&url).header("content-type", "application/json").body(body.clone());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let answer: Value = answer.json().await.unwrap();
        answer["images"][0]["results"][0].clone()
    };
    let readers = (0..16).map(|_| async {
        let mut seen = [0_usize; 2];
        for _ in 0..200 {
            let result = ask(&client).await;
            let which = expected.iter().position(|expected| *expected == result);
            seen[which.unwrap_or_else(|| panic!("of neither setting: {result}"))] += 1;
        }
        seen
    });
    let writer = async {
        for change in 1..=60 {
            let wanted = change % 2;
            let patch = client.patch(format!("{}/admin/v1/models/icons30/heads/tau", app.url)).bearer_auth(TOKEN);
            assert_eq!(patch.json(&json!({ "tau": TAUS[wanted] })).send().await.unwrap().status(), 200);
            // Whoever starts after the answer sees the change.
            assert_eq!(ask(&client).await, expected[wanted], "after change {change}");
        }
    };
    let (seen, ()) = futures_util::future::join(futures_util::future::join_all(readers), writer).await;
    let total = seen.iter().fold([0, 0], |sum, seen| [sum[0] + seen[0], sum[1] + seen[1]]);
    assert_eq!(total[0] + total[1], 3200);
    assert!(total[0] > 0 && total[1] > 0, "{total:?}");
}

#[tokio::test]
async fn heads_that_are_published_and_deleted_under_load_fail_nobody_who_asks_for_another() {
    let app = Setup::new().start();
    let client = pooled_client();
    let file = image("umbrella", 4);
    let labels = |answer: &Value| -> Vec<Value> {
        let results = answer["images"][0]["results"].as_array().unwrap();
        results.iter().map(|result| result["predictions"][0]["label"].clone()).collect()
    };
    let expected = labels(&app.classify("?head=crt,tau", file.clone()).await.expect(200).json());
    let url = format!("{}/v1/models/icons30/classify?head=crt,tau", app.url);
    let readers = (0..4).map(|_| async {
        for _ in 0..50 {
            let answer = client.post(&url).body(file.clone()).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let answer: Value = answer.json().await.unwrap();
            assert_eq!(labels(&answer), expected);
        }
    });
    let writer = async {
        for round in 0..10 {
            app.put_head("passing", super::head_file(round, None)).await.expect(201);
            app.classify_features("?head=passing", &feature_rows(1)).await.expect(200);
            app.delete_head("passing").await.expect(204);
        }
    };
    futures_util::future::join(futures_util::future::join_all(readers), writer).await;
}

#[tokio::test]
async fn bodies_take_no_more_memory_than_they_may_and_small_ones_go_through() {
    let app = Setup::new().config(|config| config.max_bodies_bytes = 1 << 20).start();
    // Not an image, and read to its end before that is known.
    app.classify("", vec![0; 1 << 20]).await.problem(422, "invalid_image");
    app.classify("", vec![0; 2 << 20]).await.problem(503, "overloaded");
    app.classify("", image("key", 0)).await.expect(200);
    assert_eq!(app.metrics().await.get("equipoise_rejected_total{reason=\"overloaded\"}"), 1.0);
}

#[tokio::test]
async fn bodies_whose_callers_hung_up_take_their_room_until_their_bytes_are_gone() {
    let stand_in = StandIn::new();
    let app = Setup::new().config(|config| config.max_bodies_bytes = 1 << 20).start_with(&stand_in);
    let mut large = image("key", 0);
    large.resize(1 << 20, 0);
    let (kind, parts) = multipart(&[large[..1 << 19].to_vec(), large[..1 << 18].to_vec()]);
    let json = json!({ "images": [{ "b64": STANDARD.encode(&large[..3 << 18]) }] }).to_string().into_bytes();
    for (kind, body) in [("image/png", large.clone()), (kind.as_str(), parts), ("application/json", json)] {
        let classify = || app.post("/v1/models/icons30/classify").header("content-type", kind).body(body.clone());
        let n_before = stand_in.runs().len();
        stand_in.hold();
        let held = tokio::spawn(send(app.post("/v1/classify").body(image("key", 0))));
        stand_in.begun(n_before + 1).await;
        let gone = tokio::spawn(send(classify()));
        app.until("the queue", |samples| samples.get(DEPTH) > 0.0).await;
        gone.abort();
        // The held one and the one that asks.
        app.until("the server has noticed", |samples| samples.get("equipoise_requests_in_flight") == 2.0).await;
        send(classify()).await.problem(503, "overloaded");
        stand_in.release();
        held.await.unwrap().expect(200);
        app.until("an empty queue", |samples| samples.get(DEPTH) == 0.0).await;
        send(classify()).await.expect(200);
    }
}

/// A large picture whose file ends before it does: it takes long to find that out.
fn broken_photo() -> Vec<u8> {
    let mut png = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(2000, 2000).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let mut png = png.into_inner();
    png.truncate(png.len() - 100);
    png
}

#[tokio::test]
async fn an_image_does_not_wait_for_the_broken_ones_behind_it() {
    const BROKEN: usize = 30;
    let stand_in = StandIn::new();
    let app = Setup::new().config(|config| config.max_batch_size = Some(64)).start_with(&stand_in);
    stand_in.hold();
    let classify = |body| app.post("/v1/models/icons30/classify").body(body);
    let held = tokio::spawn(send(classify(image("key", 0))));
    stand_in.begun(1).await;
    let depth = |n: usize| app.until("the queue", move |samples| samples.get(DEPTH) == n as f64);
    let good = tokio::spawn(send(classify(image("key", 1))));
    depth(1).await;
    let photo = broken_photo();
    let broken: Vec<_> = (0..BROKEN).map(|_| tokio::spawn(send(classify(photo.clone())))).collect();
    depth(1 + BROKEN).await;
    stand_in.release();
    held.await.unwrap().expect(200);
    guard("the good one", good).await.unwrap().expect(200);
    let unanswered = broken.iter().filter(|one| !one.is_finished()).count();
    assert!(0 < unanswered, "it was answered after all {BROKEN} broken ones");
    for one in broken {
        one.await.unwrap().problem(422, "invalid_image");
    }
}
