//! Servers that change the same model at once. `EQUIPOISE_TEST_CHANGES` says how often; some hundred times unless it does.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{Store, heads, whole_audit};
use crate::app::{Answer, TestApp, guard, send};

const SERVERS: usize = 3;

fn n_changes() -> usize {
    std::env::var("EQUIPOISE_TEST_CHANGES").map_or(300, |text| text.parse().unwrap())
}

/// What somebody was told, by the generation of the answer.
type Told = Vec<(u64, Value)>;

fn generation(answer: &Answer) -> u64 {
    answer.header("x-equipoise-generation").unwrap().parse().unwrap()
}

/// Adds one to the temperature of `joint`, however many others do the same.
async fn increment(app: &TestApp) -> (u64, Value) {
    loop {
        let read = send(app.admin("GET", "heads/joint")).await.expect(200);
        let after = read.json()["settings"]["temperature"].as_f64().unwrap() + 1.0;
        let patch = app.admin("PATCH", "heads/joint").header("if-match", read.header("etag").unwrap());
        let answer = send(patch.json(&json!({ "temperature": after }))).await;
        if answer.status == 412 {
            // Somebody else was faster. What he left is there on the next server too.
            let wanted = read.header("x-equipoise-generation").unwrap().parse::<u64>().unwrap() + 1;
            send(app.admin("GET", "heads/joint").header("x-min-generation", wanted)).await;
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

async fn change(app: &TestApp, number: usize) -> (u64, Value) {
    match number % 4 {
        0 => increment(app).await,
        1 => {
            let tau = tau(number);
            let answer = app.patch("tau", json!({ "tau": tau })).await.expect(200);
            (generation(&answer), json!({ "action": "patched", "head": "tau", "tau": tau }))
        }
        2 => {
            let body = json!({ "kind": "tau_norm", "base": "joint", "tau": tau(number) });
            let answer = app.derive_head("soft", body).await.expect(201);
            (generation(&answer), json!({ "action": "published", "version": answer.json()["version"] }))
        }
        _ => {
            let head = ["crt", "lws", "joint"][number / 4 % 3];
            let answer = app.activate(json!({ "head": head })).await.expect(200);
            (generation(&answer), json!({ "action": "activated", "after": head }))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_lost_and_all_servers_end_alike() {
    let (store, n_changes) = (Store::new(), n_changes());
    let apps: Vec<TestApp> = (0..SERVERS).map(|_| store.server(Duration::from_millis(100)).start()).collect();
    // Each server has two callers at once.
    let callers = (0..2 * SERVERS).map(|caller| {
        let app = &apps[caller % SERVERS];
        async move {
            let mut told: Told = Vec::new();
            for number in (caller..n_changes).step_by(2 * SERVERS) {
                told.push(change(app, number).await);
            }
            told
        }
    });
    let told: Told =
        guard("the changes", futures_util::future::join_all(callers)).await.into_iter().flatten().collect();
    assert_eq!(told.len(), n_changes);
    let newest = told.iter().map(|(generation, _)| *generation).max().unwrap();
    for app in &apps {
        app.until("the newest generation", |samples| {
            samples.get("equipoise_state_generation{model=\"icons30\"}") == newest as f64
        })
        .await;
    }
    let list = heads(&apps[0]).await;
    for app in &apps[1..] {
        assert_eq!(heads(app).await, list);
    }

    let audit = whole_audit(&apps[1]).await;
    assert_eq!(audit.len(), n_changes + 1);
    let by_generation: BTreeMap<u64, &Value> =
        audit.iter().map(|entry| (entry["generation"].as_u64().unwrap(), entry)).collect();
    // One history without forks: each generation has the one before as its parent.
    assert_eq!(by_generation.len(), n_changes + 1);
    for (generation, entry) in by_generation.iter().skip(1) {
        assert_eq!(entry["parent"], generation - 1);
    }
    let (mut increments, mut soft) = (0, Vec::new());
    for (generation, what) in &told {
        let change = &by_generation[generation]["change"];
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
    let joint = send(apps[2].admin("GET", "heads/joint")).await.expect(200).json();
    assert_eq!(joint["settings"]["temperature"], 1.0 + f64::from(increments));
    soft.sort_unstable();
    assert_eq!(soft, (1..=soft.len() as u64).collect::<Vec<_>>());
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
    assert_eq!(whole_audit(&apps[0]).await.len(), 1);
}
