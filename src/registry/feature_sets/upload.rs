//! An upload: bytes to a temporary file, and that to a set that is kept.

use std::{
    fs::{self, File},
    io::{self, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{FeatureSetStore, Kept, MAX_SETS, StoredSet, quota::Reservation};
use crate::{
    dataset::{Expected, FeatureSet, FeatureSetError},
    registry::{RegistryError, StateError},
};

/// An upload under way. Dropping it leaves nothing behind. It writes to the disk: keep it off the async threads.
#[derive(Debug)]
pub struct FeatureSetUpload {
    // The fields are dropped in this order: the room is free when the file is gone.
    received: Incoming,
    file: File,
    n_bytes: u64,
    room: Reservation,
    store: Arc<FeatureSetStore>,
}

/// A file that is removed in the end, unless it has been moved away.
#[derive(Debug)]
struct Incoming(PathBuf);

impl Drop for Incoming {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the store is opened the next time.
        let _ = fs::remove_file(&self.0);
    }
}

impl FeatureSetUpload {
    pub(super) fn new(store: Arc<FeatureSetStore>, path: PathBuf) -> Result<Self, RegistryError> {
        if store.lock().len() >= MAX_SETS {
            return Err(RegistryError::StorageFull { reason: format!("there are {MAX_SETS} feature sets already") });
        }
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|error| failed(&path, error))?;
        let room = Reservation::new(Arc::clone(&store.quota));
        Ok(Self { received: Incoming(path), file, n_bytes: 0, room, store })
    }

    /// Says at once if `n_bytes` that are announced cannot be taken.
    ///
    /// # Errors
    /// [`RegistryError::StorageFull`].
    pub fn announce(&self, n_bytes: u64) -> Result<(), RegistryError> {
        self.store.quota.check(n_bytes).map_err(|error| failed(&self.received.0, error))
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`RegistryError::StorageFull`]; [`RegistryError::State`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        let n_bytes = bytes.len() as u64;
        let written = self.room.grow(n_bytes).and_then(|()| self.file.write_all(bytes));
        written.map_err(|error| failed(&self.received.0, error))?;
        self.n_bytes += n_bytes;
        Ok(())
    }

    /// Converts and keeps what was received, under `name` or, for a set that is known, the name that it has; without either
    /// the id is the name.
    ///
    /// # Errors
    /// [`RegistryError::FeatureSet`] if it is not what it should be; [`RegistryError::StorageFull`];
    /// [`RegistryError::State`].
    pub fn finish(mut self, name: Option<&str>) -> Result<(Arc<StoredSet>, Kept), RegistryError> {
        let path = &self.received.0;
        self.file.seek(SeekFrom::Start(0)).map_err(|error| failed(path, error))?;
        let expected = Expected {
            num_classes: Some(self.store.num_classes),
            feature_dim: Some(self.store.feature_dim),
            max_bytes: self.store.quota.max_set_bytes,
        };
        let mut target = path.as_os_str().to_owned();
        target.push("-converted");
        let converted = Incoming(target.into());
        let mut room = Reservation::new(Arc::clone(&self.store.quota));
        let source = BufReader::with_capacity(1 << 16, &self.file);
        let set = FeatureSet::convert_admitted(source, &expected, &converted.0, |bytes| room.grow(bytes));
        let set = set.map_err(|error| match error {
            FeatureSetError::Io(error) => failed(path, error),
            error => RegistryError::FeatureSet(error),
        })?;
        self.store.keep(&converted.0, set, name, room)
    }
}

/// What the disk says, or the bound on what may be kept there.
fn failed(path: &Path, error: io::Error) -> RegistryError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            RegistryError::StorageFull { reason: error.to_string() }
        }
        _ => StateError::Io { path: path.to_owned(), source: error }.into(),
    }
}
