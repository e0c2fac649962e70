//! What is nearly right is refused too, and the detail says what is wrong with it, shortly.

use equipoise::http::ROUTES;
use serde_json::json;

use super::feature_rows;
use crate::app::{Answer, DIM, Setup, TOKEN, image, send, shared};

const CLASSIFY: &str = "/v1/models/icons30/classify";

async fn post(path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
    send(shared().post(path).header("content-type", content_type).body(body)).await
}

/// A path of the router with these names in it.
fn named(route: &str, [model, head, id]: [&str; 3]) -> String {
    route.replace("{model}", model).replace("{head}", head).replace("{id}", id)
}

fn api_routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let is_api = |route: &str| route.starts_with("/v1/") || route.starts_with("/admin/v1/");
    let routes = ROUTES.into_iter().filter(move |(route, _)| is_api(route));
    routes.flat_map(|(route, methods)| methods.iter().map(move |method| (*method, route)))
}

#[tokio::test]
async fn an_admin_body_of_other_types_is_422_and_the_detail_names_the_key_and_no_type_of_rust() {
    let app = Setup::new().start();
    let before = send(app.admin("GET", "heads")).await.expect(200).json();
    let fit = |rest: &str| format!("{{\"method\": \"crt\", \"feature_set\": \"fs_0\", \"head\": \"h\", {rest}}}");
    let derived = |rest: &str| format!("{{\"kind\": \"tau_norm\", \"base\": \"joint\", {rest}}}");
    let cases = [
        (
            "PATCH",
            "heads/tau",
            "{\"bias\": {\"keep\": null}}".to_owned(),
            "`bias`: invalid type: object, expected a string",
        ),
        ("PATCH", "heads/tau", "{\"bias\": null}".to_owned(), "`bias`: invalid type: null, expected a string"),
        ("PATCH", "heads/tau", "{\"bias\": [\"keep\"]}".to_owned(), "`bias`: invalid type: list, expected a string"),
        (
            "PATCH",
            "heads/tau",
            "{\"tau\": \"0.5\"}".to_owned(),
            "`tau`: invalid type: string \"0.5\", expected a number",
        ),
        ("PATCH", "heads/tau", "{\"tau\": 1e999}".to_owned(), "`tau`: number out of range"),
        ("PATCH", "heads/tau", "{\"tau\": 1, \"tau\": 1}".to_owned(), "`tau` stands there twice"),
        ("PATCH", "heads/tau", "null".to_owned(), "the body must be a JSON object"),
        ("PUT", "heads/new", "[]".to_owned(), "the body must be a JSON object"),
        ("PUT", "heads/new", "{\"base\": \"joint\"}".to_owned(), "missing field `kind`"),
        (
            "PUT",
            "heads/new",
            "{\"kind\": {\"tau_norm\": null}, \"base\": \"joint\"}".to_owned(),
            "`kind`: invalid type: object, expected a string",
        ),
        ("PUT", "heads/new", derived("\"bias\": {\"keep\": null}"), "`bias`: invalid type: object, expected a string"),
        (
            "PUT",
            "default-head",
            "{\"head\": \"crt\", \"version\": -1}".to_owned(),
            "`version`: invalid value: integer `-1`, expected a whole number from 0 to 4294967295",
        ),
        ("POST", "fits", fit("\"validation\": [\"fs_0\"]"), "`validation`: invalid type: list, expected an object"),
        (
            "POST",
            "fits",
            fit("\"validation\": {\"holdout\": \"0.1\"}"),
            "`validation`: `holdout`: invalid type: string \"0.1\", expected a number",
        ),
        (
            "POST",
            "fits",
            fit("\"validation\": {\"holdout\": 0.1, \"holdout\": 0.2}"),
            "`validation`: `holdout` stands there twice",
        ),
        ("POST", "fits", fit("\"publish\": {\"never\": null}"), "`publish`: invalid type: object, expected a string"),
        ("POST", "fits", fit("\"params\": {\"epochs\": 1, \"epochs\": 2}"), "`params`: `epochs` stands there twice"),
        ("POST", "fits", fit("\"params\": []"), "`params`: invalid type: list, expected an object"),
        (
            "POST",
            "fits",
            "{\"method\": {\"ncm\": null}, \"feature_set\": \"fs_0\", \"head\": \"h\"}".to_owned(),
            "`method`: invalid type: object, expected a string",
        ),
    ];
    for (method, path, body, said) in cases {
        let request = app.admin(method, path).header("content-type", "application/json").body(body.clone());
        assert_eq!(send(request).await.problem(422, "invalid_body"), said, "{method} {path} {body}");
    }
    for (params, key) in [
        ("{\"sampler\": {\"class_balanced\": null}}", "`sampler`"),
        ("{\"solver\": {\"sgd\": null}}", "`solver`"),
        ("{\"solver\": null}", "`solver`"),
        ("{\"epochs\": \"5\"}", "`epochs`"),
        ("{\"init\": \"ones\"}", "`init`"),
        // What the solver would pass over.
        ("{\"solver\": \"lbfgs\", \"epochs\": 5}", "`epochs`"),
        ("{\"solver\": \"lbfgs\", \"learning_rate\": 0.1}", "`learning_rate`"),
    ] {
        let request = app.admin("POST", "fits").header("content-type", "application/json");
        let detail = send(request.body(fit(&format!("\"params\": {params}")))).await.problem(422, "invalid_params");
        assert!(detail.starts_with("params of method crt: ") && detail.contains(key), "{detail}");
    }
    for (method, params) in [("lws", "{\"init\": {\"ones\": null}}"), ("tau_norm", "{\"bias\": {\"best\": null}}")] {
        let body =
            format!("{{\"method\": \"{method}\", \"feature_set\": \"fs_0\", \"head\": \"h\", \"params\": {params}}}");
        let request = app.admin("POST", "fits").header("content-type", "application/json").body(body);
        send(request).await.problem(422, "invalid_params");
    }
    assert_eq!(send(app.admin("GET", "heads")).await.expect(200).json(), before);
}

#[tokio::test]
async fn a_query_that_nobody_reads_is_422_on_every_route() {
    let app = shared();
    for (method, route) in api_routes() {
        let path = named(route, ["icons30", "joint", "x"]);
        for query in ["?nonsense=1", "?nonsense", "?&nonsense=1", "?version=1&nonsense="] {
            let request = app.request(method, &format!("{path}{query}")).bearer_auth(TOKEN);
            let answer = send(request).await;
            assert_eq!(answer.status, 422, "{method} {path}{query}: {}", answer.text());
            answer.problem(422, "invalid_query");
        }
    }
    for path in ["heads/tau?version=1", "fits?state=running"] {
        let key = &path[path.find('?').unwrap() + 1..path.find('=').unwrap()];
        assert!(send(app.admin("GET", path)).await.problem(422, "invalid_query").contains(key), "{path}");
    }
    send(app.post("/v1/models/icons30/features?top_k=1").body(image("key", 0))).await.problem(422, "invalid_query");
    // Nothing is asked for here, and probes do not mind.
    app.get("/v1/models?").await.expect(200);
    app.get("/livez?x=1").await.expect(200);
    let other_method = app.request("POST", "/v1/models?x=1").body("");
    send(other_method).await.problem(405, "method_not_allowed");
}

#[tokio::test]
async fn a_name_that_is_no_utf8_is_404_on_every_route() {
    let names = ["icons30", "joint", "x"];
    for (method, route) in api_routes() {
        for place in 0..3 {
            let mut names = names;
            names[place] = "%FF";
            let path = named(route, names);
            if path.contains("%FF") {
                let answer = send(shared().request(method, &path).bearer_auth(TOKEN)).await;
                assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
                answer.problem(404, "not_found");
            }
        }
    }
}

#[tokio::test]
async fn a_tag_that_no_generation_has_matches_none_and_the_detail_says_so() {
    let app = Setup::new().start();
    let request = app.admin("PATCH", "heads/tau").header("if-match", "W/\"1\"").json(&json!({ "tau": 0.5 }));
    let detail = send(request).await.problem(412, "precondition_failed");
    assert!(
        detail.starts_with("the change was to be made at a tag that no generation has, and the model is at"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_body_that_is_packed_is_415() {
    let app = Setup::new().start();
    let requests = [
        app.post(CLASSIFY),
        app.post("/v1/models/icons30/features"),
        app.admin("PATCH", "heads/tau"),
        app.admin("PUT", "heads/new"),
        app.admin("POST", "feature-sets"),
        app.admin("POST", "fits"),
    ];
    for request in requests {
        let packed = request.header("content-encoding", "gzip").body(image("key", 0));
        assert!(send(packed).await.problem(415, "unsupported_media_type").contains("content encoding `gzip`"));
    }
    send(app.post(CLASSIFY).header("content-encoding", "Identity").body(image("key", 0))).await.expect(200);
}

#[tokio::test]
async fn what_is_long_is_not_said_again() {
    let long = "A".repeat((1 << 20) - 100);
    let app = shared();
    let tau = |body: String| app.admin("PATCH", "heads/tau").header("content-type", "application/json").body(body);
    let broken = format!("--b\r\ncontent-disposition: form-data; name=\"{}\"\r\n\r\nno end", &long[..10_000]);
    let answers = [
        (post(CLASSIFY, "application/json", format!("{{\"images\": [\"{long}\"]}}")).await, 422, "image 0 of `images`"),
        (post(CLASSIFY, "application/json", format!("{{\"{long}\": 1}}")).await, 422, "unknown field `AAA"),
        (post(CLASSIFY, "application/json", format!("{{\"images\": [{{\"{long}\": 1}}]}}")).await, 422, "nothing else"),
        (post(CLASSIFY, "application/json", format!("{{\"features\": [[\"{long}\"]]}}")).await, 422, "a number"),
        (send(tau(format!("{{\"tau\": \"{long}\"}}"))).await, 422, "`tau`"),
        (send(tau(format!("{{\"bias\": \"{long}\"}}"))).await, 422, "`scale`"),
        (send(tau(format!("{{\"{long}\": 1}}"))).await, 422, "`temperature`"),
        (post(CLASSIFY, "multipart/form-data; boundary=b", broken).await, 400, "multipart"),
        (app.get(&format!("/v1/models/{}", &long[..5_000])).await, 404, "no model"),
        (app.classify(&format!("?{}=1", &long[..5_000]), image("key", 0)).await, 422, "unknown field"),
    ];
    for (index, (answer, status, said)) in answers.into_iter().enumerate() {
        assert_eq!(answer.status, status, "case {index}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.chars().count() < 500 && detail.contains(said), "case {index}: {said} in {detail}");
    }
}

#[tokio::test]
async fn a_temperature_is_any_above_0_and_logits_beyond_float32_are_refused() {
    let app = Setup::new().start();
    for wrong in ["0", "-0.0", "-1", "-1e300"] {
        let body = format!("{{\"temperature\": {wrong}}}");
        let request = app.admin("PATCH", "heads/joint").header("content-type", "application/json").body(body);
        assert!(send(request).await.problem(422, "invalid_setting").contains("a number above 0"), "{wrong}");
    }
    let rows: Vec<Vec<f32>> = feature_rows(1).iter().map(|row| row.iter().map(|x| x * 1e33).collect()).collect();
    app.classify_features("?head=joint", &rows).await.expect(200);
    for head in ["joint", "tau", "ncm"] {
        let query = format!("?head={head}&top_k=30");
        for temperature in [1e-6, 1e6, 1e39, 1e300, f64::MAX] {
            app.patch(head, json!({ "temperature": temperature })).await.expect(200);
            let result = app.classify_features(&query, &feature_rows(1)).await.results(0)[0].clone();
            let predictions = result["predictions"].as_array().unwrap();
            let sum: f64 = predictions.iter().map(|best| best["probability"].as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-5 && predictions.iter().all(|best| best["logit"].is_f64()), "{result}");
        }
        for temperature in [1e-40, 1e-300, f64::MIN_POSITIVE, 5e-324] {
            let answer = app.patch(head, json!({ "temperature": temperature })).await.expect(200).json();
            assert_eq!(answer["settings"]["temperature"], temperature);
            let answer = app.classify_features(&query, &feature_rows(1)).await;
            assert!(answer.problem(422, "not_finite").contains("row 0"));
        }
    }
    app.patch("joint", json!({ "temperature": 1e-6 })).await.expect(200);
    assert_eq!(rows[0].len(), DIM);
    let answer = app.classify_features("?head=joint", &rows).await;
    assert!(answer.problem(422, "not_finite").contains("row 0"));
}
