//! Servers that are killed in the middle of changes: what was answered is there, and nothing is half there.
//!
//! `EQUIPOISE_TEST_KILLS` says how often; a few times unless it does.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    app::{Samples, guard},
    http::head_file,
    process::Process,
    shared::Store,
};

fn n_kills() -> usize {
    std::env::var("EQUIPOISE_TEST_KILLS").map_or(20, |text| text.parse().unwrap())
}

/// From 0 to this.
fn random_below(limit: u64) -> u64 {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    u64::from_le_bytes(random) % limit
}

/// What was answered, by generation: what the audit must say of it.
type Answered = Mutex<BTreeMap<u64, Value>>;

/// Makes changes until the server is gone.
async fn change_until_the_end(process: &Process, number: &AtomicUsize, answered: &Answered) {
    loop {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let tau = number as f64 / 1e6;
        let (method, path, body) = match number % 5 {
            0 | 1 => ("PATCH", "heads/tau", json!({ "tau": tau }).to_string().into_bytes()),
            2 => ("PUT", "heads/mine", head_file(number, None)),
            3 => {
                let head = ["tau", "joint"][number / 5 % 2];
                ("PUT", "default-head", json!({ "head": head }).to_string().into_bytes())
            }
            _ => ("POST", "rollback", Vec::new()),
        };
        let answer = process.try_admin(method, &format!("models/icons30/{path}"), body).await;
        let Ok(answer) = answer else { return };
        if [200, 201].contains(&answer.status) {
            let generation = answer.header("x-equipoise-generation").unwrap().parse().unwrap();
            let state = answer.json();
            let told = match number % 5 {
                0 | 1 => json!({ "action": "patched", "after": { "tau": tau } }),
                2 => json!({ "action": "published", "version": state["version"] }),
                3 => json!({ "action": "activated", "after": { "head": state["head"] } }),
                _ => json!({ "action": "rolled_back", "after": { "head": state["head"] } }),
            };
            let earlier = answered.lock().unwrap().insert(generation, told);
            assert_eq!(earlier, None, "generation {generation} was answered twice");
        } else {
            // There may be nothing to go back to; of two servers one may have to wait.
            assert!([409, 503].contains(&answer.status), "{}", answer.text());
        }
    }
}

/// Whether all that `expected` says also stands in `found`.
fn says(found: &Value, expected: &Value) -> bool {
    match expected {
        Value::Object(expected) => expected.iter().all(|(key, expected)| says(&found[key], expected)),
        expected => found == expected,
    }
}

/// Holds the whole audit of a server against what was answered.
async fn check(process: &Process, answered: &Answered) -> usize {
    let (mut found, mut query) = (BTreeMap::new(), "audit?limit=1000".to_owned());
    loop {
        let page = process.try_admin("GET", &query, Vec::new()).await.unwrap().expect(200).json();
        for entry in page["entries"].as_array().unwrap() {
            found.insert(entry["generation"].as_u64().unwrap(), entry.clone());
        }
        let Some(next) = page["next"].as_str() else { break };
        query = format!("audit?limit=1000&before={next}");
    }
    for (generation, told) in answered.lock().unwrap().iter() {
        assert!(says(&found[generation]["change"], told), "{told} and then {}", found[generation]);
    }
    for (index, (generation, entry)) in found.iter().enumerate() {
        assert_eq!(*generation, index as u64 + 1);
        assert!(index == 0 || entry["parent"] == index, "{entry}");
    }
    let samples = Samples(process.get("/metrics").await.expect(200).text());
    assert_eq!(samples.get("equipoise_state_damaged_files{model=\"icons30\"}"), 0.0);
    found.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_answered_is_there_after_a_kill_at_any_moment() {
    let state = Arc::new(TempDir::new().unwrap());
    let (number, answered) = (AtomicUsize::new(0), Answered::default());
    for _ in 0..n_kills() {
        let process = Process::serve_in(Arc::clone(&state), &[], "info").await;
        let strike = async {
            tokio::time::sleep(Duration::from_micros(random_below(200_000))).await;
            process.strike();
        };
        let callers =
            futures_util::future::join_all((0..3).map(|_| change_until_the_end(&process, &number, &answered)));
        guard("the end of the server", async { tokio::join!(strike, callers) }).await;
        drop(process);
    }
    let process = Process::serve_in(state, &[], "info").await;
    let n_generations = check(&process, &answered).await;
    let n_answered = answered.lock().unwrap().len();
    // Of each kill at most one change a caller was written and not answered.
    assert!(n_answered > 0 && n_generations <= n_answered + 1 + 3 * n_kills(), "{n_generations} of {n_answered}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_one_is_killed_and_the_other_goes_on() {
    let store = Store::new();
    let flags = ["--state", store.url.as_str(), "--state-poll-ms", "50"];
    let (number, answered) = (AtomicUsize::new(0), Answered::default());
    let serve = || Process::serve_in(TempDir::new().unwrap(), &flags, "info");
    let mut servers = [serve().await, serve().await];
    for _ in 0..n_kills().div_ceil(2) {
        let victim = random_below(2) as usize;
        let strike = async {
            tokio::time::sleep(Duration::from_micros(random_below(200_000))).await;
            servers[victim].strike();
        };
        let of_victim = change_until_the_end(&servers[victim], &number, &answered);
        // The other is asked until the first is gone.
        let survivor = change_until_the_end(&servers[1 - victim], &number, &answered);
        let both = async {
            tokio::select! {
                () = async { tokio::join!(strike, of_victim); } => {}
                () = survivor => panic!("the other server ended too"),
            }
        };
        guard("the end of the server", both).await;
        servers[victim] = serve().await;
    }
    let n_of_each = [check(&servers[0], &answered).await, check(&servers[1], &answered).await];
    assert_eq!(n_of_each[0], n_of_each[1]);
    let newest = n_of_each[0].to_string();
    for server in &servers {
        let list = |generation: String| server.try_admin("GET", "models/icons30/heads", generation.into_bytes());
        let wait =
            async { while list(String::new()).await.unwrap().header("x-equipoise-generation") != Some(&newest) {} };
        guard("the newest generation", wait).await;
    }
    let [a, b] = [&servers[0], &servers[1]].map(|server| server.admin("GET", "heads", Vec::new()));
    assert_eq!(a.await.expect(200).body, b.await.expect(200).body);
}

#[cfg(target_os = "linux")]
fn files_under(folder: &std::path::Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_under(&path)),
            false => files.push(path.to_str().unwrap().to_owned()),
        }
    }
    files
}

#[tokio::test]
async fn a_start_on_a_full_disk_leaves_no_half_of_a_token() {
    let state = Arc::new(TempDir::new().unwrap());
    let mut full = std::process::Command::new("bash");
    full.arg("-c").arg("trap '' XFSZ; ulimit -f 0; exec \"$0\" serve --listen 127.0.0.1:0 --state-dir \"$1\"");
    let refused = full.arg(env!("CARGO_BIN_EXE_equipoise")).arg(state.path()).output().unwrap();
    let log = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && log.contains("admin-token"), "{log}");
    let process = Process::serve_in(state, &[], "info").await;
    assert_eq!(process.token().len(), 64);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
}

#[tokio::test]
async fn a_full_disk_refuses_changes_and_loses_nothing() {
    let state = Arc::new(TempDir::new().unwrap());
    let patch = |tau: f64| json!({ "tau": tau }).to_string().into_bytes();
    let process = Process::serve_in(Arc::clone(&state), &[], "info").await;
    process.admin("PATCH", "heads/tau", patch(0.25)).await.expect(200);
    process.terminate().await;
    // No room for a head file; no room for a manifest.
    for (kib, patches) in [(8, true), (1, false)] {
        let process = Process::serve_limited(Arc::clone(&state), kib).await;
        let before = process.admin("GET", "heads", Vec::new()).await.expect(200).body;
        process.admin("PUT", "heads/mine", head_file(1, None)).await.problem(500, "state_not_written");
        assert_eq!(process.admin("GET", "heads", Vec::new()).await.expect(200).body, before);
        assert!(!files_under(state.path()).iter().any(|file| file.ends_with(".tmp")));
        let answer = process.admin("PATCH", "heads/tau", patch(0.5)).await;
        match patches {
            true => drop(answer.expect(200)),
            false => drop(answer.problem(500, "state_not_written")),
        }
        let (ended_well, log) = process.terminate().await;
        assert!(ended_well && log.contains("File too large") && log.contains("models/icons30/blobs"), "{log}");
    }
    let process = Process::serve_in(Arc::clone(&state), &[], "info").await;
    let head = process.admin("GET", "heads/tau", Vec::new()).await.expect(200).json();
    assert_eq!(head["settings"]["tau"], 0.5);
    process.admin("PUT", "heads/mine", head_file(1, None)).await.expect(201);
    assert_eq!(check(&process, &Answered::default()).await, 4);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
    let left = std::fs::read_dir(state.path().join("models/icons30/generations")).unwrap();
    assert_eq!(left.count(), 4);
}

#[tokio::test]
async fn damaged_files_are_named_in_the_log_at_the_start() {
    let state = Arc::new(TempDir::new().unwrap());
    let process = Process::serve_in(Arc::clone(&state), &[], "info").await;
    for tau in [0.1, 0.2, 0.3] {
        process.admin("PATCH", "heads/tau", json!({ "tau": tau }).to_string().into_bytes()).await.expect(200);
    }
    process.terminate().await;
    let generation = |number: u32| state.path().join(format!("models/icons30/generations/{number:011}.json"));
    std::fs::write(generation(4), "torn").unwrap();
    std::fs::remove_file(generation(2)).unwrap();
    let process = Process::serve_in(Arc::clone(&state), &[], "info").await;
    assert_eq!(process.admin("GET", "heads/tau", Vec::new()).await.json()["settings"]["tau"], 0.2);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
    for (number, problem) in [(4, "expected ident"), (2, "it is missing")] {
        let line = format!("{} is damaged: {problem}", generation(number).display());
        assert!(log.contains(&line), "no `{line}` in {log}");
    }
    assert!(log.contains("serving generation 3"), "{log}");
}
