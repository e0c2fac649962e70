//! How many images a caller may send.

use equipoise::{
    access::{Role, append_token, new_token},
    config::RateLimit,
};
use serde_json::json;

use super::feature_rows;
use crate::app::{Setup, TestApp, image, multipart, send};

/// So slow that nothing comes back during a test.
const SLOW: f64 = 1e-3;

fn limited(burst: u32) -> Setup {
    Setup::new().config(move |config| config.rate_limit = Some(RateLimit { images_per_second: SLOW, burst }))
}

async fn classify_as(app: &TestApp, header: (&str, &str), n: usize) -> crate::app::Answer {
    let request = app.post("/v1/models/icons30/classify").header(header.0, header.1);
    send(request.json(&json!({ "features": feature_rows(n) }))).await
}

#[tokio::test]
async fn images_and_rows_count_one_each_in_every_form_of_body() {
    let app = limited(7).start();
    app.classify("", image("key", 0)).await.expect(200);
    let (content_type, body) = multipart(&[image("key", 1), image("star", 1)]);
    send(app.post("/v1/classify").header("content-type", content_type).body(body)).await.expect(200);
    app.classify_features("", &feature_rows(2)).await.expect(200);
    send(app.post("/v1/models/icons30/features").body(image("key", 0))).await.expect(200);
    // One is left, which two do not get.
    let answer = app.classify_features("", &feature_rows(2)).await;
    answer.problem(429, "rate_limited");
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((500..=1000).contains(&seconds), "{seconds}");
    app.classify("", image("key", 0)).await.expect(200);
    app.classify("", image("key", 0)).await.problem(429, "rate_limited");
    send(app.post("/v1/models/icons30/features").body(image("key", 0))).await.problem(429, "rate_limited");
    // A body that is nothing is one.
    let app_of_one = limited(1).start();
    send(app_of_one.post("/v1/classify").header("content-type", "application/json").body("{"))
        .await
        .problem(400, "invalid_json");
    app_of_one.classify("", image("key", 0)).await.problem(429, "rate_limited");
    // More than could ever be.
    let detail = app.classify_features("", &feature_rows(8)).await;
    detail.problem(429, "rate_limited");
    // Everything else is not counted.
    app.get("/v1/models").await.expect(200);
    app.patch("tau", json!({ "tau": 0.5 })).await.expect(200);
    assert_eq!(app.metrics().await.get("equipoise_rejected_total{reason=\"rate_limited\"}"), 4.0);
}

#[tokio::test]
async fn a_request_of_more_than_a_burst_never_gets_through() {
    let app = limited(3).start();
    let detail = app.classify_features("", &feature_rows(4)).await.problem(413, "too_many_images");
    assert!(detail.contains('4') && detail.contains('3'), "{detail}");
    app.classify_features("", &feature_rows(3)).await.expect(200);
}

#[tokio::test]
async fn images_come_back_with_time() {
    let limit = RateLimit { images_per_second: 100.0, burst: 1 };
    let app = Setup::new().config(move |config| config.rate_limit = Some(limit)).start();
    for _ in 0..3 {
        let answered = async { while app.classify_features("", &feature_rows(1)).await.status != 200 {} };
        crate::app::guard("an image that comes back", answered).await;
    }
}

#[tokio::test]
async fn each_token_has_a_bucket_of_its_own_and_an_unknown_one_has_none() {
    let setup = limited(1);
    let file = setup.state.path().join("tokens.toml");
    let tokens = ["a", "b"].map(|name| {
        let new = new_token(name, Role::Predict).unwrap();
        append_token(&file, &new.block).unwrap();
        new.token
    });
    let app = setup.config(move |config| {
        config.rate_limit = Some(RateLimit { images_per_second: SLOW, burst: 1 });
        config.tokens_file = Some(file.clone());
    });
    let app = app.start();
    for token in &tokens {
        let header = format!("Bearer {token}");
        classify_as(&app, ("authorization", &header), 1).await.expect(200);
        classify_as(&app, ("authorization", &header), 1).await.problem(429, "rate_limited");
    }
    // Inventing tokens gains nothing.
    classify_as(&app, ("authorization", "Bearer invented-1"), 1).await.expect(200);
    classify_as(&app, ("authorization", "Bearer invented-2"), 1).await.problem(429, "rate_limited");
    app.classify_features("", &feature_rows(1)).await.problem(429, "rate_limited");
}

#[tokio::test]
async fn what_a_caller_says_of_its_address_counts_only_behind_a_trusted_proxy() {
    let app = limited(1).start();
    classify_as(&app, ("x-forwarded-for", "1.1.1.1"), 1).await.expect(200);
    classify_as(&app, ("x-forwarded-for", "2.2.2.2"), 1).await.problem(429, "rate_limited");

    let app = Setup::new().config(|config| {
        config.rate_limit = Some(RateLimit { images_per_second: SLOW, burst: 1 });
        config.trust_forwarded_for = 1;
    });
    let app = app.start();
    classify_as(&app, ("x-forwarded-for", "1.1.1.1"), 1).await.expect(200);
    classify_as(&app, ("x-forwarded-for", "2.2.2.2"), 1).await.expect(200);
    // What the caller wrote there itself stands before what the proxy wrote.
    classify_as(&app, ("x-forwarded-for", "3.3.3.3, 2.2.2.2"), 1).await.problem(429, "rate_limited");
    classify_as(&app, ("x-forwarded-for", "2001:db8::1"), 1).await.expect(200);
    classify_as(&app, ("x-forwarded-for", "2001:db8::2"), 1).await.problem(429, "rate_limited");
    // Around the proxy.
    app.classify_features("", &feature_rows(1)).await.expect(200);
    app.classify_features("", &feature_rows(1)).await.problem(429, "rate_limited");
}
