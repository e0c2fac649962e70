//! The state directory: what survives a restart.
//!
//! ```text
//! STATE/lock                                    held while a server runs
//! STATE/admin-token                             mode 0600
//! STATE/models/NAME/blobs/SHA256                head files, immutable, named by their content
//! STATE/models/NAME/feature-sets/               uploaded feature sets; see feature_sets/
//! STATE/models/NAME/generations/00000000042.json   one manifest a state, written once and never changed
//! ```
//!
//! A manifest comes after the blobs that it names, and becomes visible whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    FeatureSetQuota, FeatureSetStore, FitFiles,
    manifest::{self, Manifest},
};
use crate::{heads::Digest, metrics::FeatureSetMetrics};

/// Manifests that are kept; older ones are removed.
const GENERATIONS_KEPT: u64 = 100;

/// What can go wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system says no.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has it.
    #[error("{path} is in use by another equipoise server", path = path.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
    },
    /// A manifest or blob that is not what it was when it was written.
    #[error("{path} is damaged: {problem}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The model was loaded without one.
    #[error("there is no state directory to keep it in")]
    Absent,
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateError + '_ {
    move |source| StateError::Io { path: path.to_owned(), source }
}

/// A state directory that this process has to itself.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    // Holds the lock for as long as a clone lives.
    _lock: Arc<File>,
}

impl StateDir {
    /// Makes the folder if it is not there, and takes its lock.
    ///
    /// # Errors
    /// [`StateError::Locked`] if another process has it, [`StateError::Io`] if it cannot be made.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(path).map_err(io_error(path))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(io_error(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: Arc::new(lock) }),
            Err(fs::TryLockError::WouldBlock) => Err(StateError::Locked { path: path.to_owned() }),
            Err(fs::TryLockError::Error(source)) => Err(StateError::Io { path: lock_path, source }),
        }
    }

    /// The admin token that is kept here; made now, readable by its owner alone, if there is none. Also says where it is.
    ///
    /// # Errors
    /// [`StateError::Io`]; [`StateError::Damaged`] if the file is there and empty.
    pub fn admin_token(&self) -> Result<(String, PathBuf), StateError> {
        let path = self.path.join("admin-token");
        match fs::read_to_string(&path) {
            Ok(token) if token.trim().is_empty() => {
                Err(StateError::Damaged { path, problem: "it is empty".to_owned() })
            }
            Ok(token) => Ok((token.trim().to_owned(), path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut random = [0; 32];
                getrandom::fill(&mut random).map_err(|error| StateError::Io {
                    path: path.clone(),
                    source: io::Error::other(error.to_string()),
                })?;
                let token = Digest::of(&random).to_hex();
                let mut options = File::options();
                options.write(true).create_new(true);
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
                let mut file = options.open(&path).map_err(io_error(&path))?;
                writeln!(file, "{token}").and_then(|()| file.sync_all()).map_err(io_error(&path))?;
                Ok((token, path))
            }
            Err(source) => Err(StateError::Io { path, source }),
        }
    }

    pub(super) fn model(&self, name: &str) -> Result<ModelStore, StateError> {
        let path = self.path.join("models").join(name);
        let store = ModelStore {
            generations: path.join("generations"),
            blobs: path.join("blobs"),
            feature_sets: path.join("feature-sets"),
            fits: path.join("fits"),
            dir: self.clone(),
        };
        for folder in [&store.generations, &store.blobs] {
            fs::create_dir_all(folder).map_err(io_error(folder))?;
        }
        Ok(store)
    }
}

/// The part of the state directory that is one model's.
#[derive(Clone, Debug)]
pub(super) struct ModelStore {
    generations: PathBuf,
    blobs: PathBuf,
    feature_sets: PathBuf,
    fits: PathBuf,
    dir: StateDir,
}

impl ModelStore {
    /// The model's feature sets; see [`FeatureSetStore`].
    pub(super) fn feature_sets(
        &self,
        (num_classes, feature_dim): (usize, usize),
        quota: &Arc<FeatureSetQuota>,
        metrics: FeatureSetMetrics,
    ) -> Result<FeatureSetStore, StateError> {
        let (dir, quota) = (self.dir.clone(), Arc::clone(quota));
        FeatureSetStore::open(&self.feature_sets, dir, (num_classes, feature_dim), quota, metrics)
    }

    /// The files of the model's fits.
    pub(super) fn fits(&self) -> Result<FitFiles, StateError> {
        FitFiles::open(&self.fits, self.dir.clone())
    }

    /// The newest manifest, if there is one.
    pub(super) fn latest(&self) -> Result<Option<Manifest>, StateError> {
        let Some(generation) = self.list()?.into_iter().max() else { return Ok(None) };
        let path = self.manifest_path(generation);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let damaged = |problem: String| StateError::Damaged { path: path.clone(), problem };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if manifest.format != manifest::FORMAT {
            return Err(damaged(format!(
                "its format is `{}`, and this version reads `{}`",
                manifest.format,
                manifest::FORMAT
            )));
        }
        if manifest.generation != generation {
            return Err(damaged(format!("it says that it is generation {}", manifest.generation)));
        }
        Ok(Some(manifest))
    }

    /// Writes the next manifest. If that fails nothing has changed.
    pub(super) fn write(&self, manifest: &Manifest) -> Result<(), StateError> {
        let path = self.manifest_path(manifest.generation);
        let bytes = serde_json::to_vec_pretty(manifest)
            .map_err(|error| StateError::Io { path: path.clone(), source: io::Error::other(error) })?;
        write_whole(&self.generations, &path, &bytes)?;
        self.prune(manifest.generation);
        Ok(())
    }

    /// Keeps a head file; does nothing if it is there, whole.
    pub(super) fn put_blob(&self, digest: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.blobs.join(digest);
        if self.blob(digest).is_ok() { Ok(()) } else { write_whole(&self.blobs, &path, bytes) }
    }

    /// A head file, whose content is checked against its name.
    pub(super) fn blob(&self, digest: &str) -> Result<Vec<u8>, StateError> {
        let path = self.blobs.join(digest);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let found = Digest::of(&bytes).to_hex();
        if found == digest {
            Ok(bytes)
        } else {
            Err(StateError::Damaged { path, problem: format!("its SHA-256 is {found}") })
        }
    }

    fn manifest_path(&self, generation: u64) -> PathBuf {
        self.generations.join(format!("{generation:011}.json"))
    }

    fn list(&self) -> Result<Vec<u64>, StateError> {
        let entries = fs::read_dir(&self.generations).map_err(io_error(&self.generations))?;
        let generation = |entry: io::Result<fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_suffix(".json")?.parse().ok()
        };
        Ok(entries.filter_map(generation).collect())
    }

    fn prune(&self, newest: u64) {
        if let Some(oldest_kept) = newest.checked_sub(GENERATIONS_KEPT) {
            // What cannot be removed now is merely kept.
            let _ = fs::remove_file(self.manifest_path(oldest_kept));
        }
    }
}

/// Writes a file that appears whole or not at all, and is on the disk when this returns.
pub(super) fn write_whole(folder: &Path, path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_data()
    };
    write().map_err(io_error(path))
}
