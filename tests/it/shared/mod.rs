//! Several servers on one store.
//!
//! Where `EQUIPOISE_TEST_STATE_URL` names one (`s3://bucket/prefix`, and what its client needs in the environment), each test
//! takes a folder of its own in it; otherwise a folder of this machine.

mod cleanup;
mod clocks;
mod conflicts;
mod damage;
mod death;
mod faults;
mod follow;
mod mortal;
mod place;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use equipoise::{
    metrics::Metrics,
    registry::{Author, Edit, LoadError, Model, ModelDirectory, StateDir, load_model},
    server::load_options,
};
use object_store::ObjectStore;
use serde_json::Value;
use tempfile::TempDir;

use crate::app::{Setup, TestApp, icons30, send};

/// A store for one test. Its folder, if it is one, lives as long as this.
pub(crate) struct Store {
    pub(crate) url: String,
    pub(crate) folder: Option<Arc<TempDir>>,
}

impl Store {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if let Ok(url) = std::env::var("EQUIPOISE_TEST_STATE_URL") {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
            return Self { url: format!("{}/{time}-{number}", url.trim_end_matches('/')), folder: None };
        }
        let folder = TempDir::new().unwrap();
        Self { url: format!("file://{}", folder.path().display()), folder: Some(Arc::new(folder)) }
    }

    /// A server that shares it, with a state directory of its own.
    pub(crate) fn server(&self, poll: Duration) -> Setup {
        let url = self.url.clone();
        Setup::new().config(move |config| {
            config.state = Some(url.clone());
            config.state_poll = poll;
        })
    }
}

/// icons30 as a server has it that shares a store; its own state directory is `state`.
fn load(store: Arc<dyn ObjectStore>, state: &Path, timeout: Option<Duration>) -> Result<Arc<Model>, LoadError> {
    load_from(&icons30(), StateDir::open(state).unwrap().sharing(store, "store:", timeout).unwrap())
}

/// The model of a directory, with the state that `state` names.
fn load_from(directory: &Path, state: StateDir) -> Result<Arc<Model>, LoadError> {
    equipoise::onnx::init(None).unwrap();
    // Sessions that are warmed for one image load fast.
    let config = Setup::new().config(|config| config.max_batch_size = Some(1)).resolve();
    let options = load_options(&config, Arc::new(Metrics::new()), Some(state)).unwrap();
    load_model(&ModelDirectory::read(directory).unwrap(), &options).map(Arc::new)
}

fn edit() -> Edit {
    Edit::by(Author::new("somebody"))
}

async fn heads(app: &TestApp) -> Value {
    send(app.admin("GET", "heads")).await.expect(200).json()
}

#[test]
fn a_url_that_is_no_store_is_refused_with_a_word() {
    for (url, problem) in [
        ("nonsense", "relative URL without a base"),
        ("memory:///", "it must begin with file:// or one of s3://"),
        ("ftp://host/folder", "it must begin with file:// or one of s3://"),
        ("file://host/folder", "it is no absolute path"),
        #[cfg(not(feature = "cloud"))]
        ("s3://bucket/prefix", "build with `--features cloud`"),
    ] {
        let error = Setup::new().config(|config| config.state = Some(url.to_owned())).server().err().unwrap();
        let error = error.to_string();
        assert!(error.contains(url) && error.contains(problem), "{error}");
    }
}
