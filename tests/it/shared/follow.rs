//! One server changes, the others follow.

use std::time::Duration;

use serde_json::json;

use super::{Store, heads};
use crate::{
    app::{TestApp, guard, send},
    http::{feature_rows, head_file},
};

const FAST: Duration = Duration::from_millis(50);
/// Slower than any test.
const NEVER: Duration = Duration::from_secs(3600);

async fn until_equal(a: &TestApp, b: &TestApp) {
    guard("the same state", async { while heads(a).await != heads(b).await {} }).await;
}

#[tokio::test]
async fn what_one_server_changes_the_others_serve() {
    let store = Store::new();
    let (a, b) = (store.server(FAST).start(), store.server(FAST).start());
    // The second found what the first had written.
    assert_eq!(heads(&a).await, heads(&b).await);
    a.patch("tau", json!({ "tau": 1.25, "bias": "scale" })).await.expect(200);
    a.put_head("mine", head_file(1, None)).await.expect(201);
    a.derive_head("soft", json!({ "kind": "tau_norm", "base": "mine", "tau": 0.3 })).await.expect(201);
    a.delete_head("ncm").await.expect(204);
    a.activate(json!({ "head": "mine" })).await.expect(200);
    until_equal(&a, &b).await;
    let query = "?head=tau,mine,soft,joint";
    let [of_a, of_b] =
        [a.classify_features(query, &feature_rows(2)).await, b.classify_features(query, &feature_rows(2)).await];
    assert_eq!(of_a.json()["images"], of_b.json()["images"]);
    b.classify_features("?head=ncm", &feature_rows(1)).await.problem(404, "head_not_found");
    let of_b = send(b.admin("POST", "rollback")).await.expect(200).json();
    assert_eq!(of_b["head"], "joint");
    until_equal(&a, &b).await;
    // A third comes later, and one comes back.
    b.shutdown();
    let c = store.server(FAST).start();
    assert_eq!(heads(&a).await, heads(&c).await);
    for sample in ["equipoise_state_reachable", "equipoise_state_lag_seconds", "equipoise_state_generation"] {
        assert!(c.metrics().await.0.contains(&format!("{sample}{{model=\"icons30\"}}")));
    }
    assert!(c.metrics().await.get("equipoise_state_lag_seconds{model=\"icons30\"}") < 60.0);
    assert_eq!(c.metrics().await.get("equipoise_state_generation{model=\"icons30\"}"), 7.0);
}

#[tokio::test]
async fn a_request_sees_the_generation_that_it_asks_for_at_once() {
    let store = Store::new();
    let (a, b) = (store.server(NEVER).start(), store.server(NEVER).start());
    let changed = a.patch("tau", json!({ "tau": 1.25 })).await.expect(200);
    let generation = changed.header("x-equipoise-generation").unwrap().to_owned();
    let body = json!({ "features": feature_rows(1) });
    let ask = |generation: String| {
        send(b.post("/v1/models/icons30/classify?head=tau").header("x-min-generation", generation).json(&body))
    };
    assert_eq!(ask("1".to_owned()).await.results(0)[0]["tau"], 0.6);
    let answer = ask(generation.clone()).await;
    assert_eq!(answer.results(0)[0]["tau"], 1.25);
    assert_eq!(answer.header("x-equipoise-generation"), Some(generation.as_str()));
    let far = ask("1000".to_owned()).await;
    far.problem(503, "generation_not_reached");
    // Many who want what is not there ask the store seldom, and nobody waits for long.
    let many = futures_util::future::join_all((0..200).map(|_| ask("1000".to_owned())));
    assert!(guard("all of them", many).await.iter().all(|answer| answer.status == 503));
}

#[tokio::test]
async fn a_change_is_made_on_the_newest_state_wherever_it_is_asked_for() {
    let store = Store::new();
    let (a, b) = (store.server(NEVER).start(), store.server(NEVER).start());
    let tag = |answer: &crate::app::Answer| answer.header("etag").unwrap().to_owned();
    let first = tag(&a.put_head("mine", head_file(1, None)).await.expect(201));
    // The other one has not heard of it.
    b.classify_features("?head=mine", &feature_rows(1)).await.problem(404, "head_not_found");
    let patch = b.admin("PATCH", "heads/mine").header("if-match", &first).json(&json!({ "temperature": 2.0 }));
    let second = tag(&send(patch).await.expect(200));
    let stale = a.admin("PUT", "default-head").header("if-match", &first).json(&json!({ "head": "mine" }));
    send(stale).await.problem(412, "precondition_failed");
    assert_eq!(tag(&a.activate(json!({ "head": "mine" })).await.expect(200)), "\"4\"");
    assert_eq!(second, "\"3\"");
    b.delete_head("mine").await.problem(409, "head_is_default");
    assert_eq!(b.put_head("mine", head_file(2, None)).await.expect(201).json()["version"], 2);
}

#[tokio::test]
async fn while_the_store_is_away_what_there_is_serves_and_says_so() {
    const REACHABLE: &str = "equipoise_state_reachable{model=\"icons30\"}";
    let store = Store::new();
    let Some(folder) = &store.folder else { return };
    let app = store.server(FAST).start();
    app.patch("tau", json!({ "tau": 1.25 })).await.expect(200);
    let (here, away) = (folder.path().join("models"), folder.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    app.until("the store to be missed", |samples| samples.get(REACHABLE) == 0.0).await;
    assert_eq!(app.classify_features("?head=tau", &feature_rows(1)).await.results(0)[0]["tau"], 1.25);
    let before = heads(&app).await;
    app.patch("tau", json!({ "tau": 0.5 })).await.problem(503, "state_unreachable");
    assert_eq!(heads(&app).await, before);
    let is_late = |samples: &crate::app::Samples| samples.get("equipoise_state_lag_seconds{model=\"icons30\"}") > 0.3;
    app.until("the lag to grow", is_late).await;
    app.get("/readyz").await.expect(200);
    // What was written meanwhile would hide what comes back.
    assert!(!here.exists());
    std::fs::rename(&away, &here).unwrap();
    app.until("the store to be back", |samples| samples.get(REACHABLE) == 1.0).await;
    app.patch("tau", json!({ "tau": 0.5 })).await.expect(200);
}
