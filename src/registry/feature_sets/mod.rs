//! Uploaded feature sets: kept on the disk, mapped, and named by their content.
//!
//! ```text
//! STATE/models/NAME/feature-sets/SHA256.safetensors   converted, immutable; SHA256 is the digest of the content
//! STATE/models/NAME/feature-sets/SHA256.json          its name, and its place in the order of uploads
//! STATE/models/NAME/feature-sets/incoming-*           an upload under way; removed when the store is opened
//! ```

mod quota;
mod upload;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use self::quota::Reservation;
pub use self::{quota::FeatureSetQuota, upload::FeatureSetUpload};
use super::{
    RegistryError, StateDir, StateError,
    store::{io_error, write_whole},
};
use crate::{dataset::FeatureSet, heads::Digest, metrics::FeatureSetMetrics};

/// Sets of one model. Each takes entries in the process's table of maps, of which there are some ten thousand.
const MAX_SETS: usize = 4096;
const SET_SUFFIX: &str = ".safetensors";
const RECORD_SUFFIX: &str = ".json";
const INCOMING: &str = "incoming-";

/// A feature set that is kept.
#[derive(Debug)]
pub struct StoredSet {
    /// `fs_` and the first 16 hexadecimal digits of the digest.
    pub id: String,
    /// What the operator calls it.
    pub name: String,
    /// The features and labels, mapped.
    pub set: FeatureSet,
    /// The place in the order of uploads.
    order: u64,
    /// The room on the disk; shared with the set under an earlier name.
    room: Arc<Reservation>,
    /// How many guards there are.
    uses: Arc<AtomicUsize>,
}

/// What an upload came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A set that was not there.
    New,
    /// A set that was there under another name.
    Renamed,
    /// A set that was there.
    Known,
}

/// What stands beside a set.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    order: u64,
}

/// The feature sets of one model.
#[derive(Debug)]
pub struct FeatureSetStore {
    folder: PathBuf,
    num_classes: usize,
    feature_dim: usize,
    quota: Arc<FeatureSetQuota>,
    metrics: FeatureSetMetrics,
    /// Locked for moments only: requests look here.
    sets: Mutex<BTreeMap<String, Arc<StoredSet>>>,
    /// Held by the one who changes what is kept, while the disk is written to.
    writer: Mutex<()>,
    /// The number of the next upload's temporary file.
    next_upload: AtomicU64,
    // Holds the lock of the state directory.
    _dir: StateDir,
}

/// Keeps a feature set from being deleted for as long as it lives.
#[derive(Debug)]
pub struct FeatureSetInUse {
    stored: Arc<StoredSet>,
}

impl FeatureSetInUse {
    fn new(stored: Arc<StoredSet>) -> Self {
        stored.uses.fetch_add(1, Ordering::AcqRel);
        Self { stored }
    }

    /// The features and labels. A clone of them can be read, but does not keep the set from being deleted.
    pub fn set(&self) -> &FeatureSet {
        &self.stored.set
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.stored.id
    }

    /// What the operator calls it.
    pub fn name(&self) -> &str {
        &self.stored.name
    }
}

impl Clone for FeatureSetInUse {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.stored))
    }
}

impl Drop for FeatureSetInUse {
    fn drop(&mut self) {
        self.stored.uses.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The id of the set with this digest.
fn id_of(digest: Digest) -> String {
    format!("fs_{}", &digest.to_hex()[..16])
}

impl FeatureSetStore {
    /// Opens the store of a model with `num_classes` classes and `feature_dim` features: removes what uploads left behind,
    /// and reads each set through once. A set that is damaged or does not fit the model is named in the log, left where it
    /// is, and not listed.
    ///
    /// # Errors
    /// [`StateError::Io`] if the folder cannot be made or listed.
    pub(super) fn open(
        folder: &Path,
        dir: StateDir,
        (num_classes, feature_dim): (usize, usize),
        quota: Arc<FeatureSetQuota>,
        metrics: FeatureSetMetrics,
    ) -> Result<Self, StateError> {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(io_error(folder))? {
            files.push(entry.map_err(io_error(folder))?.path());
        }
        files.sort();
        let store = Self {
            folder: folder.to_owned(),
            num_classes,
            feature_dim,
            quota,
            metrics,
            sets: Mutex::default(),
            writer: Mutex::default(),
            next_upload: AtomicU64::new(0),
            _dir: dir,
        };
        let mut sets = BTreeMap::new();
        for path in &files {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let is_left_over = match name.strip_suffix(RECORD_SUFFIX) {
                // A record comes before its set.
                Some(digest) => !files.contains(&store.set_path(digest)),
                None => name.starts_with(INCOMING) || name.ends_with(".tmp"),
            };
            if is_left_over {
                tracing::info!(path = %path.display(), "removing what an upload left behind: {}", path.display());
                fs::remove_file(path).map_err(io_error(path))?;
            } else if let Some(digest) = name.strip_suffix(SET_SUFFIX) {
                match store.restore(path, digest) {
                    Ok(stored) => drop(sets.insert(stored.id.clone(), Arc::new(stored))),
                    Err(problem) => tracing::error!(
                        path = %path.display(),
                        "the feature set in {} is not available: {problem}", path.display()
                    ),
                }
            }
        }
        store.observe(&sets);
        *store.lock() = sets;
        Ok(store)
    }

    /// Maps a set of an earlier run.
    fn restore(&self, path: &Path, digest: &str) -> Result<StoredSet, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let bytes = fs::metadata(path).map_err(|error| text(&error))?.len();
        let set = FeatureSet::map(path, Some(self.num_classes)).map_err(|error| text(&error))?;
        if set.digest().to_hex() != digest {
            return Err(format!("its content has the SHA-256 {}", set.digest().to_hex()));
        }
        if set.feature_dim() != self.feature_dim {
            return Err(format!("it has {} features, and the model {}", set.feature_dim(), self.feature_dim));
        }
        let id = id_of(set.digest());
        let record_path = self.record_path(digest);
        let record = fs::read(&record_path).map_err(|error| text(&error));
        let record = record.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| text(&error)));
        let Record { name, order } = record.unwrap_or_else(|problem| {
            // The content is what counts.
            let path = record_path.display();
            tracing::warn!(%path, "{path}: {problem}; the feature set is now called `{id}`");
            Record { name: id.clone(), order: 0 }
        });
        let mut room = Reservation::new(Arc::clone(&self.quota));
        room.grow_beyond(bytes);
        Ok(StoredSet { id, name, set, order, room: Arc::new(room), uses: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<StoredSet>>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}{SET_SUFFIX}"))
    }

    fn record_path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}{RECORD_SUFFIX}"))
    }

    fn observe(&self, sets: &BTreeMap<String, Arc<StoredSet>>) {
        self.metrics.sets.set(i64::try_from(sets.len()).unwrap_or(i64::MAX));
        let bytes: u64 = sets.values().map(|stored| stored.room.bytes()).sum();
        self.metrics.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Every set, in the order of their uploads.
    pub fn list(&self) -> Vec<Arc<StoredSet>> {
        let mut sets: Vec<_> = self.lock().values().cloned().collect();
        sets.sort_by_key(|stored| stored.order);
        sets
    }

    /// The set of that id. It does not keep the set from being deleted; see [`pin`](Self::pin).
    pub fn get(&self, id: &str) -> Option<Arc<StoredSet>> {
        self.lock().get(id).cloned()
    }

    /// The set of that id, which cannot be deleted while the guard or a clone of it lives.
    ///
    /// # Errors
    /// [`RegistryError::FeatureSetNotFound`].
    pub fn pin(&self, id: &str) -> Result<FeatureSetInUse, RegistryError> {
        // The guard is made under the lock: a deletion sees it, or has been.
        let sets = self.lock();
        let stored = sets.get(id).ok_or_else(|| RegistryError::FeatureSetNotFound { id: id.to_owned() })?;
        Ok(FeatureSetInUse::new(Arc::clone(stored)))
    }

    /// Deletes the set of that id.
    ///
    /// # Errors
    /// [`RegistryError::FeatureSetNotFound`]; [`RegistryError::FeatureSetInUse`] while a guard is held.
    pub fn delete(&self, id: &str) -> Result<(), RegistryError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sets = self.lock();
        let stored = sets.get(id).cloned().ok_or_else(|| RegistryError::FeatureSetNotFound { id: id.to_owned() })?;
        if stored.uses.load(Ordering::Acquire) > 0 {
            return Err(RegistryError::FeatureSetInUse { id: id.to_owned() });
        }
        // From here on nobody gets a guard.
        sets.remove(id);
        drop(sets);
        let digest = stored.set.digest().to_hex();
        let path = self.set_path(&digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                self.lock().insert(id.to_owned(), stored);
                return Err(io_error(&path)(error).into());
            }
            _ => {}
        }
        // Without its set it is removed at the next start.
        let _ = fs::remove_file(self.record_path(&digest));
        self.observe(&self.lock());
        Ok(())
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// [`RegistryError::StorageFull`] if there is no place for another set; [`RegistryError::State`].
    pub fn begin_upload(self: &Arc<Self>) -> Result<FeatureSetUpload, RegistryError> {
        let number = self.next_upload.fetch_add(1, Ordering::Relaxed);
        FeatureSetUpload::new(Arc::clone(self), self.folder.join(format!("{INCOMING}{number}")))
    }

    /// Bytes that an upload may have, and that its arrays may unpack to.
    pub fn max_set_bytes(&self) -> u64 {
        self.quota.max_set_bytes
    }

    /// Keeps a converted set that lies at `path`.
    fn keep(
        &self,
        path: &Path,
        set: FeatureSet,
        name: Option<&str>,
        room: Reservation,
    ) -> Result<(Arc<StoredSet>, Kept), RegistryError> {
        let digest = set.digest().to_hex();
        let id = id_of(set.digest());
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, n_sets, last) = {
            let sets = self.lock();
            (sets.get(&id).cloned(), sets.len(), sets.values().map(|stored| stored.order).max().unwrap_or(0))
        };
        if let Some(known) = &known {
            if known.set.digest() != set.digest() {
                let problem = format!("another feature set has the id {id}");
                return Err(StateError::Damaged { path: self.set_path(&known.set.digest().to_hex()), problem }.into());
            }
            if name.is_none_or(|name| name == known.name) {
                return Ok((Arc::clone(known), Kept::Known));
            }
        }
        if known.is_none() && n_sets >= MAX_SETS {
            return Err(RegistryError::StorageFull { reason: format!("there are {MAX_SETS} feature sets already") });
        }
        let order = known.as_ref().map_or(last.saturating_add(1), |known| known.order);
        let name = name.unwrap_or(&id).to_owned();
        let record_path = self.record_path(&digest);
        let record = serde_json::to_vec(&Record { name: name.clone(), order })
            .map_err(|error| io_error(&record_path)(std::io::Error::other(error)))?;
        write_whole(&self.folder, &record_path, &record)?;
        let stored = match &known {
            Some(known) => StoredSet {
                id: id.clone(),
                name,
                set: known.set.clone(),
                order,
                room: Arc::clone(&known.room),
                uses: Arc::clone(&known.uses),
            },
            None => {
                let target = self.set_path(&digest);
                let moved = fs::rename(path, &target).and_then(|()| fs::File::open(&self.folder)?.sync_data());
                if let Err(error) = moved {
                    // Its sender is told that it is not there. It may not be.
                    let _ = fs::remove_file(&target);
                    return Err(io_error(&target)(error).into());
                }
                StoredSet { id: id.clone(), name, set, order, room: Arc::new(room), uses: Arc::default() }
            }
        };
        let stored = Arc::new(stored);
        let mut sets = self.lock();
        sets.insert(id, Arc::clone(&stored));
        self.observe(&sets);
        Ok((stored, if known.is_none() { Kept::New } else { Kept::Renamed }))
    }
}
