//! A folder or a bucket with the state of icons30, and servers that share it, without HTTP.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use equipoise::{
    heads::SettingsPatch,
    registry::{AuditEntry, Gc, GcOptions, Model, RegistryError, StateDir, audit},
};
use futures_util::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem, memory::InMemory, path::Path as Key,
};
use tempfile::TempDir;

use super::{edit, load_from};
use crate::{app::icons30, http::head_file};

pub(super) struct Place {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The folder, if it is one.
    pub(super) folder: Option<TempDir>,
    /// Of the model.
    pub(super) directory: PathBuf,
}

/// A server on a place, and its own state directory if it shares that.
pub(super) struct PlaceServer {
    pub(super) model: Arc<Model>,
    _state: Option<TempDir>,
}

pub(super) fn share(store: Arc<dyn ObjectStore>, directory: &Path) -> Result<PlaceServer, String> {
    let state = TempDir::new().unwrap();
    let dir = StateDir::open(state.path()).unwrap().sharing(store, "store:", None).unwrap();
    let model = load_from(directory, dir).map_err(|error| error.to_string())?;
    Ok(PlaceServer { model, _state: Some(state) })
}

/// Waits for what a store does.
pub(super) fn wait<T>(work: impl Future<Output = object_store::Result<T>>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work).unwrap()
}

impl Place {
    pub(super) fn folder() -> Self {
        let folder = TempDir::new().unwrap();
        // Without waiting for the disk: what is tested is the end of a server, and not that of its machine.
        let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        Self { store: Arc::new(store), folder: Some(folder), directory: icons30() }
    }

    pub(super) fn bucket() -> Self {
        Self::of(Arc::new(InMemory::new()))
    }

    pub(super) fn of(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, folder: None, directory: icons30() }
    }

    pub(super) fn copy(&self) -> Self {
        let mut copy = if self.folder.is_some() { Self::folder() } else { Self::bucket() };
        copy.directory.clone_from(&self.directory);
        for key in self.keys("") {
            copy.put(&key, self.get(&key));
        }
        copy
    }

    pub(super) fn get(&self, key: &Key) -> bytes::Bytes {
        wait(async { self.store.get(key).await?.bytes().await })
    }

    pub(super) fn put(&self, key: &Key, bytes: impl Into<PutPayload>) {
        wait(self.store.put(key, bytes.into()));
    }

    /// The objects of a folder of the store.
    pub(super) fn keys(&self, folder: &str) -> Vec<Key> {
        let prefix = Key::from(folder);
        let found = wait(self.store.list(Some(&prefix)).try_collect::<Vec<_>>());
        let mut keys: Vec<Key> = found.into_iter().map(|meta| meta.location).collect();
        keys.sort();
        keys
    }

    /// A server that shares it.
    pub(super) fn serve(&self) -> PlaceServer {
        share(Arc::clone(&self.store), &self.directory).unwrap()
    }

    /// A server that has it to itself, if it is a folder; otherwise one that shares it.
    pub(super) fn serve_alone(&self) -> PlaceServer {
        let Some(folder) = &self.folder else { return self.serve() };
        let model = load_from(&self.directory, StateDir::open(folder.path()).unwrap()).unwrap();
        PlaceServer { model, _state: None }
    }

    /// Cleans up as if all were old; gives how many files were removed.
    pub(super) fn clean_up(&self, keep_generations: usize) -> usize {
        self.clean_up_older(keep_generations, Duration::ZERO)
    }

    /// Cleans up what is older than that; gives how many files were removed.
    pub(super) fn clean_up_older(&self, keep_generations: usize, grace: Duration) -> usize {
        let gc = Gc::of_store(Arc::clone(&self.store), "store:", grace).unwrap();
        let reports = gc.run(GcOptions { keep_generations, is_dry_run: false }).unwrap();
        assert!(reports.iter().all(|report| report.notes.is_empty()), "{reports:?}");
        reports.iter().map(|report| report.removed.len()).sum()
    }
}

/// The whole audit, newest first, read in pages.
pub(super) fn audit_in_pages(model: &Arc<Model>, limit: usize) -> Vec<AuditEntry> {
    let (mut entries, mut before) = (Vec::new(), None);
    loop {
        let page = audit(std::slice::from_ref(model), before.as_ref(), limit).unwrap();
        entries.extend(page.entries);
        before = page.next;
        if before.is_none() {
            return entries;
        }
    }
}

pub(super) fn patch(model: &Model, tau: f64) -> Result<(), RegistryError> {
    model.patch(&edit(), "tau", None, SettingsPatch { tau: Some(tau), ..SettingsPatch::default() }).map(drop)
}

pub(super) fn publish(model: &Model, seed: usize) -> Result<(), RegistryError> {
    model.publish_file(&edit(), "mine", &head_file(seed, None)).map(drop)
}
