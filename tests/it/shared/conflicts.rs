//! Servers that change the same model at once. `EQUIPOISE_TEST_CHANGES` says how often; some hundred times unless it does.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Store, heads};
use crate::{
    app::{Answer, Samples, TOKEN, TestApp, guard, pooled_client, send},
    process::Process,
};

const SERVERS: usize = 3;
/// By then all have what any of them was asked for: a hundred times what it takes.
const CONVERGENCE: Duration = Duration::from_secs(10);

fn n_changes(usual: usize) -> usize {
    std::env::var("EQUIPOISE_TEST_CHANGES").map_or(usual, |text| text.parse().unwrap())
}

/// Somebody who asks one server.
struct Operator {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Operator {
    fn of_app(app: &TestApp) -> Self {
        Self { client: pooled_client(), url: app.url.clone(), token: TOKEN.to_owned() }
    }

    fn of_process(process: &Process) -> Self {
        Self { client: pooled_client(), url: process.url.clone(), token: process.token() }
    }

    fn ask(&self, method: &str, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.url);
        self.client.request(method.parse().unwrap(), url).bearer_auth(&self.token)
    }

    fn of_model(&self, method: &str, path: &str) -> RequestBuilder {
        self.ask(method, &format!("/admin/v1/models/icons30/{path}"))
    }

    async fn heads(&self) -> Value {
        send(self.of_model("GET", "heads")).await.expect(200).json()
    }

    /// The generation that it serves.
    async fn serves(&self) -> f64 {
        let samples = Samples(send(self.ask("GET", "/metrics")).await.expect(200).text());
        samples.get("equipoise_state_generation{model=\"icons30\"}")
    }
}

/// What somebody was told, by the generation of the answer.
type Told = Vec<(u64, Value)>;

fn generation(answer: &Answer) -> u64 {
    answer.header("x-equipoise-generation").unwrap().parse().unwrap()
}

/// Adds one to the temperature of `joint`, however many others do the same.
async fn increment(server: &Operator) -> (u64, Value) {
    loop {
        let read = send(server.of_model("GET", "heads/joint")).await.expect(200);
        let after = read.json()["settings"]["temperature"].as_f64().unwrap() + 1.0;
        let patch = server.of_model("PATCH", "heads/joint").header("if-match", read.header("etag").unwrap());
        let answer = send(patch.json(&json!({ "temperature": after }))).await;
        if answer.status == 412 {
            // Somebody else was faster. What he left is there on the next server too.
            let wanted = generation(&read) + 1;
            send(server.of_model("GET", "heads/joint").header("x-min-generation", wanted)).await;
            continue;
        }
        let answer = answer.expect(200);
        assert_eq!(answer.json()["settings"]["temperature"], after);
        return (generation(&answer), json!({ "action": "patched", "head": "joint" }));
    }
}

/// Of a few hundred in the range of the setting.
fn tau(number: usize) -> f64 {
    (number % 500) as f64 / 100.0
}

async fn change(server: &Operator, number: usize) -> (u64, Value) {
    match number % 4 {
        0 => increment(server).await,
        1 => {
            let tau = tau(number);
            let patch = server.of_model("PATCH", "heads/tau").json(&json!({ "tau": tau }));
            (generation(&send(patch).await.expect(200)), json!({ "action": "patched", "head": "tau", "tau": tau }))
        }
        2 => {
            let body = json!({ "kind": "tau_norm", "base": "joint", "tau": tau(number) });
            let answer = send(server.of_model("PUT", "heads/soft").json(&body)).await.expect(201);
            (generation(&answer), json!({ "action": "published", "version": answer.json()["version"] }))
        }
        _ => {
            let head = ["crt", "lws", "joint"][number / 4 % 3];
            let answer = send(server.of_model("PUT", "default-head").json(&json!({ "head": head }))).await.expect(200);
            (generation(&answer), json!({ "action": "activated", "after": head }))
        }
    }
}

/// The whole audit, by generation.
async fn audit_of(server: &Operator) -> BTreeMap<u64, Value> {
    let (mut entries, mut query) = (BTreeMap::new(), "limit=1000".to_owned());
    loop {
        let page = send(server.ask("GET", &format!("/admin/v1/audit?{query}"))).await.expect(200).json();
        for entry in page["entries"].as_array().unwrap() {
            let earlier = entries.insert(entry["generation"].as_u64().unwrap(), entry.clone());
            assert_eq!(earlier, None);
        }
        let Some(next) = page["next"].as_str() else { return entries };
        query = format!("limit=1000&before={next}");
    }
}

/// Lets two callers of each server make changes at once; then all servers are alike, and all that was told has happened.
async fn check(servers: &[Operator], n_changes: usize) {
    let n_callers = 2 * servers.len();
    let callers = (0..n_callers).map(|caller| {
        let server = &servers[caller % servers.len()];
        async move {
            let mut told: Told = Vec::new();
            for number in (caller..n_changes).step_by(n_callers) {
                told.push(change(server, number).await);
            }
            told
        }
    });
    let told: Told =
        guard("the changes", futures_util::future::join_all(callers)).await.into_iter().flatten().collect();
    assert_eq!(told.len(), n_changes);
    let newest = told.iter().map(|(generation, _)| *generation).max().unwrap();
    for (index, server) in servers.iter().enumerate() {
        let arrives = async { while server.serves().await != newest as f64 {} };
        let arrived = tokio::time::timeout(CONVERGENCE, arrives).await;
        assert!(arrived.is_ok(), "server {index} is at {} of {newest}", server.serves().await);
    }
    let list = servers[0].heads().await;
    for server in &servers[1..] {
        assert_eq!(server.heads().await, list);
    }

    let audit = audit_of(&servers[1]).await;
    assert_eq!(audit.len(), n_changes + 1);
    // One history without forks: each generation has the one before as its parent.
    for (generation, entry) in audit.iter().skip(1) {
        assert_eq!(entry["parent"], generation - 1);
    }
    let (mut increments, mut soft) = (0, Vec::new());
    for (generation, what) in &told {
        let change = &audit[generation]["change"];
        assert_eq!(change["action"], what["action"], "{change}");
        match what["action"].as_str().unwrap() {
            "patched" if what["head"] == "joint" => {
                let [before, after] = ["before", "after"].map(|when| change[when]["temperature"].as_f64().unwrap());
                assert_eq!(after, before + 1.0);
                increments += 1;
            }
            "patched" => assert_eq!(change["after"]["tau"], what["tau"]),
            "published" => {
                assert_eq!(change["version"], what["version"]);
                soft.push(what["version"].as_u64().unwrap());
            }
            _ => assert_eq!(change["after"]["head"], what["after"]),
        }
    }
    let joint = send(servers[2].of_model("GET", "heads/joint")).await.expect(200).json();
    assert_eq!(joint["settings"]["temperature"], 1.0 + f64::from(increments));
    soft.sort_unstable();
    assert_eq!(soft, (1..=soft.len() as u64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_lost_and_all_servers_end_alike() {
    let store = Store::new();
    let apps: Vec<TestApp> = (0..SERVERS).map(|_| store.server(Duration::from_millis(100)).start()).collect();
    let servers: Vec<Operator> = apps.iter().map(Operator::of_app).collect();
    check(&servers, n_changes(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_lost_between_processes() {
    let store = Store::new();
    let flags = ["--state", store.url.as_str(), "--state-poll-ms", "100"];
    let start = (0..SERVERS).map(|_| Process::serve_in(Arc::new(TempDir::new().unwrap()), &flags, "info"));
    let processes: Vec<Process> = futures_util::future::join_all(start).await;
    let servers: Vec<Operator> = processes.iter().map(Operator::of_process).collect();
    check(&servers, n_changes(60)).await;
    for process in processes {
        let (ended_well, log) = process.terminate().await;
        assert!(ended_well && !log.contains(" ERROR ") && !log.contains("panicked"), "{log}");
    }
}

#[tokio::test]
async fn servers_that_start_at_once_agree_on_the_first_generation() {
    let store = Store::new();
    let setups: Vec<_> = (0..SERVERS).map(|_| store.server(Duration::from_secs(3600))).collect();
    let apps: Vec<TestApp> = std::thread::scope(|scope| {
        let starting: Vec<_> = setups.iter().map(|setup| scope.spawn(|| setup.start())).collect();
        starting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for app in &apps {
        assert_eq!(heads(app).await, heads(&apps[0]).await);
    }
    assert_eq!(audit_of(&Operator::of_app(&apps[0])).await.len(), 1);
}
