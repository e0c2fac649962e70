//! The program itself, as a process of its own.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
};

use equipoise::access::{Role, append_token, new_token};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{Answer, Samples, copy_of_icons30, guard, icons30, image, multipart, pooled_client, try_send};
#[cfg(target_os = "linux")]
use crate::feature_sets::{archives, hostile_files};

const DEPTH: &str = "equipoise_queue_depth{model=\"icons30\"}";

/// A running `equipoise serve`.
pub(crate) struct Process {
    child: Child,
    pub(crate) url: String,
    pub(crate) state: Arc<TempDir>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    client: reqwest::Client,
}

impl Process {
    /// Starts it, and waits until it is ready.
    async fn serve(flags: &[&str], log: &str) -> Self {
        Self::serve_in(TempDir::new().unwrap(), flags, log).await
    }

    /// The same with a state directory that is there already.
    pub(crate) async fn serve_in(state: impl Into<Arc<TempDir>>, flags: &[&str], log: &str) -> Self {
        Self::serve_by(Command::new(env!("CARGO_BIN_EXE_equipoise")), state, flags, log).await
    }

    /// The same where no file can grow beyond so many KiB: as on a disk that is full.
    #[cfg(target_os = "linux")]
    pub(crate) async fn serve_limited(state: impl Into<Arc<TempDir>>, kib: u32) -> Self {
        let mut command = Command::new("bash");
        // Without the trap the signal ends it.
        let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"");
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_equipoise"));
        Self::serve_by(command, state, &[], "info").await
    }

    async fn serve_by(mut command: Command, state: impl Into<Arc<TempDir>>, flags: &[&str], log: &str) -> Self {
        let state = state.into();
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EQUIPOISE_")) {
            command.env_remove(name);
        }
        command.arg("serve").arg(icons30()).args(["--device", "cpu", "--log", log]).args(flags);
        let process = Self::begin(command, state);
        guard("ready", async { while process.get("/readyz").await.status != 200 {} }).await;
        process
    }

    /// Starts it, and waits until it listens.
    fn begin(mut command: Command, state: Arc<TempDir>) -> Self {
        command.args(["--listen", "127.0.0.1:0", "--state-dir"]).arg(state.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (send_url, url) = mpsc::channel();
        let log = Arc::new(Mutex::new(String::new()));
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                let mut stderr = BufReader::new(stderr);
                let mut line = String::new();
                while stderr.read_line(&mut line).is_ok_and(|n| n > 0) {
                    if let Some((_, rest)) = line.split_once("listening on ") {
                        // Nobody listens to a second one.
                        let _ = send_url.send(rest.split_whitespace().next().unwrap().to_owned());
                    }
                    log.lock().unwrap().push_str(&line);
                    line.clear();
                }
            }
        });
        let url = url.recv().unwrap();
        Self { child, url, state, log, reader: Some(reader), client: pooled_client() }
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let answer = try_send(self.client.get(format!("{}{path}", self.url))).await;
        // Whoever ended too early has said why.
        answer.unwrap_or_else(|error| panic!("{error}: {}", self.log.lock().unwrap()))
    }

    /// The token that the server made.
    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.state.path().join("admin-token")).unwrap().trim().to_owned()
    }

    /// Asks for something of icons30 with the token that the server made.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: Vec<u8>) -> Answer {
        self.try_admin(method, &format!("models/icons30/{path}"), body).await.unwrap()
    }

    /// Asks with the token, while the server may end.
    pub(crate) async fn try_admin(&self, method: &str, path: &str, body: Vec<u8>) -> reqwest::Result<Answer> {
        let url = format!("{}/admin/v1/{path}", self.url);
        try_send(self.client.request(method.parse().unwrap(), url).bearer_auth(self.token()).body(body)).await
    }

    /// Ends it at once, as a power failure does, and does not wait.
    pub(crate) fn strike(&self) {
        let kill = Command::new("kill").args(["-KILL", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
    }

    /// Ends it at once, as a power failure does.
    pub(crate) fn kill(mut self) -> Arc<TempDir> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Arc::clone(&self.state)
    }

    /// Resident memory in bytes.
    #[cfg(target_os = "linux")]
    fn resident(&self) -> u64 {
        let mut statm = String::new();
        std::fs::File::open(format!("/proc/{}/statm", self.child.id())).unwrap().read_to_string(&mut statm).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Memory that no file stands behind, in bytes.
    #[cfg(target_os = "linux")]
    fn anonymous(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Uploads a feature set.
    #[cfg(target_os = "linux")]
    async fn upload(&self, body: Vec<u8>) -> Answer {
        let request = self.post("/admin/v1/models/icons30/feature-sets").bearer_auth(self.token());
        try_send(request.body(body)).await.unwrap()
    }

    /// Ends it by SIGTERM; says whether it ended well, and its log.
    pub(crate) async fn terminate(self) -> (bool, String) {
        self.tell_to_end();
        let (code, log) = self.end().await;
        (code == Some(0), log)
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn tell_to_end(&self) {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
    }

    /// Waits for its end; gives its exit code, none if a signal ended it, and its log.
    async fn end(mut self) -> (Option<i32>, String) {
        let end = tokio::task::spawn_blocking(move || {
            let status = self.child.wait().unwrap();
            self.reader.take().unwrap().join().unwrap();
            (status.code(), self.log())
        });
        guard("the end of the process", end).await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_token_never_appears_in_the_log() {
    let process = Process::serve(&[], "trace").await;
    let token = process.token();
    let heads = "/admin/v1/models/icons30/heads";
    let wrong = "wrong-0123456789";
    for (authorization, status) in
        [(format!("Bearer {token}"), 200), (format!("Token {token}"), 401), (format!("Bearer {wrong}"), 403)]
    {
        let request = process.client.get(format!("{}{heads}", process.url)).header("authorization", authorization);
        try_send(request).await.unwrap().expect(status);
    }
    let patch = process.client.patch(format!("{}{heads}/tau", process.url)).bearer_auth(&token);
    try_send(patch.json(&json!({ "tau": 0.5 }))).await.unwrap().expect(200);
    try_send(process.post("/v1/classify").body(image("key", 0))).await.unwrap().expect(200);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
    assert!(log.contains("changed the settings of head `tau`") && log.contains("stopped"), "{log}");
    let change = log.lines().find(|line| line.contains("changed the settings")).unwrap();
    assert!(change.contains("caller=\"admin\" role=\"admin\""), "{change}");
    assert!(!log.contains(&token) && !log.contains(wrong));
}

#[tokio::test]
async fn no_caller_writes_lines_of_the_log() {
    let process = Process::serve(&[], "debug").await;
    let query = "x%0a2026-01-01T00:00:00Z%20ERROR%20forged%1b[31m=1";
    try_send(process.post(&format!("/v1/classify?{query}")).body(image("key", 0))).await.unwrap().expect(422);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("forged")).collect();
    assert!(!told.is_empty() && told.iter().all(|line| !line.starts_with("2026-01-01")), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_hangup_reads_the_tokens_again_and_the_log_says_who_asks() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens.toml");
    let new = |name: &str| {
        let new = new_token(name, Role::Predict).unwrap();
        append_token(&file, &new.block).unwrap();
        new.token
    };
    let early = new("early");
    let path = file.to_str().unwrap();
    let process = Process::serve(&["--tokens-file", path, "--require-auth"], "debug").await;
    let status = async |token: &str| {
        let request = process.post("/v1/classify").bearer_auth(token).body(image("key", 0));
        try_send(request).await.unwrap().status
    };
    assert_eq!(status(&early).await, 200);
    let late = new("late");
    let hangup = Command::new("kill").args(["-HUP", &process.child.id().to_string()]).status().unwrap();
    assert!(hangup.success());
    guard("the new token", async { while status(&late).await != 200 {} }).await;
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
    for part in ["the tokens have changed: 3 are known", "caller=\"early\" role=\"predict\"", "caller=\"late\""] {
        assert!(log.contains(part), "no `{part}` in {log}");
    }
    assert!(!log.contains(&early) && !log.contains(&late));
}

#[tokio::test]
async fn the_ready_line_names_both_listeners() {
    let process = Process::serve(&["--admin-listen", "0.0.0.0:0", "--allow-insecure-admin"], "info").await;
    process.get("/admin/v1/models/icons30/heads").await.problem(404, "not_found");
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
    assert!(log.contains("and, with the admin API, on http://0.0.0.0:"), "{log}");
}

#[tokio::test]
async fn overload_answers_everybody_and_takes_no_memory() {
    const REQUESTS: usize = 10_200;
    const CONCURRENCY: usize = 64;
    /// Resident memory may grow by this from the first third of the run to its end: what an allocator keeps, and no leak.
    /// A leak of one decoded image a request would be 40 MB.
    const MAX_GROWTH_BYTES: u64 = 16 << 20;

    let process = Process::serve(&["--queue-capacity", "32"], "info").await;
    let files: Vec<Vec<u8>> = ["key", "star", "moon", "bell"].map(|label| image(label, 0)).to_vec();
    let third = async || {
        let callers = (0..CONCURRENCY).map(|caller| {
            let (process, files) = (&process, &files);
            async move {
                let mut counts = [0_usize; 2];
                let n = REQUESTS / 3 / CONCURRENCY + usize::from(caller < REQUESTS / 3 % CONCURRENCY);
                for request in 0..n {
                    let body = files[(caller + request) % files.len()].clone();
                    let answer = try_send(process.post("/v1/classify?head=joint,tau").body(body)).await.unwrap();
                    match answer.status {
                        200 => {
                            let answer: Value = answer.json();
                            assert_eq!(answer["images"][0]["results"].as_array().unwrap().len(), 2);
                            counts[0] += 1;
                        }
                        _ => {
                            answer.problem(503, "overloaded");
                            counts[1] += 1;
                        }
                    }
                }
                counts
            }
        });
        let counts = futures_util::future::join_all(callers).await;
        counts.into_iter().fold([0, 0], |sum, counts| [sum[0] + counts[0], sum[1] + counts[1]])
    };
    let mut resident = Vec::new();
    let mut total = [0, 0];
    for _ in 0..3 {
        let counts = third().await;
        total = [total[0] + counts[0], total[1] + counts[1]];
        #[cfg(target_os = "linux")]
        resident.push(process.resident());
    }
    assert_eq!(total[0] + total[1], REQUESTS);
    assert!(total[0] > 0 && total[1] > 0, "{total:?}");
    if let (Some(first), Some(last)) = (resident.first(), resident.last()) {
        assert!(last.saturating_sub(*first) <= MAX_GROWTH_BYTES, "{resident:?}");
    }
    let samples = Samples(process.get("/metrics").await.expect(200).text());
    assert_eq!(samples.get("equipoise_queue_depth{model=\"icons30\"}"), 0.0);
    assert_eq!(samples.get("equipoise_requests_in_flight"), 1.0);
    assert_eq!(samples.get("equipoise_rejected_total{reason=\"overloaded\"}"), total[1] as f64);
    assert_eq!(samples.get("equipoise_requests_total{route=\"/v1/classify\",status=\"200\"}"), total[0] as f64);
    assert_eq!(samples.get("equipoise_batch_size_sum{model=\"icons30\"}"), total[0] as f64);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
}

#[tokio::test]
async fn a_fit_that_ran_when_the_process_was_killed_has_failed() {
    let process = Process::serve(&[], "info").await;
    let train = std::fs::read(icons30().join("features/train.npz")).unwrap();
    let set = process.admin("POST", "feature-sets", train).await.expect(201).json()["id"].clone();
    let done = json!({ "method": "ncm", "feature_set": set, "head": "done" });
    let long = json!({ "method": "crt", "feature_set": set, "head": "long",
        "params": { "epochs": 100_000, "batch_size": 8 } });
    let mut ids = Vec::new();
    for body in [&done, &long, &long] {
        let answer = process.admin("POST", "fits", body.to_string().into_bytes()).await.expect(202);
        ids.push(format!("fits/{}", answer.json()["id"].as_str().unwrap()));
    }
    let running = async { while process.admin("GET", &ids[1], Vec::new()).await.json()["progress"].is_null() {} };
    guard("progress", running).await;
    // What fits goes after what serves.
    #[cfg(target_os = "linux")]
    {
        let threads = std::fs::read_dir(format!("/proc/{}/task", process.child.id())).unwrap();
        let niceness = threads.filter_map(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            let (before, after) = stat.rsplit_once(')').unwrap();
            // The nineteenth field of the line, of which two stand before the name's end.
            before.ends_with("(fit").then(|| after.split_whitespace().nth(16).unwrap().to_owned())
        });
        let niceness: Vec<String> = niceness.collect();
        assert!(!niceness.is_empty() && niceness.iter().all(|value| value == "19"), "{niceness:?}");
    }
    let state = process.kill();
    let process = Process::serve_in(state, &[], "info").await;
    let first = process.admin("GET", &ids[0], Vec::new()).await.expect(200).json();
    assert_eq!(first["state"], "succeeded");
    for id in &ids[1..] {
        let fit = process.admin("GET", id, Vec::new()).await.expect(200).json();
        assert_eq!((&fit["state"], &fit["error"]), (&json!("failed"), &json!("the server stopped while it ran")));
    }
    process.admin("POST", &format!("{}/publish", ids[0]), Vec::new()).await.expect(201);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn feature_sets_are_never_held_in_memory_as_a_whole() {
    const ROWS: usize = 1 << 17;
    const BYTES: usize = ROWS * crate::app::DIM * 4;
    /// Of 48 MiB.
    const MAX_GROWTH_BYTES: u64 = 16 << 20;

    let process = Process::serve(&[], "info").await;
    let values: Vec<u8> = (0..BYTES / 4).flat_map(|index| (index as f32).to_le_bytes()).collect();
    let (shape, labels) = (format!("({ROWS}, {})", crate::app::DIM), vec![0; ROWS]);
    let by_column = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': {shape}, }}");
    let labels = archives::npy("|u1", &format!("({ROWS},)"), &labels);
    let files = [
        archives::npz(&archives::npy("<f4", &shape, &values), &labels),
        archives::npz(&archives::npy_with_header([1, 0], &by_column, &values), &labels),
    ];
    drop(values);
    // What it takes for an upload at all.
    process.upload(files[0][..1 << 20].to_vec()).await.problem(422, "invalid_feature_set");
    let before = process.anonymous();
    for file in files {
        let mut most = 0;
        let mut upload = std::pin::pin!(process.upload(file));
        let answer = loop {
            let pause = std::time::Duration::from_millis(5);
            match tokio::time::timeout(pause, &mut upload).await {
                Ok(answer) => break answer,
                Err(_) => most = most.max(process.anonymous()),
            }
        };
        assert_eq!(answer.expect(201).json()["rows"], ROWS);
        assert!(most.saturating_sub(before) <= MAX_GROWTH_BYTES, "{before} and then {most}");
    }
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn hundreds_of_files_that_lie_take_no_memory() {
    const MAX_GROWTH_BYTES: u64 = 8 << 20;

    let process = Process::serve(&["--max-feature-set-bytes", "1048576"], "info").await;
    let mut anonymous = Vec::new();
    for _ in 0..3 {
        for (what, bytes) in hostile_files() {
            let answer = process.upload(bytes).await;
            assert!([413, 422].contains(&answer.status), "{what}: {}", answer.text());
        }
        anonymous.push(process.anonymous());
    }
    assert!(anonymous[2].saturating_sub(anonymous[0]) <= MAX_GROWTH_BYTES, "{anonymous:?}");
    process.get("/readyz").await.expect(200);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
}

#[tokio::test]
async fn a_damaged_feature_set_is_named_in_the_log_at_the_start() {
    let state = TempDir::new().unwrap();
    let folder = state.path().join("models/icons30/feature-sets");
    std::fs::create_dir_all(&folder).unwrap();
    let name = format!("{}.safetensors", "0123456789abcdef".repeat(4));
    std::fs::write(folder.join(&name), "damaged").unwrap();
    let process = Process::serve_in(state, &[], "info").await;
    assert!(process.state.path().join("models/icons30/feature-sets").join(&name).exists());
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
    assert!(log.contains(&name) && log.contains("is not available: not a readable safetensors file"), "{log}");
}

#[tokio::test]
async fn its_end_in_the_middle_of_work_is_no_crash() {
    let flags = ["--shutdown-timeout-s", "0", "--lone-threads", "2"];
    let (kind, body) = multipart(&vec![image("key", 0); 200]);
    for signals in [1, 2, 1, 2] {
        let process = Process::serve(&flags[if signals == 1 { 0..4 } else { 2..4 }], "info").await;
        let ask = || process.post("/v1/classify").header("content-type", &kind).body(body.clone());
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let request = ask();
                // Its answer, if there is one, is nobody's.
                tokio::spawn(async move {
                    let mut requests = vec![request];
                    while let Some(request) = requests.pop() {
                        requests.extend(request.try_clone());
                        if request.send().await.is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        let is_busy = || async { Samples(process.get("/metrics").await.text()).get(DEPTH) > 0.0 };
        guard("a queue", async { while !is_busy().await {} }).await;
        process.tell_to_end();
        if signals == 2 {
            guard("the first signal", async { while !process.log().contains("shutting down") {} }).await;
            process.tell_to_end();
        }
        let (code, log) = process.end().await;
        match signals {
            1 => assert_eq!(code, Some(0), "{log}"),
            // All may have been answered before the second.
            _ => assert!(matches!(code, Some(0 | 1)), "{code:?}: {log}"),
        }
        assert!(!log.contains("ERROR"), "{log}");
        clients.iter().for_each(|client| client.abort());
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn as_many_files_may_be_open_as_the_system_allows_and_where_these_are_few_the_log_says_so() {
    let mut command = Command::new("bash");
    let script = "ulimit -Sn 200; ulimit -Hn 600; exec \"$0\" \"$@\"";
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_equipoise"));
    let process = Process::serve_by(command, TempDir::new().unwrap(), &[], "info").await;
    assert_eq!(Samples(process.get("/metrics").await.text()).get("process_max_fds"), 600.0);
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
    assert!(log.contains("the system allows 600 open files"), "{log}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_model_that_cannot_be_read_to_its_end_does_not_hold_the_end_of_the_program() {
    let model = copy_of_icons30();
    let labels = model.path().join("labels.txt");
    std::fs::remove_file(&labels).unwrap();
    // As a network's disk that is gone.
    assert!(Command::new("mkfifo").arg(&labels).status().unwrap().success());
    let mut serve = Command::new(env!("CARGO_BIN_EXE_equipoise"));
    serve.arg("serve").arg(model.path()).args(["--device", "cpu", "--log", "info"]);
    let process = Process::begin(serve, Arc::new(TempDir::new().unwrap()));
    let (ended_well, log) = process.terminate().await;
    assert!(ended_well, "{log}");
}

#[tokio::test]
async fn classes_that_have_another_order_than_the_heads_of_the_state_are_warned_of() {
    let (model, state) = (copy_of_icons30(), Arc::new(TempDir::new().unwrap()));
    let log = async || {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_equipoise"));
        serve.arg("serve").arg(model.path()).args(["--device", "cpu", "--log", "info"]);
        let process = Process::begin(serve, Arc::clone(&state));
        guard("ready", async { while process.get("/readyz").await.status != 200 {} }).await;
        process.terminate().await.1
    };
    for _ in 0..2 {
        assert!(!log().await.contains("since its state was written"));
    }
    let labels = model.path().join("labels.txt");
    let text = std::fs::read_to_string(&labels).unwrap();
    let reversed: Vec<&str> = text.lines().rev().collect();
    std::fs::write(&labels, reversed.join("\n")).unwrap();
    let log = log().await;
    assert_eq!(
        log.matches("the classes of model `icons30` have changed since its state was written").count(),
        1,
        "{log}"
    );
    assert!(log.contains(state.path().join("models/icons30").to_str().unwrap()), "{log}");
}
