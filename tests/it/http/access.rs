//! Who may: tokens, roles, listeners.

use std::path::PathBuf;

use equipoise::{
    access::{Role, append_token, new_token},
    http::{NEEDS, Need, ROUTES},
};
use serde_json::json;

use super::feature_rows;
use crate::app::{Answer, Setup, TOKEN, TestApp, image, send, shared};

/// A server with a token of each role beside the one that it always has, and their file.
struct Roles {
    app: TestApp,
    file: PathBuf,
    tokens: [(Role, String); 3],
}

impl Roles {
    fn start(is_closed: bool) -> Self {
        let setup = Setup::new();
        let file = setup.state.path().join("tokens.toml");
        let tokens = Role::ALL.map(|role| {
            let new = new_token(&format!("the-{role}"), role).unwrap();
            append_token(&file, &new.block).unwrap();
            (role, new.token)
        });
        let path = file.clone();
        let app = setup.config(move |config| {
            config.tokens_file = Some(path.clone());
            config.require_auth = is_closed;
        });
        Self { app: app.start(), file, tokens }
    }

    fn of(&self, role: Role) -> &str {
        &self.tokens.iter().find(|(of, _)| *of == role).unwrap().1
    }
}

fn filled(path: &str) -> String {
    path.replace("{model}", "icons30").replace("{head}", "crt").replace("{id}", "none")
}

async fn ask(app: &TestApp, method: &str, path: &str, token: Option<&str>) -> Answer {
    let request = app.request(method, &filled(path)).body("");
    send(match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    })
    .await
}

async fn check_every_route(roles: &Roles, is_closed: bool) {
    for (path, methods) in ROUTES {
        for method in methods {
            let Some((_, _, need)) = NEEDS.iter().find(|(of, at, _)| of == method && *at == path) else {
                panic!("{method} {path} has no entry");
            };
            let needed = match *need {
                Need::Nothing => None,
                Need::IfClosed(role) => is_closed.then_some(role),
                Need::Always(role) => Some(role),
            };
            let answer = async |token| ask(&roles.app, method, path, token).await;
            let Some(needed) = needed else {
                for token in [None, Some("wrong"), Some(roles.of(Role::Predict))] {
                    let status = answer(token).await.status;
                    assert!(![401, 403].contains(&status), "{method} {path}: {status}");
                }
                continue;
            };
            answer(None).await.problem(401, "unauthorized");
            answer(Some("wrong")).await.problem(403, "forbidden");
            for (role, token) in &roles.tokens {
                let answer = answer(Some(token)).await;
                if *role < needed {
                    let detail = answer.problem(403, "role_too_small");
                    assert!(detail.contains(&format!("`{needed}`")) && !detail.contains("the-"), "{detail}");
                } else {
                    assert!(![401, 403].contains(&answer.status), "{method} {path} {role}: {}", answer.text());
                }
            }
        }
    }
}

#[tokio::test]
async fn every_route_asks_of_its_caller_what_the_table_says() {
    check_every_route(&Roles::start(false), false).await;
}

#[tokio::test]
async fn a_closed_server_answers_inference_to_tokens_alone() {
    let roles = Roles::start(true);
    check_every_route(&roles, true).await;
    let request = roles.app.post("/v1/classify").body(image("key", 0)).bearer_auth(roles.of(Role::Predict));
    assert_eq!(send(request).await.predictions(0)[0]["label"], "key");
    // The token that every server has is good for all of it.
    ask(&roles.app, "GET", "/metrics", Some(TOKEN)).await.expect(200);
    // What is not there, and what does not take the method, is so for everybody.
    ask(&roles.app, "GET", "/nothing", None).await.problem(404, "not_found");
    ask(&roles.app, "GET", "/v1/classify", None).await.problem(405, "method_not_allowed");
}

#[tokio::test]
async fn a_small_role_learns_nothing_of_what_lies_below_admin() {
    let roles = Roles::start(false);
    for (method, path) in [
        ("GET", "/admin"),
        ("GET", "/admin/"),
        ("GET", "/admin/nothing"),
        ("OPTIONS", "/admin/v1/models/icons30/heads"),
        ("GET", "/admin/v1/models/none/heads"),
    ] {
        ask(&roles.app, method, path, Some(roles.of(Role::Predict))).await.problem(403, "role_too_small");
        let status = ask(&roles.app, method, path, Some(roles.of(Role::Operate))).await.status;
        assert!([404, 405].contains(&status), "{method} {path}: {status}");
    }
}

#[tokio::test]
async fn who_may_not_publish_may_not_fit_what_publishes_itself() {
    let roles = Roles::start(false);
    let fit = async |role: Role, publish: &str| {
        let body = json!({ "method": "ncm", "feature_set": "fs_0123456789abcdef", "head": "x", "publish": publish });
        send(roles.app.post("/admin/v1/models/icons30/fits").bearer_auth(roles.of(role)).json(&body)).await
    };
    for publish in ["if_better", "always"] {
        assert!(fit(Role::Operate, publish).await.problem(403, "role_too_small").contains("`admin`"));
        fit(Role::Admin, publish).await.problem(404, "feature_set_not_found");
    }
    fit(Role::Operate, "never").await.problem(404, "feature_set_not_found");
}

#[tokio::test]
async fn tokens_come_and_go_while_the_server_runs() {
    let roles = Roles::start(true);
    let status = async |token: &str| ask(&roles.app, "GET", "/v1/models", Some(token)).await.status;
    let new = new_token("late", Role::Predict).unwrap();
    assert_eq!(status(&new.token).await, 403);
    append_token(&roles.file, &new.block).unwrap();
    roles.app.server.reload();
    assert_eq!(status(&new.token).await, 200);

    // A file that is wrong takes nobody's token away, and it is told once.
    let good = std::fs::read_to_string(&roles.file).unwrap();
    std::fs::write(&roles.file, format!("{good}\n[[token]]\nname = \"late\"\n")).unwrap();
    for _ in 0..2 {
        roles.app.server.reload();
        assert_eq!(status(&new.token).await, 200);
    }
    let samples =
        async || crate::app::Samples(ask(&roles.app, "GET", "/metrics", Some(TOKEN)).await.expect(200).text());
    let stale = "equipoise_file_stale{file=\"tokens\"}";
    let reloads = |outcome: &str| format!("equipoise_reloads_total{{file=\"tokens\",outcome=\"{outcome}\"}}");
    let told = samples().await;
    assert_eq!([told.get(stale), told.get(&reloads("ok")), told.get(&reloads("failed"))], [1.0, 1.0, 1.0]);

    // Without being told, too.
    std::fs::write(&roles.file, "").unwrap();
    let gone = async { while status(&new.token).await != 403 {} };
    crate::app::guard("the end of the token", gone).await;
    assert_eq!(samples().await.get(stale), 0.0);
    // The one that every server has stays.
    assert_eq!(status(TOKEN).await, 200);
}

#[test]
fn a_file_of_tokens_that_is_wrong_keeps_the_server_from_starting() {
    let setup = Setup::new();
    let file = setup.state.path().join("tokens.toml");
    let path = file.clone();
    let setup = setup.config(move |config| config.tokens_file = Some(path.clone()));
    let error = setup.server().err().unwrap().to_string();
    assert!(error.contains("tokens.toml"), "{error}");
    std::fs::write(&file, "[[token]]\nname = \"a\"\nrole = \"root\"\nsha256 = \"\"\n").unwrap();
    let error = setup.server().err().unwrap().to_string();
    assert!(error.contains("tokens.toml") && error.contains("`a`"), "{error}");
}

#[tokio::test]
async fn an_admin_listener_has_the_admin_api_for_itself() {
    let any = "127.0.0.1:0".parse().unwrap();
    let app = Setup::new().config(move |config| config.admin_listen = Some(any)).start();
    for (path, methods) in ROUTES.iter().filter(|(path, _)| path.starts_with("/admin")) {
        for method in *methods {
            ask(&app, method, path, Some(TOKEN)).await.problem(404, "not_found");
        }
    }
    // Not even that it is elsewhere is told.
    for path in ["/admin", "/admin/", "/admin/nothing", "/admin/v1/models/icons30/heads"] {
        for token in [None, Some("wrong"), Some(TOKEN)] {
            ask(&app, "GET", path, token).await.problem(404, "not_found");
        }
    }
    app.classify_features("", &feature_rows(1)).await.expect(200);
    app.get("/metrics").await.expect(200);
    let admin = app.admin_url.clone().unwrap();
    let at_admin = async |path: &str| {
        let request = crate::app::pooled_client().get(format!("{admin}{path}")).bearer_auth(TOKEN);
        send(request).await.status
    };
    for path in ["/admin/v1/models/icons30/heads", "/metrics", "/livez", "/readyz", "/docs", "/v1/models"] {
        assert_eq!(at_admin(path).await, 200, "{path}");
    }
    app.shutdown();
}

#[tokio::test]
async fn operators_get_in_when_callers_have_taken_every_connection() {
    let any = "127.0.0.1:0".parse().unwrap();
    let app = Setup::new().config(move |config| {
        config.admin_listen = Some(any);
        config.max_connections = 1;
        config.shutdown_timeout = std::time::Duration::ZERO;
    });
    let app = app.start();
    let taken = tokio::net::TcpStream::connect(app.url.trim_start_matches("http://")).await.unwrap();
    let admin = format!("{}/admin/v1/models/icons30/heads", app.admin_url.clone().unwrap());
    for _ in 0..2 {
        send(crate::app::pooled_client().get(&admin).bearer_auth(TOKEN)).await.expect(200);
    }
    drop(taken);
}

#[tokio::test]
async fn a_token_that_means_nothing_here_is_no_hindrance_where_none_is_needed() {
    for authorization in ["Bearer of-another-system", "Basic dXNlcjpwYXNz"] {
        send(shared().request("GET", "/v1/models").header("authorization", authorization)).await.expect(200);
    }
}
