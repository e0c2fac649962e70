//! Who changed what when, the way back, and changes that are made at one generation or not at all.

use serde_json::{Value, json};

use super::{feature_rows, head_file};
use crate::app::{Answer, Setup, TOKEN, TestApp, send};
use crate::schema::violations;

pub(crate) async fn audit(app: &TestApp, query: &str) -> Value {
    let path = format!("/admin/v1/audit{query}");
    let page = send(app.request("GET", &path).bearer_auth(TOKEN)).await.expect(200).json();
    let api: Value = serde_json::from_str(include_str!("../../../src/http/openapi.json")).unwrap();
    let wrong = violations(&api, &api["components"]["schemas"]["AuditPage"], &page);
    assert!(wrong.is_empty(), "{wrong:#?}");
    page
}

pub(super) async fn roll_back(app: &TestApp) -> Answer {
    send(app.admin("POST", "rollback")).await
}

fn generation(answer: &Answer) -> u64 {
    let generation = answer.header("x-equipoise-generation").unwrap();
    assert_eq!(answer.header("etag"), Some(format!("\"{generation}\"").as_str()));
    generation.parse().unwrap()
}

fn actions(page: &Value) -> Vec<&str> {
    page["entries"].as_array().unwrap().iter().map(|entry| entry["change"]["action"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_rollback_goes_back_through_the_defaults_and_their_settings() {
    let setup = Setup::new();
    let app = setup.start();
    app.patch("tau", json!({ "tau": 0.3 })).await.expect(200);
    app.activate(json!({ "head": "tau" })).await.expect(200);
    app.activate(json!({ "head": "crt" })).await.expect(200);
    // The way back restores how it was served as the default, and leaves others alone.
    app.patch("tau", json!({ "tau": 1.9 })).await.expect(200);
    app.patch("joint", json!({ "temperature": 3.0 })).await.expect(200);
    let back = roll_back(&app).await.expect(200).json();
    assert_eq!((&back["head"], &back["default"], &back["settings"]["tau"]), (&json!("tau"), &json!(true), &json!(0.3)));
    let answer = app.classify_features("", &feature_rows(1)).await.results(0)[0].clone();
    assert_eq!((&answer["head"], &answer["tau"]), (&json!("tau"), &json!(0.3)));
    app.shutdown();
    let app = setup.start();
    let back = roll_back(&app).await.expect(200).json();
    assert_eq!((&back["head"], &back["settings"]["temperature"]), (&json!("joint"), &json!(1.0)));
    let list = send(app.admin("GET", "heads")).await.expect(200);
    roll_back(&app).await.problem(409, "no_previous_default");
    assert_eq!(send(app.admin("GET", "heads")).await.body, list.body);
    let newest = audit(&app, "?limit=1").await["entries"][0].clone();
    assert_eq!(newest["change"]["action"], "rolled_back");
    assert_eq!(newest["change"]["before"], json!({ "head": "tau", "version": 1 }));
    assert_eq!(newest["change"]["after"], json!({ "head": "joint", "version": 1 }));
    assert_eq!(newest["change"]["to_generation"], 2);
}

#[tokio::test]
async fn a_rollback_passes_over_what_was_deleted() {
    let app = Setup::new().start();
    for head in ["ncm", "lws", "ncm", "crt"] {
        app.activate(json!({ "head": head })).await.expect(200);
    }
    app.delete_head("ncm").await.expect(204);
    assert_eq!(roll_back(&app).await.expect(200).json()["head"], "lws");
    assert_eq!(roll_back(&app).await.expect(200).json()["head"], "joint");
    roll_back(&app).await.problem(409, "no_previous_default");
}

#[tokio::test]
async fn the_audit_tells_every_change_newest_first_and_in_pages() {
    let setup = Setup::new();
    let app = setup.start();
    app.patch("tau", json!({ "tau": 0.3 })).await.expect(200);
    app.put_head("mine", head_file(1, None)).await.expect(201);
    app.activate(json!({ "head": "mine" })).await.expect(200);
    roll_back(&app).await.expect(200);
    app.delete_head("mine").await.expect(204);
    app.patch("tau", json!({ "tau": 99 })).await.problem(422, "invalid_setting");
    let page = audit(&app, "").await;
    assert_eq!(actions(&page), ["deleted", "rolled_back", "activated", "published", "patched", "imported"]);
    assert_eq!(page["next"], Value::Null);
    let entries = page["entries"].as_array().unwrap();
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry["model"], "icons30");
        assert_eq!(entry["author"], if index == 5 { "server" } else { "admin" });
        assert_eq!(entry["generation"], 6 - index);
        assert_eq!(entry["parent"], if index == 5 { Value::Null } else { json!(5 - index) });
        let time = entry["time"].as_str().unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
        assert!(index == 0 || time <= entries[index - 1]["time"].as_str().unwrap());
    }
    let patched = json!({ "action": "patched", "head": "tau", "version": 1,
        "before": { "tau": 0.6, "bias": "drop", "temperature": 1.0 },
        "after": { "tau": 0.3, "bias": "drop", "temperature": 1.0 } });
    assert_eq!(entries[4]["change"], patched);
    // Pages join up to the whole.
    for limit in 1..=6 {
        let (mut joined, mut query) = (Vec::new(), format!("?model=icons30&limit={limit}"));
        loop {
            let page = audit(&app, &query).await;
            joined.extend(page["entries"].as_array().unwrap().clone());
            let Some(next) = page["next"].as_str() else { break };
            query = format!("?model=icons30&limit={limit}&before={next}");
        }
        assert_eq!(&joined, entries);
    }
    for (query, status, code) in [
        ("?limit=0", 422, "invalid_query"),
        ("?limit=1001", 422, "invalid_query"),
        ("?before=yesterday", 422, "invalid_query"),
        ("?what=1", 422, "invalid_query"),
        ("?model=none", 404, "model_not_found"),
    ] {
        let path = format!("/admin/v1/audit{query}");
        send(app.request("GET", &path).bearer_auth(TOKEN)).await.problem(status, code);
    }
    send(app.request("GET", "/admin/v1/audit")).await.problem(401, "unauthorized");
}

#[tokio::test]
async fn feature_sets_and_fits_are_in_the_audit() {
    let app = Setup::new().start();
    let train = std::fs::read(crate::app::icons30().join("features/val.npz")).unwrap();
    for status in [201, 200] {
        send(app.admin("POST", "feature-sets?name=val").body(train.clone())).await.expect(status);
    }
    let set = send(app.admin("POST", "feature-sets?name=other").body(train)).await.expect(200).json()["id"].clone();
    let body = json!({ "method": "crt", "feature_set": set, "head": "slow",
        "params": { "epochs": 100_000, "batch_size": 8 } });
    let fit = send(app.admin("POST", "fits").json(&body)).await.expect(202).json()["id"].clone();
    send(app.admin("DELETE", &format!("fits/{}", fit.as_str().unwrap()))).await.expect(202);
    let delete = || send(app.admin("DELETE", &format!("feature-sets/{}", set.as_str().unwrap())));
    crate::app::guard("the end of the fit", async { while delete().await.status != 204 {} }).await;
    let page = audit(&app, "").await;
    assert_eq!(
        actions(&page),
        [
            "feature_set_deleted",
            "fit_cancelled",
            "fit_created",
            "feature_set_uploaded",
            "feature_set_uploaded",
            "imported"
        ]
    );
    let entries = page["entries"].as_array().unwrap();
    assert_eq!((&entries[2]["change"]["id"], &entries[2]["change"]["head"]), (&fit, &json!("slow")));
    assert_eq!((&entries[3]["change"]["name"], &entries[3]["generation"]), (&json!("other"), &Value::Null));
    let first = audit(&app, "?limit=2").await;
    let second = audit(&app, &format!("?limit=10&before={}", first["next"].as_str().unwrap())).await;
    assert_eq!(second["entries"].as_array().unwrap(), &entries[2..]);
}

#[tokio::test]
async fn no_generation_is_forgotten_by_itself() {
    const CHANGES: usize = 130;
    let app = Setup::new().start();
    for change in 0..CHANGES {
        app.patch("tau", json!({ "tau": change as f64 / 100.0 })).await.expect(200);
    }
    let page = audit(&app, "?limit=1000").await;
    let entries = page["entries"].as_array().unwrap();
    assert_eq!(entries.len(), CHANGES + 1);
    for (index, entry) in entries[..CHANGES].iter().enumerate() {
        assert_eq!(entry["change"]["after"]["tau"], (CHANGES - 1 - index) as f64 / 100.0);
    }
    assert_eq!(audit(&app, "").await["entries"].as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn a_change_at_another_generation_is_412_and_changes_nothing() {
    let app = Setup::new().start();
    let start = generation(&send(app.admin("GET", "heads/tau")).await.expect(200));
    assert_eq!(generation(&send(app.admin("GET", "heads")).await.expect(200)), start);
    let patch = |tag: String, tau: f64| {
        send(app.admin("PATCH", "heads/tau").header("if-match", tag).json(&json!({ "tau": tau })))
    };
    assert_eq!(generation(&patch(format!("\"{start}\""), 0.1).await.expect(200)), start + 1);
    let before = send(app.admin("GET", "heads")).await.expect(200);
    // Whoever read the state before that change has lost.
    let stale = format!("\"{start}\"");
    let requests = [
        app.admin("PATCH", "heads/tau").json(&json!({ "tau": 0.2 })),
        app.admin("PUT", "heads/mine").header("content-type", "application/octet-stream").body(head_file(1, None)),
        app.admin("PUT", "heads/mine").json(&json!({ "kind": "tau_norm", "base": "joint" })),
        app.admin("DELETE", "heads/ncm"),
        app.admin("PUT", "default-head").json(&json!({ "head": "crt" })),
        app.admin("POST", "rollback"),
    ];
    for request in requests {
        let answer = send(request.header("if-match", &stale)).await;
        let detail = answer.problem(412, "precondition_failed");
        assert!(detail.contains(&start.to_string()) && detail.contains(&(start + 1).to_string()), "{detail}");
    }
    assert_eq!(send(app.admin("GET", "heads")).await.body, before.body);
    assert_eq!(audit(&app, "?limit=1").await["entries"][0]["generation"], start + 1);
    for (tag, status) in [
        (format!("\"{start}\", \"{}\"", start + 1), 200),
        ("*".to_owned(), 200),
        (format!("W/\"{}\"", start + 3), 412),
        ("\"x\"".to_owned(), 412),
        ((start + 3).to_string(), 422),
    ] {
        patch(tag, 0.3).await.expect(status);
    }
    // Of several who read the same, one wins.
    let tag = format!("\"{}\"", start + 3);
    let race = futures_util::future::join_all((0..8).map(|i| patch(tag.clone(), f64::from(i) / 10.0))).await;
    assert_eq!(race.iter().filter(|answer| answer.status == 200).count(), 1);
    assert_eq!(race.iter().filter(|answer| answer.status == 412).count(), 7);
    let created = send(app.admin("PUT", "heads/new").json(&json!({ "kind": "tau_norm", "base": "joint" }))).await;
    assert_eq!(generation(&created.expect(201)), start + 5);
    assert_eq!(generation(&app.activate(json!({ "head": "new" })).await.expect(200)), start + 6);
    assert_eq!(generation(&roll_back(&app).await.expect(200)), start + 7);
    assert_eq!(generation(&app.delete_head("new").await.expect(204)), start + 8);
}

#[tokio::test]
async fn every_answer_of_a_model_says_its_generation_and_may_be_asked_for_one() {
    let app = Setup::new().start();
    app.patch("tau", json!({ "tau": 0.1 })).await.expect(200);
    let features = json!({ "features": feature_rows(1) });
    let requests = || {
        [
            app.post("/v1/classify").json(&features),
            app.post("/v1/models/icons30/classify").json(&features),
            app.post("/v1/models/icons30/features").body(crate::app::image("key", 0)),
            app.request("GET", "/v1/models/icons30"),
            app.admin("GET", "heads"),
            app.admin("GET", "heads/tau"),
            app.admin("GET", "feature-sets"),
            app.admin("GET", "fits"),
        ]
    };
    for request in requests() {
        assert_eq!(send(request).await.expect(200).header("x-equipoise-generation"), Some("2"));
    }
    for request in requests() {
        send(request.header("x-min-generation", 2)).await.expect(200);
    }
    for request in requests() {
        let answer = send(request.header("x-min-generation", 3)).await;
        let detail = answer.problem(503, "generation_not_reached");
        assert!(detail.contains('3') && detail.contains('2'), "{detail}");
        assert_eq!(answer.header("x-equipoise-generation"), Some("2"));
    }
    for wrong in ["-1", "x", "1.5", "99999999999999999999"] {
        let request = app.request("GET", "/v1/models/icons30").header("x-min-generation", wrong);
        send(request).await.problem(422, "invalid_header");
    }
    app.classify_features("?head=none", &feature_rows(1)).await.problem(404, "head_not_found");
    let missing = app.classify_features("?head=none", &feature_rows(1)).await;
    assert_eq!(missing.header("x-equipoise-generation"), Some("2"));
    let unknown = send(app.post("/v1/models/none/classify").header("x-min-generation", 3).json(&features)).await;
    unknown.problem(404, "model_not_found");
    assert_eq!(unknown.header("x-equipoise-generation"), None);
    assert_eq!(app.get("/livez").await.header("x-equipoise-generation"), None);
}
