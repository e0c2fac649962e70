//! The servers: how each is started, where it answers, and how it is halted while another one has its turn.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Mutex,
    time::{Duration, Instant},
};

use equipoise::config::cores;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, request};

const START_TIMEOUT: Duration = Duration::from_secs(120);

/// The groups of processes that run. Ctrl-C runs no destructor, and reaches no group but this process's.
static GROUPS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Server {
    #[serde(rename = "equipoise")]
    Equipoise,
    #[serde(rename = "FastAPI")]
    FastApi,
    LitServe,
    #[serde(rename = "mosec")]
    Mosec,
}

impl Server {
    pub(crate) const ALL: [Self; 4] = [Self::Equipoise, Self::FastApi, Self::LitServe, Self::Mosec];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Equipoise => "equipoise",
            Self::FastApi => "FastAPI",
            Self::LitServe => "LitServe",
            Self::Mosec => "mosec",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Equipoise => "/v1/classify?head=joint&top_k=5",
            Self::FastApi => "/classify",
            Self::LitServe => "/predict",
            Self::Mosec => "/inference",
        }
    }

    /// Where its answer has the best prediction.
    fn best(self) -> &'static str {
        match self {
            Self::Equipoise => "/images/0/results/0/predictions/0",
            _ => "/predictions/0",
        }
    }

    fn command(self, setting: &Setting, port: u16, folder: &Path) -> Command {
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
        let mut command = match self {
            Self::Equipoise => Command::new(env!("CARGO_BIN_EXE_equipoise")),
            _ => Command::new(setting.python.as_deref().unwrap_or(Path::new("python3"))),
        };
        match self {
            Self::Equipoise => {
                command
                    .arg("serve")
                    .args(&setting.models)
                    .args(["--device", "cpu"])
                    .args(setting.tune.then_some("--tune"));
                command.arg("--state-dir").arg(folder);
                command.arg(format!("--listen=127.0.0.1:{port}"));
            }
            Self::FastApi => {
                command.args(["-m", "uvicorn", "fastapi_server:app", "--log-level", "warning", "--app-dir"]).arg(peers);
                command.arg(format!("--port={port}")).arg(format!("--workers={}", cores()));
                // A halted worker does not answer its supervisor, which would start another.
                command.arg("--timeout-worker-healthcheck=3600");
            }
            Self::LitServe => {
                command.arg(peers.join("litserve_server.py")).arg(port.to_string());
            }
            Self::Mosec => {
                command.arg(peers.join("mosec_server.py")).args(["--address=127.0.0.1", "--log-level=warning"]);
                // Thirty seconds for a request, as the others have it; its own three are few on a busy machine.
                command.arg(format!("--port={port}")).arg("--timeout=30000");
            }
        }
        command.env("EQUIPOISE_BENCH_MODEL", &setting.models[0]).env("TMPDIR", folder);
        // A worker for each core, and no threads of numpy's beside it: as many threads that compute as equipoise has.
        command.env("EQUIPOISE_BENCH_WORKERS", cores().to_string()).env("OPENBLAS_NUM_THREADS", "1");
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

/// What all servers are started with.
pub(crate) struct Setting {
    /// Model directories: one, and of equipoise any number.
    pub(crate) models: Vec<PathBuf>,
    /// Whether equipoise measures first how it runs best.
    pub(crate) tune: bool,
    /// What runs the peers.
    pub(crate) python: Option<PathBuf>,
}

/// A server in a process group of its own.
pub(crate) struct ServerProcess {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    /// From its start to its first answer.
    pub(crate) started_in: Duration,
    leader: Child,
    /// For its log, its state and its sockets.
    folder: TempDir,
}

/// The best prediction of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Best {
    pub(crate) class: u64,
    pub(crate) probability: f64,
}

impl ServerProcess {
    /// Starts it, and waits until it answers.
    pub(crate) fn start(server: Server, setting: &Setting, image: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = server.command(setting, address.port(), folder.path());
        let start = Instant::now();
        let log = File::create(folder.path().join("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let leader = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        GROUPS.lock().unwrap().push(leader.id());
        let mut process = Self { server, address, started_in: Duration::ZERO, leader, folder };
        process.wait_until_ready(image);
        process.started_in = start.elapsed();
        process
    }

    fn wait_until_ready(&mut self, image: &[u8]) {
        let (start, request) = (Instant::now(), self.request(image));
        loop {
            let failed = match Client::connect(self.address).and_then(|mut client| client.send(&request).map(drop)) {
                Ok(()) => return,
                Err(error) => error,
            };
            if start.elapsed() > START_TIMEOUT || self.leader.try_wait().unwrap().is_some() {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                panic!("{} does not answer: {failed}\n{log}", self.server.name());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that it consists of.
    pub(crate) fn group(&self) -> u32 {
        self.leader.id()
    }

    pub(crate) fn request(&self, image: &[u8]) -> Vec<u8> {
        request("POST", self.server.path(), "Content-Type: image/jpeg\r\n", image)
    }

    /// What equipoise's admin API asks for.
    pub(crate) fn admin_headers(&self) -> String {
        let token = std::fs::read_to_string(self.folder.path().join("admin-token")).unwrap();
        format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", token.trim())
    }

    /// What it says of an image.
    pub(crate) fn best(&self, image: &[u8]) -> Best {
        let mut client = Client::connect(self.address).unwrap();
        let answer: Value = serde_json::from_slice(client.send(&self.request(image)).unwrap()).unwrap();
        let best = answer.pointer(self.server.best()).unwrap_or_else(|| panic!("no prediction in {answer}"));
        Best { class: best["class"].as_u64().unwrap(), probability: best["probability"].as_f64().unwrap() }
    }

    pub(crate) fn halt(&self) {
        signal(self.group(), "STOP");
    }

    pub(crate) fn resume(&self) {
        signal(self.group(), "CONT");
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may be halted, and has nothing to finish.
        signal(self.group(), "KILL");
        let _ = self.leader.wait();
        GROUPS.lock().unwrap().retain(|group| *group != self.leader.id());
    }
}

/// Ends the servers at Ctrl-C, halted ones too, and then this process.
pub(crate) fn end_with_ctrl_c() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokio::signal::ctrl_c()).unwrap();
        for group in GROUPS.lock().unwrap().iter() {
            signal(*group, "KILL");
        }
        std::process::exit(130);
    });
}

fn signal(group: u32, name: &str) {
    let output = Command::new("kill").arg(format!("-{name}")).arg("--").arg(format!("-{group}")).output().unwrap();
    // What is to be ended may have ended.
    assert!(output.status.success() || name == "KILL", "cannot send {name} to the group {group}");
}
