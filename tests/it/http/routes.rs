//! The list of routes, and what the router makes of paths and methods.

use equipoise::http::ROUTES;

use crate::app::{Setup, TOKEN, TestApp, send, shared};

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

fn filled(path: &str) -> String {
    path.replace("{model}", "icons30").replace("{head}", "crt").replace("{id}", "none")
}

fn request(app: &TestApp, method: &str, path: &str) -> reqwest::RequestBuilder {
    app.request(method, &filled(path)).bearer_auth(TOKEN)
}

#[tokio::test]
async fn every_listed_route_answers_its_methods_and_405_with_allow_to_all_others() {
    // It deletes a head.
    let app = Setup::new().start();
    for (path, methods) in ROUTES {
        for method in METHODS {
            let answer = send(request(&app, method, path)).await;
            let listed = methods.contains(&method) || method == "HEAD" && methods.contains(&"GET");
            if listed {
                assert_ne!(answer.status, 405, "{method} {path}");
                // Where nothing is, the answer is about what is asked for and not about the path.
                if answer.status == 404 && method != "HEAD" {
                    assert_ne!(answer.json()["code"], "not_found", "{method} {path}");
                }
                continue;
            }
            assert_eq!(answer.status, 405, "{method} {path}");
            let mut allow: Vec<&str> = answer.header("allow").unwrap().split(',').map(str::trim).collect();
            allow.retain(|method| *method != "HEAD");
            allow.sort_unstable();
            let mut expected = methods.to_vec();
            expected.sort_unstable();
            assert_eq!(allow, expected, "{method} {path}");
            if method != "HEAD" {
                answer.problem(405, "method_not_allowed");
            }
        }
    }
}

#[tokio::test]
async fn paths_that_are_not_there_are_404() {
    let paths = [
        "/nothing",
        "/v1",
        "/v1/",
        "/v1/models/",
        "/v1/models/icons30/",
        "/v1/models/icons30/classify/",
        "/livez/",
        "//livez",
        "/v1/models/icons30/nothing",
        "/v2/nothing/x",
        "/%00",
        "/%ff",
        "/v1/models/a/b/c/d",
        "/LIVEZ",
    ];
    for path in paths {
        let answer = shared().get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        if !path.starts_with("/v2") {
            answer.problem(404, "not_found");
        }
    }
}

#[tokio::test]
async fn head_answers_as_get_does_and_sends_no_body() {
    for path in
        ["/livez", "/readyz", "/v1/models", "/v1/models/icons30", "/openapi.json", "/docs", "/v1/models/none", "/none"]
    {
        let (get, head) = (shared().get(path).await, send(shared().request("HEAD", path)).await);
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("content-length"), Some(get.body.len().to_string().as_str()), "{path}");
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn errors_under_v2_have_the_form_of_that_protocol() {
    let answer = shared().get("/v2/nothing").await.expect(404);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    assert_eq!(body.as_object().unwrap().len(), 1);
    assert!(answer.header("x-request-id").is_some());
}

#[tokio::test]
async fn the_documentation_is_served() {
    let openapi = shared().get("/openapi.json").await.expect(200);
    assert_eq!(openapi.header("content-type"), Some("application/json"));
    openapi.json();
    let docs = shared().get("/docs").await.expect(200);
    assert!(docs.header("content-type").unwrap().starts_with("text/html"));
    let redirected = shared().get("/").await.expect(200);
    assert_eq!(redirected.body, docs.body);
}
