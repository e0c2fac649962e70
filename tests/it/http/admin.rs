//! The admin API: who gets in, and what each change does to the next answer.

use equipoise::http::ROUTES;
use serde_json::{Value, json};

use super::{feature_rows, head_file};
use crate::app::{Answer, Setup, TOKEN, TestApp, send, shared};

const HEADS: &str = "/admin/v1/models/icons30/heads";

/// The one result of `head` for a row of features, all classes of it.
async fn result(app: &TestApp, head: &str) -> Value {
    app.classify_features(&format!("?head={head}&top_k=30"), &feature_rows(1)).await.results(0)[0].clone()
}

fn logits_by_class(result: &Value) -> Vec<f64> {
    let predictions = result["predictions"].as_array().unwrap();
    let mut by_class: Vec<(u64, f64)> =
        predictions.iter().map(|p| (p["class"].as_u64().unwrap(), p["logit"].as_f64().unwrap())).collect();
    by_class.sort_by_key(|(class, _)| *class);
    by_class.into_iter().map(|(_, logit)| logit).collect()
}

fn assert_close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4), "{a:?} and {b:?}");
}

fn versions(answer: &Answer) -> Vec<u64> {
    answer.json()["versions"].as_array().unwrap().iter().map(|version| version["version"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn every_admin_path_is_401_without_a_token_and_403_with_a_wrong_one() {
    let mut calls: Vec<(String, &str)> = Vec::new();
    for (path, methods) in ROUTES.iter().filter(|(path, _)| path.starts_with("/admin")) {
        let path = path.replace("{model}", "icons30").replace("{head}", "crt").replace("{id}", "none");
        calls.extend(methods.iter().map(|method| (path.clone(), *method)));
        calls.push((path, "OPTIONS"));
    }
    for path in [
        "/admin",
        "/admin/",
        "/admin/nothing",
        "/admin/v1",
        "/admin/v1/models/none/heads",
        "/admin/v1/models/icons30/nothing",
    ] {
        calls.extend(["GET", "POST", "DELETE"].map(|method| (path.to_owned(), method)));
    }
    let longer = format!("Bearer {TOKEN}x");
    let shorter = format!("Bearer {}", &TOKEN[..TOKEN.len() - 1]);
    let upper = format!("Bearer {}", TOKEN.to_uppercase());
    let no_scheme = TOKEN.to_owned();
    let other_scheme = format!("Token {TOKEN}");
    for (path, method) in &calls {
        let ask = async |authorization: Option<&str>| {
            let request = shared().request(method, path).header("content-type", "application/json").body("{}");
            send(match authorization {
                Some(value) => request.header("authorization", value),
                None => request,
            })
            .await
        };
        let without = ask(None).await;
        assert_eq!(without.status, 401, "{method} {path}");
        without.problem(401, "unauthorized");
        for value in ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", &no_scheme, &other_scheme] {
            ask(Some(value)).await.problem(401, "unauthorized");
        }
        for value in ["Bearer wrong", &longer, &shorter, &upper] {
            ask(Some(value)).await.problem(403, "forbidden");
        }
    }
    for value in [format!("Bearer {TOKEN}"), format!("bearer {TOKEN}"), format!("BEARER  {TOKEN}")] {
        send(shared().request("GET", HEADS).header("authorization", value)).await.expect(200);
    }
    send(shared().request("GET", "/admin/v1/nothing").bearer_auth(TOKEN)).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_patch_changes_the_next_answer_of_its_version_alone() {
    let app = Setup::new().start();
    let body = |tau: f64| json!({ "kind": "tau_norm", "base": "joint", "tau": tau });
    app.derive_head("mine", body(0.2)).await.expect(201);
    app.derive_head("mine", body(0.9)).await.expect(201);
    let second = result(&app, "mine@2").await;
    let patched = app.patch("mine@1", json!({ "tau": 0.5 })).await.expect(200).json();
    assert_eq!((&patched["version"], &patched["settings"]["tau"]), (&json!(1), &json!(0.5)));
    assert_eq!(result(&app, "mine@1").await["tau"], 0.5);
    assert_eq!(result(&app, "mine@2").await, second);
    assert_eq!(result(&app, "tau").await["tau"], 0.6);
    // Without a version it is the latest.
    let patched = app.patch("mine", json!({ "tau": 0.0, "bias": "keep" })).await.expect(200).json();
    assert_eq!(patched["version"], 2);
    assert_eq!(patched["settings"], json!({ "tau": 0.0, "bias": "keep", "temperature": 1.0 }));
    assert_eq!(result(&app, "mine@1").await["tau"], 0.5);
    assert_close(&logits_by_class(&result(&app, "mine").await), &logits_by_class(&result(&app, "joint").await));
    // What is left out stays.
    let patched = app.patch("mine", json!({})).await.expect(200).json();
    assert_eq!(patched["settings"], json!({ "tau": 0.0, "bias": "keep", "temperature": 1.0 }));
}

#[tokio::test]
async fn the_temperature_divides_the_logits_of_every_kind() {
    let app = Setup::new().start();
    for head in ["joint", "crt", "lws", "ncm", "tau"] {
        let before = logits_by_class(&result(&app, head).await);
        app.patch(head, json!({ "temperature": 4.0 })).await.expect(200);
        let after = logits_by_class(&result(&app, head).await);
        assert_close(&after, &before.iter().map(|z| z / 4.0).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_patch_with_one_wrong_value_changes_nothing() {
    let app = Setup::new().start();
    let before = (result(&app, "tau").await, send(app.admin("GET", "heads/tau")).await.json());
    for body in [
        json!({ "tau": 0.1, "bias": "keep", "temperature": 0 }),
        json!({ "tau": 5.5, "bias": "scale", "temperature": 2 }),
        json!({ "tau": 0.1, "unknown": 1 }),
        json!({ "tau": 0.1, "bias": "nothing" }),
    ] {
        assert_eq!(app.patch("tau", body).await.status, 422);
        assert_eq!((result(&app, "tau").await, send(app.admin("GET", "heads/tau")).await.json()), before);
    }
}

#[tokio::test]
async fn a_published_head_is_the_next_version_and_not_the_default() {
    let app = Setup::new().start();
    let first = app.put_head("crt", head_file(1, None)).await.expect(201);
    assert_eq!(first.header("location"), Some("/admin/v1/models/icons30/heads/crt"));
    let view = first.json();
    assert_eq!((&view["head"], &view["version"], &view["kind"]), (&json!("crt"), &json!(2), &json!("joint")));
    assert_eq!((&view["default"], &versions(&first)), (&json!(false), &vec![1, 2]));
    assert_eq!(view["versions"][1]["provenance"]["method"], "made by a test");
    // A name answers with its latest version, and the default is as it was.
    assert_eq!(result(&app, "crt").await["version"], 2);
    assert_ne!(result(&app, "crt").await["predictions"], result(&app, "crt@1").await["predictions"]);
    assert_eq!(app.classify_features("", &feature_rows(1)).await.results(0)[0]["head"], "joint");

    app.put_head("joint", head_file(2, None)).await.expect(201);
    let default = app.classify_features("", &feature_rows(1)).await.results(0)[0].clone();
    assert_eq!((&default["head"], &default["version"]), (&json!("joint"), &json!(1)));
    let model = app.get("/v1/models/icons30").await.json();
    assert_eq!((&model["default_head"], &model["default_version"]), (&json!("joint"), &json!(1)));
}

#[tokio::test]
async fn versions_count_up_and_are_never_given_twice() {
    let app = Setup::new().start();
    for version in 1..=3 {
        assert_eq!(app.put_head("new", head_file(version, None)).await.expect(201).json()["version"], version);
    }
    app.delete_head("new@3").await.expect(204);
    app.delete_head("new?version=1").await.expect(204);
    assert_eq!(versions(&app.put_head("new", head_file(3, None)).await.expect(201)), [2, 4]);
    app.delete_head("new").await.expect(204);
    app.classify_features("?head=new", &feature_rows(1)).await.problem(404, "head_not_found");
    send(app.admin("GET", "heads/new")).await.problem(404, "head_not_found");
    assert_eq!(versions(&app.put_head("new", head_file(4, None)).await.expect(201)), [5]);
    app.classify_features("?head=new@4", &feature_rows(1)).await.problem(404, "version_not_found");
}

#[tokio::test]
async fn a_derived_head_shares_its_base_and_starts_from_what_it_is_given() {
    let app = Setup::new().start();
    let body = json!({ "kind": "tau_norm", "base": "joint", "tau": 0.6, "bias": "drop" });
    app.derive_head("twin", body).await.expect(201);
    assert_eq!(result(&app, "twin").await["predictions"], result(&app, "tau").await["predictions"]);
    let plain = app.derive_head("plain", json!({ "kind": "tau_norm", "base": "crt@1" })).await.expect(201).json();
    assert_eq!(plain["settings"], json!({ "tau": 1.0, "bias": "drop", "temperature": 1.0 }));
    assert_eq!(plain["versions"][0]["base"], json!({ "head": "crt", "version": 1 }));
    // It stays with the version that it was derived from.
    let before = result(&app, "plain").await;
    app.put_head("crt", head_file(5, None)).await.expect(201);
    assert_eq!(result(&app, "plain").await, before);
}

#[tokio::test]
async fn the_default_and_a_base_are_not_deleted() {
    let app = Setup::new().start();
    for head in ["joint", "joint@1", "joint?version=1"] {
        app.delete_head(head).await.problem(409, "head_is_default");
    }
    app.activate(json!({ "head": "crt" })).await.expect(200);
    app.delete_head("joint").await.problem(409, "head_has_dependents");
    app.delete_head("crt").await.problem(409, "head_is_default");
    app.delete_head("tau").await.expect(204);
    app.delete_head("joint").await.expect(204);
    assert_eq!(app.classify_features("", &feature_rows(1)).await.results(0)[0]["head"], "crt");
    // Another version of the default may go.
    app.put_head("crt", head_file(1, None)).await.expect(201);
    app.delete_head("crt").await.problem(409, "head_is_default");
    app.delete_head("crt@2").await.expect(204);
}

#[tokio::test]
async fn an_activated_head_answers_where_none_is_named() {
    let app = Setup::new().start();
    let default = async || app.classify_features("", &feature_rows(1)).await.results(0)[0].clone();
    let activated = app.activate(json!({ "head": "tau" })).await.expect(200).json();
    assert_eq!(
        (&activated["head"], &activated["version"], &activated["default"]),
        (&json!("tau"), &json!(1), &json!(true))
    );
    assert_eq!((&default().await["head"], &default().await["tau"]), (&json!("tau"), &json!(0.6)));
    app.put_head("crt", head_file(3, None)).await.expect(201);
    app.activate(json!({ "head": "crt", "version": 1 })).await.expect(200);
    assert_eq!((&default().await["head"], &default().await["version"]), (&json!("crt"), &json!(1)));
    app.activate(json!({ "head": "crt" })).await.expect(200);
    assert_eq!(default().await["version"], 2);
    let model = app.get("/v1/models/icons30").await.json();
    assert_eq!((&model["default_head"], &model["default_version"]), (&json!("crt"), &json!(2)));
}

#[tokio::test]
async fn the_list_of_heads_has_every_version_with_its_settings_and_where_it_comes_from() {
    let app = Setup::new().start();
    app.put_head("crt", head_file(3, None)).await.expect(201);
    app.patch("tau", json!({ "tau": 0.25 })).await.expect(200);
    let list = send(app.admin("GET", "heads")).await.expect(200).json();
    assert_eq!((&list["model"], &list["default"]), (&json!("icons30"), &json!({ "head": "joint", "version": 1 })));
    let heads = list["heads"].as_array().unwrap();
    let names: Vec<&str> = heads.iter().map(|head| head["head"].as_str().unwrap()).collect();
    assert_eq!(names, ["crt", "joint", "lws", "ncm", "tau"]);
    assert_eq!(heads[0]["versions"].as_array().unwrap().len(), 2);
    assert_eq!(heads[4]["settings"]["tau"], 0.25);
    assert_eq!(heads[1]["versions"][0]["provenance"]["sampler"], "instance_balanced");
    assert!(heads[1]["versions"][0]["digest"].as_str().unwrap().starts_with("sha256:"));
    for head in heads {
        let alone = send(app.admin("GET", &format!("heads/{}", head["head"].as_str().unwrap()))).await.expect(200);
        assert_eq!(alone.json(), *head);
    }
}
