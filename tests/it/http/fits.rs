//! Fits, and evaluations of what came of them.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use equipoise::{
    fit::{Batch, Engine, EngineError, Gradient, RawScores, Rows},
    heads::{HeadKind, Weights},
    jobs::{FitJobs, FitOptions, FitRecord, FitRequest, FitState, PublishPolicy},
};
use futures_util::StreamExt;
use ndarray::ArrayView2;
use serde_json::{Value, json};

use super::head_file;
use crate::{
    app::{Answer, Setup, TestApp, guard, icons30, send},
    shared::Store,
};

/// Runs for as long as a test takes, however fast the machine is.
fn endless() -> Value {
    json!({ "epochs": 100_000, "batch_size": 8 })
}

fn features(name: &str) -> Vec<u8> {
    std::fs::read(icons30().join(format!("features/{name}.npz"))).unwrap()
}

/// Uploads a feature set that ships with icons30.
async fn upload(app: &TestApp, name: &str) -> String {
    let request = app.admin("POST", &format!("feature-sets?name={name}")).body(features(name));
    let answer = send(request).await;
    assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn post(app: &TestApp, path: &str, body: &Value) -> Answer {
    send(app.admin("POST", path).json(body)).await
}

async fn get(app: &TestApp, id: &str) -> Value {
    send(app.admin("GET", &format!("fits/{id}"))).await.expect(200).json()
}

/// Asks for a fit; gives its id.
async fn submit(app: &TestApp, body: &Value) -> String {
    let answer = post(app, "fits", body).await.expect(202);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), Some(format!("/admin/v1/models/icons30/fits/{id}").as_str()));
    id
}

/// Asks for a fit until it is in that state, or ended in another.
async fn until(app: &TestApp, id: &str, state: &str) -> Value {
    let ask = async {
        loop {
            let fit = get(app, id).await;
            if fit["state"] == state {
                return fit;
            }
            assert!(matches!(fit["state"].as_str(), Some("queued" | "running")), "{fit}");
        }
    };
    guard(state, ask).await
}

async fn fitted(app: &TestApp, body: &Value) -> Value {
    until(app, &submit(app, body).await, "succeeded").await
}

/// Every event of a fit until the stream ends.
async fn events(app: &TestApp, id: &str) -> Vec<(String, Value)> {
    let request = app.admin("GET", &format!("fits/{id}/events"));
    let response = guard("events", request.send()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = guard("the end of the events", response.text()).await.unwrap();
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        (field("event:"), serde_json::from_str(&field("data:")).unwrap())
    };
    text.split("\n\n").filter(|block| block.contains("event:")).map(event).collect()
}

/// A server that tests share, whose default head and feature sets stay, and the ids of `train` and `val`.
async fn shared() -> (&'static TestApp, String, String) {
    static SHARED: OnceLock<TestApp> = OnceLock::new();
    let app = SHARED.get_or_init(|| Setup::new().config(|config| config.fit_queue_capacity = 1000).start());
    (app, upload(app, "train").await, upload(app, "val").await)
}

#[tokio::test]
async fn a_fit_that_took_no_time_says_that_it_went_to_its_last_epoch() {
    let setup = Setup::new();
    let app = setup.start();
    let train = upload(&app, "train").await;
    let id = submit(&app, &json!({ "method": "crt", "feature_set": train, "head": "mine", "params": { "epochs": 7 } }))
        .await;
    events(&app, &id).await;
    let progress = get(&app, &id).await["progress"].clone();
    assert_eq!((&progress["epoch"], &progress["epochs"], &progress["done"]), (&json!(7), &json!(7), &json!(1.0)));
}

#[tokio::test]
async fn the_whole_story_of_a_fit() {
    let setup = Setup::new();
    let app = setup.start();
    let (train, val) = (upload(&app, "train").await, upload(&app, "val").await);
    let body = json!({ "method": "crt", "feature_set": train, "head": "mine", "base": "joint",
        "validation": { "feature_set": val }, "params": { "solver": "lbfgs", "seed": 3 } });
    let id = submit(&app, &body).await;

    let events_of_it = events(&app, &id).await;
    let (last, progress) = events_of_it.split_last().unwrap();
    assert_eq!(last.0, "end");
    assert_eq!(last.1, json!({ "state": "succeeded", "error": null, "head": null }));
    assert!(progress.iter().all(|(name, data)| name == "progress" && data["done"].as_f64().unwrap() <= 1.0));
    assert_eq!(events(&app, &id).await, std::slice::from_ref(last));

    let fit = get(&app, &id).await;
    assert_eq!(fit["state"], "succeeded");
    for (key, value) in [
        ("id", json!(id)),
        ("method", json!("crt")),
        ("publish_as", json!("mine")),
        ("base", json!({ "head": "joint", "version": 1 })),
        ("feature_set", json!(train)),
        ("validation", json!({ "feature_set": val })),
        ("publish", json!("never")),
        ("params", json!({ "solver": "lbfgs", "seed": 3 })),
        ("error", json!(null)),
        ("head", json!(null)),
        ("publish_reason", json!(null)),
    ] {
        assert_eq!(fit[key], value, "{key} of {fit}");
    }
    assert_eq!(fit["progress"]["done"], 1.0);
    let report = &fit["report"];
    assert!(report["macro"].as_f64().unwrap() > 0.4, "{report}");
    assert_eq!(report["per_class"].as_array().unwrap().len(), 30);
    for time in ["queued_at", "started_at", "finished_at"] {
        assert!(fit["timing"][time].as_f64().unwrap() > 1.6e9, "{fit}");
    }
    let list = send(app.admin("GET", "fits")).await.expect(200).json();
    assert_eq!(list["fits"].as_array().unwrap().len(), 1);
    assert_eq!(list["fits"][0]["report"]["macro"], report["macro"]);
    assert!(list["fits"][0]["report"].get("per_class").is_none());

    // Published, not activated.
    let answer = post(&app, &format!("fits/{id}/publish"), &json!({})).await.expect(201);
    assert_eq!(answer.json(), json!({ "head": "mine", "version": 1 }));
    assert_eq!(answer.header("location"), Some("/admin/v1/models/icons30/heads/mine"));
    let head = send(app.admin("GET", "heads/mine")).await.expect(200).json();
    assert_eq!(head["default"], false);
    let provenance = &head["versions"][0]["provenance"];
    let digest = |id: &str| send(app.admin("GET", &format!("feature-sets/{id}")));
    let of_train = digest(&train).await.json();
    assert_eq!(format!("sha256:{}", provenance["feature_set_digest"].as_str().unwrap()), of_train["digest"]);
    // Nothing was chosen there.
    assert!(provenance.get("validation_set_digest").is_none(), "{provenance}");
    assert_eq!(head["versions"][0]["digest"], fit["digest"]);
    let answered = app.classify("?head=mine", crate::app::image("key", 0)).await.results(0);
    assert_eq!((&answered[0]["head"], &answered[0]["kind"]), (&json!("mine"), &json!("crt")));

    // Its report is what an evaluation says, and that says where it was fitted.
    let evaluation = post(&app, "heads/mine/evaluate", &json!({ "feature_set": val })).await.expect(200).json();
    for key in ["n", "micro", "macro", "many", "medium", "few", "top5", "per_class"] {
        assert_eq!(evaluation[key], report[key], "{key}");
    }
    assert_eq!(evaluation["warnings"], json!([]));
    let of_train = post(&app, "heads/mine/evaluate", &json!({ "feature_set": train })).await.expect(200).json();
    assert!(of_train["warnings"][0].as_str().unwrap().contains("`mine` version 1 was fitted on this"), "{of_train}");
    assert!(evaluation.get("curve").is_none());
    // A head that shares its weights has met the same samples.
    app.derive_head("shifted", json!({ "kind": "tau_norm", "base": "mine", "tau": 0.2 })).await.expect(201);
    let of_derived = post(&app, "heads/shifted/evaluate", &json!({ "feature_set": train })).await.expect(200).json();
    assert!(of_derived["warnings"][0].as_str().unwrap().contains("`shifted` version 1 was fitted"), "{of_derived}");
    app.delete_head("shifted").await.expect(204);

    // All of it is there after a restart.
    let fit = get(&app, &id).await;
    assert_eq!(fit["head"], json!({ "head": "mine", "version": 1 }));
    app.shutdown();
    let app = setup.start();
    assert_eq!(get(&app, &id).await, fit);
    assert_eq!(events(&app, &id).await.len(), 1);
    let again = post(&app, &format!("fits/{id}/publish"), &json!({})).await.expect(201);
    assert_eq!(again.json(), json!({ "head": "mine", "version": 2 }));
    // The newest comes first, also then.
    let second = submit(&app, &body).await;
    until(&app, &second, "succeeded").await;
    let list = send(app.admin("GET", "fits")).await.json();
    let ids: Vec<&str> = list["fits"].as_array().unwrap().iter().map(|fit| fit["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [second.as_str(), id.as_str()]);
}

#[tokio::test]
async fn every_method_runs() {
    let (app, train, val) = shared().await;
    for (method, params, validation) in [
        ("joint", json!({ "epochs": 2 }), json!({ "holdout": 0.2 })),
        ("crt", json!({ "solver": "lbfgs" }), json!({ "holdout": 0.25 })),
        ("lws", json!({ "epochs": 2, "init": "inverse_norm" }), json!({ "feature_set": val })),
        ("ncm", json!({ "transform": "l2n", "metric": "cosine" }), json!({ "feature_set": val })),
        ("tau_norm", json!({}), json!({ "feature_set": val })),
        ("tau_norm", json!({ "tau": [0.4], "bias": "keep" }), Value::Null),
    ] {
        let mut body =
            json!({ "method": method, "feature_set": train, "head": format!("m-{method}"), "params": params });
        if !validation.is_null() {
            body["validation"] = validation.clone();
        }
        let fit = fitted(app, &body).await;
        assert_eq!(fit["report"].is_null(), validation.is_null(), "{fit}");
        assert_eq!(fit["params"], params);
        let needs_base = matches!(method, "lws" | "tau_norm");
        assert_eq!(fit["base"], if needs_base { json!({ "head": "joint", "version": 1 }) } else { Value::Null });
        let id = fit["id"].as_str().unwrap();
        let published = post(app, &format!("fits/{id}/publish"), &json!({})).await.expect(201).json();
        assert_eq!(published["head"], format!("m-{method}"));
        let evaluate = format!("heads/m-{method}/evaluate");
        post(app, &evaluate, &json!({ "feature_set": val })).await.expect(200);
    }
}

#[tokio::test]
async fn the_same_request_gives_the_same_head() {
    let (app, train, val) = shared().await;
    let bodies = [
        json!({ "method": "crt", "feature_set": train, "head": "twice", "params": { "epochs": 3, "seed": 7 },
            "validation": { "holdout": 0.2 } }),
        json!({ "method": "lws", "feature_set": train, "head": "twice", "validation": { "feature_set": val },
            "params": { "solver": "lbfgs" } }),
    ];
    for body in bodies {
        let (one, two) = (fitted(app, &body).await, fitted(app, &body).await);
        assert!(one["digest"].as_str().unwrap().starts_with("sha256:"), "{one}");
        assert_eq!(one["digest"], two["digest"]);
        assert_eq!(one["report"], two["report"]);
    }
}

#[tokio::test]
async fn a_head_is_published_if_it_is_to_be() {
    let setup = Setup::new();
    let app = setup.start();
    let (train, val) = (upload(&app, "train").await, upload(&app, "val").await);
    let body = |publish: &str, params: Value| {
        json!({ "method": "crt", "feature_set": train, "head": "auto", "publish": publish, "params": params,
            "validation": { "feature_set": val } })
    };
    let good = fitted(&app, &body("if_better", json!({ "solver": "lbfgs" }))).await;
    assert_eq!(good["head"], json!({ "head": "auto", "version": 1 }));
    let reason = good["publish_reason"].as_str().unwrap();
    assert!(reason.starts_with("published") && reason.contains("`joint` version 1"), "{reason}");
    // What it says of the default head is what an evaluation says.
    let of_default = post(&app, "heads/joint/evaluate", &json!({ "feature_set": val })).await.expect(200).json();
    assert!(reason.contains(&format!("{:.6}", of_default["macro"].as_f64().unwrap())), "{reason}");
    assert!(good["report"]["macro"].as_f64() >= of_default["macro"].as_f64());

    // One step that leads nowhere.
    let poor = json!({ "epochs": 1, "learning_rate": 1e-6 });
    let bad = fitted(&app, &body("if_better", poor.clone())).await;
    assert_eq!(bad["head"], Value::Null);
    assert!(bad["publish_reason"].as_str().unwrap().starts_with("not published"), "{bad}");
    // It waits to be published all the same.
    let id = bad["id"].as_str().unwrap();
    assert_eq!(post(&app, &format!("fits/{id}/publish"), &json!({})).await.expect(201).json()["version"], 2);

    let always = fitted(&app, &body("always", poor)).await;
    assert_eq!(always["head"], json!({ "head": "auto", "version": 3 }));
    let holdout = json!({ "method": "crt", "feature_set": train, "head": "auto", "publish": "if_better",
        "validation": { "holdout": 0.3 }, "params": { "solver": "lbfgs" } });
    let reason = fitted(&app, &holdout).await["publish_reason"].clone();
    assert!(reason.as_str().unwrap().contains("default head `joint`"), "{reason}");
    let default = send(app.admin("GET", "heads")).await.json()["default"].clone();
    assert_eq!(default, json!({ "head": "joint", "version": 1 }));
}

#[tokio::test]
async fn what_runs_and_what_waits_is_cancelled() {
    let setup = Setup::new().config(|config| config.fit_queue_capacity = 2);
    let app = setup.start();
    let train = upload(&app, "train").await;
    let long = json!({ "method": "crt", "feature_set": train, "head": "long", "params": endless() });
    let running = submit(&app, &long).await;
    until(&app, &running, "running").await;
    let waiting = [submit(&app, &long).await, submit(&app, &long).await];
    post(&app, "fits", &long).await.problem(503, "fit_queue_full");
    let samples = app.metrics().await;
    assert_eq!(samples.get("equipoise_fits_running{model=\"icons30\"}"), 1.0);
    assert_eq!(samples.get("equipoise_fits_queued{model=\"icons30\"}"), 2.0);
    assert_eq!(samples.get("equipoise_rejected_total{reason=\"fit_queue_full\"}"), 1.0);

    // What it reads stays until it has ended.
    let set = format!("feature-sets/{train}");
    send(app.admin("DELETE", &set)).await.problem(409, "feature_set_in_use");
    let publish = format!("fits/{running}/publish");
    post(&app, &publish, &json!({})).await.problem(409, "fit_not_succeeded");
    post(&app, &format!("fits/{}/publish", waiting[0]), &json!({})).await.problem(409, "fit_not_succeeded");

    let answer = send(app.admin("DELETE", &format!("fits/{}", waiting[0]))).await.expect(202);
    assert_eq!(answer.json()["state"], "cancelled");
    submit(&app, &long).await;

    // A reader of events that runs along sees the end.
    let mut stream = {
        let request = app.admin("GET", &format!("fits/{running}/events"));
        guard("events", request.send()).await.unwrap().bytes_stream()
    };
    let first = guard("an event", stream.next()).await.unwrap().unwrap();
    assert!(first.starts_with(b"event: progress\n") || first.starts_with(b"event:progress\n"), "{first:?}");
    send(app.admin("DELETE", &format!("fits/{running}"))).await.expect(202);
    let mut rest = Vec::new();
    while let Some(chunk) = guard("the end of the events", stream.next()).await {
        rest.extend_from_slice(&chunk.unwrap());
    }
    assert!(String::from_utf8_lossy(&rest).contains("\"state\":\"cancelled\""), "{rest:?}");
    let cancelled = until(&app, &running, "cancelled").await;
    assert!(cancelled["progress"]["samples_per_second"].as_f64().unwrap() > 0.0, "{cancelled}");
    assert_eq!((&cancelled["report"], &cancelled["digest"]), (&Value::Null, &Value::Null));
    // Nothing changes any more.
    let again = send(app.admin("DELETE", &format!("fits/{running}"))).await;
    again.problem(409, "fit_finished");
    assert_eq!(get(&app, &running).await, cancelled);

    for fit in send(app.admin("GET", "fits")).await.json()["fits"].as_array().unwrap() {
        // What has ended meanwhile says 409.
        send(app.admin("DELETE", &format!("fits/{}", fit["id"].as_str().unwrap()))).await;
    }
    until(&app, &waiting[1], "cancelled").await;
    app.until("no fit", |samples| {
        let gauge = |name: &str| samples.get(&format!("equipoise_fits_{name}{{model=\"icons30\"}}"));
        gauge("running") + gauge("queued") == 0.0
    })
    .await;
    let samples = app.metrics().await;
    assert_eq!(samples.get("equipoise_fits_total{method=\"crt\",model=\"icons30\",state=\"cancelled\"}"), 4.0);
    send(app.admin("DELETE", &set)).await.expect(204);
}

#[tokio::test]
async fn a_fit_that_fails_says_why_and_the_next_one_runs() {
    let (app, train, _) = shared().await;
    let diverging = json!({ "method": "joint", "feature_set": train, "head": "never",
        "params": { "learning_rate": 1e6, "epochs": 50, "momentum": 0.99, "weight_decay": 100.0 } });
    let id = submit(app, &diverging).await;
    let failed = until(app, &id, "failed").await;
    assert!(failed["error"].as_str().unwrap().contains("learning_rate"), "{failed}");
    let end = events(app, &id).await.pop().unwrap();
    assert_eq!((end.0.as_str(), &end.1["state"]), ("end", &json!("failed")));
    post(app, &format!("fits/{id}/publish"), &json!({})).await.problem(409, "fit_not_succeeded");
    send(app.admin("DELETE", &format!("fits/{id}"))).await.problem(409, "fit_finished");
    fitted(app, &json!({ "method": "ncm", "feature_set": train, "head": "next" })).await;
}

#[tokio::test]
async fn what_cannot_succeed_is_refused_at_once() {
    let (app, train, val) = shared().await;
    let good = json!({ "method": "crt", "feature_set": train, "head": "x" });
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    let tau_norm = |base: &str| {
        json!({ "method": "tau_norm", "feature_set": train, "head": "x", "base": base,
            "validation": { "feature_set": val } })
    };
    let mut without = good.clone();
    without.as_object_mut().unwrap().remove("head");
    let cases = [
        (422, "invalid_body", without, "head"),
        (422, "invalid_body", with("nonsense", json!(1)), "nonsense"),
        (422, "invalid_body", with("method", json!("svm")), "svm"),
        (422, "invalid_body", with("head", json!("a/b")), "a/b"),
        (422, "invalid_body", with("base", json!("a@b")), "a@b"),
        (422, "invalid_body", with("base", Value::Null), "null"),
        (422, "invalid_body", with("publish", json!("soon")), "soon"),
        (422, "invalid_body", with("params", json!([])), "`params`"),
        (422, "invalid_body", with("validation", json!({})), "one of"),
        (422, "invalid_body", with("validation", json!({ "holdout": 0.2, "feature_set": val })), "one of"),
        (422, "invalid_body", with("validation", json!({ "set": val })), "set"),
        (422, "invalid_body", with("validation", json!({ "holdout": "0.2" })), "`holdout`"),
        (422, "invalid_validation", with("validation", json!({ "holdout": 0.0 })), "holdout"),
        (422, "invalid_validation", with("validation", json!({ "holdout": 1.0 })), "holdout"),
        (422, "invalid_validation", with("validation", json!({ "feature_set": train })), "same content"),
        (422, "invalid_validation", with("publish", json!("if_better")), "if_better"),
        (422, "invalid_validation", with("method", json!("tau_norm")), "validation"),
        (422, "invalid_params", with("params", json!({ "epoch": 3 })), "epoch"),
        (422, "invalid_params", with("params", json!({ "epochs": 0 })), "epochs"),
        (422, "invalid_params", with("params", json!({ "tau": [0.1] })), "tau"),
        (422, "invalid_params", with("params", json!({ "sampler": "x" })), "x"),
        (422, "invalid_base", tau_norm("ncm"), "ncm"),
        (404, "head_not_found", tau_norm("nothing"), "nothing"),
        (404, "head_not_found", with("base", json!("nothing")), "nothing"),
        (404, "version_not_found", tau_norm("joint@9"), "9"),
        (404, "feature_set_not_found", with("feature_set", json!("fs_0000000000000000")), "fs_0000000000000000"),
        (404, "feature_set_not_found", with("validation", json!({ "feature_set": "fs_none" })), "fs_none"),
    ];
    let n_before = send(app.admin("GET", "fits")).await.json()["fits"].as_array().unwrap().len();
    for (status, code, body, word) in cases {
        let detail = post(app, "fits", &body).await.problem(status, code);
        assert!(detail.contains(word), "{body}: {detail}");
    }
    let broken = app.admin("POST", "fits").header("content-type", "application/json").body("{\"method\": NaN}");
    send(broken).await.problem(400, "invalid_json");
    send(app.admin("POST", "fits").header("content-type", "text/plain").body("{}"))
        .await
        .problem(415, "unsupported_media_type");
    let unknown = app.request("GET", "/admin/v1/models/other/fits").bearer_auth(crate::app::TOKEN);
    send(unknown).await.problem(404, "model_not_found");
    for (method, path) in [
        ("GET", "fits/fit_none"),
        ("DELETE", "fits/fit_none"),
        ("GET", "fits/fit_none/events"),
        ("POST", "fits/fit_none/publish"),
    ] {
        send(app.admin(method, path)).await.problem(404, "fit_not_found");
    }
    send(app.request("POST", "/admin/v1/models/icons30/fits").json(&good)).await.problem(401, "unauthorized");
    // Other tests fit here too, and take none away.
    let after = send(app.admin("GET", "fits")).await.json();
    let refused = after["fits"].as_array().unwrap().iter().filter(|fit| fit["publish_as"] == "x").count();
    assert!(refused == 0 && after["fits"].as_array().unwrap().len() >= n_before, "{after}");
}

#[tokio::test]
async fn evaluation_with_tau_gives_a_curve() {
    let (app, train, val) = shared().await;
    let body = json!({ "feature_set": val, "tau": [0, 0.6, 1.5] });
    let answer = post(app, "heads/tau/evaluate", &body).await.expect(200).json();
    let curve = answer["curve"].as_array().unwrap();
    let taus: Vec<f64> = curve.iter().map(|point| point["tau"].as_f64().unwrap()).collect();
    assert_eq!(taus, [0.0, 0.6, 1.5]);
    assert!(curve.iter().all(|point| point["report"]["per_class"].as_array().unwrap().len() == 30));
    // It is served with 0.6.
    assert_eq!(answer["settings"]["tau"], 0.6);
    assert_eq!(curve[1]["report"]["macro"], answer["macro"]);
    assert_eq!(answer["warnings"], json!([]));
    assert_eq!((&answer["head"], &answer["version"]), (&json!("tau"), &json!(1)));
    assert_eq!(post(app, "heads/tau@1/evaluate", &body).await.expect(200).json(), answer);

    let evaluate = |head: &str, body: Value| {
        let path = format!("heads/{head}/evaluate");
        async move { post(app, &path, &body).await }
    };
    let with_tau = |tau: Value| json!({ "feature_set": train, "tau": tau });
    evaluate("crt", with_tau(json!([0.5]))).await.problem(422, "invalid_setting");
    evaluate("tau", with_tau(json!([0.5, 5.1]))).await.problem(422, "invalid_setting");
    evaluate("tau", with_tau(json!([-0.1]))).await.problem(422, "invalid_setting");
    evaluate("tau", with_tau(json!([]))).await.problem(422, "invalid_body");
    evaluate("tau", with_tau(json!(vec![0.5; 1001]))).await.problem(422, "invalid_body");
    evaluate("tau", with_tau(json!("0.5"))).await.problem(422, "invalid_body");
    evaluate("tau", with_tau(Value::Null)).await.problem(422, "invalid_body");
    evaluate("tau", json!({})).await.problem(422, "invalid_body");
    evaluate("tau", json!({ "feature_set": train, "x": 1 })).await.problem(422, "invalid_body");
    evaluate("tau", json!({ "feature_set": "fs_none" })).await.problem(404, "feature_set_not_found");
    evaluate("nothing", json!({ "feature_set": train })).await.problem(404, "head_not_found");
    evaluate("tau@7", json!({ "feature_set": train })).await.problem(404, "version_not_found");
}

#[tokio::test]
async fn many_evaluations_at_once_are_answered_or_refused() {
    let setup = Setup::new();
    let app = setup.start();
    let train = upload(&app, "train").await;
    let body = json!({ "feature_set": train, "tau": (0..1000).map(|i| f64::from(i) / 200.0).collect::<Vec<_>>() });
    let asked = (0..6).map(|_| post(&app, "heads/tau/evaluate", &body));
    let mut answered = 0;
    for answer in futures_util::future::join_all(asked).await {
        match answer.status {
            200 => answered += 1,
            _ => drop(answer.problem(503, "too_many_evaluations")),
        }
    }
    assert!(answered > 0);
    post(&app, "heads/tau/evaluate", &json!({ "feature_set": train })).await.expect(200);
}

/// An engine that panics in the midst of a fit, while it is told to.
struct Panicking {
    engine: Box<dyn Engine>,
    panics: Arc<AtomicBool>,
}

impl Engine for Panicking {
    fn linear_gradient(
        &mut self,
        batch: &Batch<'_>,
        weight: &[f32],
        bias: &[f32],
    ) -> Result<Gradient<'_>, EngineError> {
        assert!(!self.panics.load(Ordering::SeqCst), "injected");
        self.engine.linear_gradient(batch, weight, bias)
    }

    fn scale_gradient(&mut self, batch: &Batch<'_>, scale: &[f32]) -> Result<Gradient<'_>, EngineError> {
        self.engine.scale_gradient(batch, scale)
    }

    fn raw_scores(
        &mut self,
        table: ArrayView2<'_, f32>,
        rows: Rows<'_>,
        weights: &Weights,
    ) -> Result<RawScores, EngineError> {
        assert!(!self.panics.load(Ordering::SeqCst), "injected");
        self.engine.raw_scores(table, rows, weights)
    }
}

#[tokio::test]
async fn a_panic_ends_its_fit_or_evaluation_and_nothing_else() {
    let setup = Setup::new();
    let app = setup.start();
    let train = upload(&app, "train").await;
    let panics = Arc::new(AtomicBool::new(true));
    let model = Arc::clone(app.server.app().registry.model(None).unwrap());
    let options = FitOptions { queue_capacity: 4, concurrency: 1, threads: 1, cuda_memory_limit_bytes: None };
    let wrap = {
        let panics = Arc::clone(&panics);
        move |engine| -> Box<dyn Engine> { Box::new(Panicking { engine, panics: Arc::clone(&panics) }) }
    };
    let jobs = FitJobs::with_engines(options, Arc::clone(&app.server.app().metrics), wrap);
    jobs.start(&[Arc::clone(&model)]).unwrap();
    let request = FitRequest {
        method: HeadKind::Crt,
        feature_set: train.clone(),
        head: "crt".to_owned(),
        base: None,
        validation: None,
        publish: PublishPolicy::Always,
        params: serde_json::Map::new(),
    };
    let ends = || -> Arc<FitRecord> {
        let id = jobs.submit(&model, &equipoise::registry::Author::new("tester"), &request).unwrap().id.clone();
        loop {
            let record = jobs.get(&model, &id).unwrap().record();
            if record.state.is_finished() {
                return record;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let wanted = AtomicBool::new(false);
    let evaluate = || jobs.evaluate(&model, ("joint", None), &train, None, &wanted);

    let versions = || model.state().head("crt", None).unwrap().id.version;
    let failed = ends();
    assert_eq!((failed.state, failed.error.as_deref()), (FitState::Failed, Some("the fit panicked: injected")));
    assert_eq!(versions(), 1);
    let refused = evaluate().unwrap_err().to_string();
    assert!(refused.contains("the evaluation panicked: injected"), "{refused}");

    // Neither the thread of the queue nor a place among the evaluations is lost, and the feature set is free.
    panics.store(false, Ordering::SeqCst);
    assert_eq!(ends().state, FitState::Succeeded);
    assert_eq!(versions(), 2);
    for _ in 0..3 {
        evaluate().unwrap();
    }
    send(app.admin("DELETE", &format!("feature-sets/{train}"))).await.expect(204);
}

#[tokio::test]
async fn the_command_line_evaluates_as_the_server_does() {
    let (app, _, val) = shared().await;
    let taus = [0.0, 0.3, 0.6, 2.0];
    let mut answer =
        post(app, "heads/tau/evaluate", &json!({ "feature_set": val, "tau": taus })).await.expect(200).json();
    let joint = icons30().join("heads/joint.safetensors");
    let fit = ["fit", "--method", "tau_norm", "--param", "tau=[0.6]", "--param", "bias=\"drop\""];
    let folder = tempfile::tempdir().unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let [train, val] = ["train", "val"].map(|name| path(&icons30().join(format!("features/{name}.npz"))));
    let head = path(&folder.path().join("tau.safetensors"));
    crate::cli::prints(&[&fit[..], &["--features", &train, "--base", &path(&joint), "-o", &head]].concat());
    let evaluate = ["evaluate", "--features", &val, "--head", &head, "--json"];
    let report = crate::cli::prints_json(&evaluate);
    let curve = crate::cli::prints_json(&[&evaluate[..], &["--tau", "0,0.3,0.6,2"]].concat());
    assert_eq!(answer["curve"], curve["curve"]);
    for key in ["head", "version", "curve"] {
        answer.as_object_mut().unwrap().remove(key).unwrap();
    }
    assert_eq!(answer, report);
}

#[tokio::test]
async fn a_shutdown_ends_what_runs_and_a_restart_says_so() {
    let setup = Setup::new();
    let app = setup.start();
    let train = upload(&app, "train").await;
    let long = json!({ "method": "crt", "feature_set": train, "head": "long", "params": endless() });
    let (running, waiting) = (submit(&app, &long).await, submit(&app, &long).await);
    until(&app, &running, "running").await;
    let request = app.admin("GET", &format!("fits/{running}/events"));
    let following = guard("events", request.send()).await.unwrap();
    // It would wait for the reader of events otherwise.
    let ended = tokio::task::spawn_blocking(move || app.shutdown());
    let text = guard("the end of the events", following.text()).await.unwrap();
    assert!(text.contains("the server stopped while it ran"), "{text}");
    guard("the end of the server", ended).await.unwrap();
    let app = setup.start();
    for id in [running, waiting] {
        let fit = get(&app, &id).await;
        assert_eq!((&fit["state"], &fit["error"]), (&json!("failed"), &json!("the server stopped while it ran")));
        assert!(fit["timing"]["finished_at"].is_number());
    }
    send(app.admin("DELETE", &format!("feature-sets/{train}"))).await.expect(204);
}

#[tokio::test]
async fn a_damaged_record_or_head_file_is_named_and_takes_nothing_else_along() {
    let setup = Setup::new();
    let app = setup.start();
    let train = upload(&app, "train").await;
    let body = json!({ "method": "ncm", "feature_set": train, "head": "x" });
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(fitted(&app, &body).await["id"].as_str().unwrap().to_owned());
    }
    let file = |id: &str, suffix: &str| setup.state.path().join(format!("models/icons30/fits/{id}.{suffix}"));
    std::fs::write(file(&ids[0], "safetensors"), head_file(1, None)).unwrap();
    let publish = |id: &str| format!("fits/{id}/publish");
    post(&app, &publish(&ids[0]), &json!({})).await.problem(500, "state_not_written");
    app.shutdown();
    std::fs::write(file(&ids[1], "json"), b"{").unwrap();
    // Not even to be read.
    std::fs::create_dir(file("fit_0000000000000000", "json")).unwrap();
    let app = setup.start();
    let list = send(app.admin("GET", "fits")).await.json();
    assert_eq!(list["fits"].as_array().unwrap().len(), 2);
    send(app.admin("GET", &format!("fits/{}", ids[1]))).await.problem(404, "fit_not_found");
    post(&app, &publish(&ids[2]), &json!({})).await.expect(201);
}

#[tokio::test]
async fn a_fit_that_was_refused_does_not_come_back() {
    let setup = Setup::new();
    let app = setup.start();
    let train = upload(&app, "train").await;
    let fits = setup.state.path().join("models/icons30/fits");
    let set_mode = |mode| std::fs::set_permissions(&fits, std::fs::Permissions::from_mode(mode)).unwrap();
    // Files can be made in it, and it cannot be opened to sync them; by root it can.
    set_mode(0o300);
    if std::fs::read_dir(&fits).is_err() {
        let body = json!({ "method": "ncm", "feature_set": train, "head": "x" });
        post(&app, "fits", &body).await.problem(500, "state_not_written");
    }
    set_mode(0o700);
    app.shutdown();
    assert_eq!(send(setup.start().admin("GET", "fits")).await.json()["fits"], json!([]));
}

#[tokio::test]
async fn a_fit_that_may_have_been_published_does_not_say_that_it_was_not() {
    let store = Store::new();
    let Some(folder) = &store.folder else { return };
    let app = store.server(std::time::Duration::from_secs(3600)).start();
    let train = upload(&app, "train").await;
    std::fs::write(folder.path().join("models/icons30/generations/00000000002.json"), "damaged").unwrap();
    let body = json!({ "method": "ncm", "feature_set": train, "head": "x", "publish": "always" });
    let fit = fitted(&app, &body).await;
    let reason = fit["publish_reason"].as_str().unwrap();
    assert!(fit["head"].is_null() && reason.starts_with("perhaps published, which the audit says: "), "{reason}");
}

#[tokio::test]
async fn the_oldest_of_many_fits_are_forgotten() {
    let setup = Setup::new();
    let app = setup.start();
    let train = upload(&app, "train").await;
    let body = json!({ "method": "ncm", "feature_set": train, "head": "x" });
    let first = fitted(&app, &body).await["id"].as_str().unwrap().to_owned();
    app.shutdown();
    // As if it had run two hundred times.
    let file = |id: &str, suffix: &str| setup.state.path().join(format!("models/icons30/fits/{id}.{suffix}"));
    let mut record: Value = serde_json::from_slice(&std::fs::read(file(&first, "json")).unwrap()).unwrap();
    let mut ids = vec![first.clone()];
    for number in 2..=200 {
        let id = format!("fit_{number:016}");
        (record["id"], record["number"]) = (json!(id), json!(number));
        std::fs::write(file(&id, "json"), record.to_string()).unwrap();
        std::fs::copy(file(&first, "safetensors"), file(&id, "safetensors")).unwrap();
        ids.push(id);
    }
    let app = setup.start();
    get(&app, &first).await;
    ids.push(fitted(&app, &body).await["id"].as_str().unwrap().to_owned());
    let list = send(app.admin("GET", "fits")).await.json();
    let kept: Vec<&str> = list["fits"].as_array().unwrap().iter().map(|fit| fit["id"].as_str().unwrap()).collect();
    let newest: Vec<&str> = ids.iter().rev().take(200).map(String::as_str).collect();
    assert_eq!(kept, newest);
    send(app.admin("GET", &format!("fits/{first}"))).await.problem(404, "fit_not_found");
    assert!(!file(&first, "json").exists() && !file(&first, "safetensors").exists());
}
