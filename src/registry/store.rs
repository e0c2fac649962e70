//! The state directory, and where the state of models lies: what survives a restart.
//!
//! ```text
//! STATE/lock                                       held while a server runs
//! STATE/admin-token                                mode 0600
//! STATE/models/NAME/tuning.json                    how it is best run on this machine; see tuning/
//! STATE/models/NAME/newest-generation              the number of the newest that was served of a STORE elsewhere
//! STATE/models/NAME/feature-sets/                  uploaded feature sets; see feature_sets/
//! STATE/models/NAME/fits/                          fits; see fit_files.rs
//! STORE/models/NAME/blobs/SHA256                   head files, immutable, named by their content
//! STORE/models/NAME/generations/00000000042.json   one manifest a state, created once and never changed
//! STORE/models/NAME/events/, history/              what else the audit tells; see history.rs
//! STORE/clock                                      empty; when it was written is the time by the store; see gc.rs
//! ```
//!
//! STORE is STATE, unless several servers share one elsewhere (`--state`); then STATE keeps copies of the head files. A
//! manifest comes after the blobs that it names, and becomes visible whole or not at all. A generation that is there is
//! never written again: of two writers one has lost, and knows it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    FeatureSetQuota, FeatureSetStore, FitFiles, StateError,
    manifest::{Manifest, ManifestError},
    objects::{Listed, Objects, folder_of_url},
};
use crate::{
    files::{FileUnreadable, read_text},
    heads::Digest,
    metrics::FeatureSetMetrics,
};

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateError + '_ {
    move |source| StateError::Io { path: path.to_owned(), source }
}

/// A state directory that this process has to itself, and the store of the state, which others may share.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    objects: Objects,
    is_shared: bool,
    // Holds the lock for as long as a clone lives.
    _lock: Arc<File>,
}

/// A lock is waited for so long: who has it may be ending, and a program that its process was just starting has it for a moment too.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Takes the lock of a state directory, which is made if it is not there.
pub(super) fn lock(path: &Path) -> Result<File, StateError> {
    fs::create_dir_all(path).map_err(io_error(path))?;
    let lock_path = path.join("lock");
    let lock = File::create(&lock_path).map_err(io_error(&lock_path))?;
    for tries in 1.. {
        match lock.try_lock() {
            Ok(()) => break,
            Err(fs::TryLockError::WouldBlock) if tries < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::WouldBlock) => return Err(StateError::Locked { path: path.to_owned() }),
            Err(fs::TryLockError::Error(source)) => return Err(StateError::Io { path: lock_path, source }),
        }
    }
    Ok(lock)
}

impl StateDir {
    /// Makes the folder if it is not there, and takes its lock.
    ///
    /// # Errors
    /// [`StateError::Locked`] if another process has it, [`StateError::Io`] if it cannot be made.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let lock = lock(path)?;
        let objects = Objects::in_folder(path)?;
        Ok(Self { path: path.to_owned(), objects, is_shared: false, _lock: Arc::new(lock) })
    }

    /// The same folder with a store that others share: `file:///...`, or that of a cloud, whose client takes `options`.
    ///
    /// # Errors
    /// [`StateError::Url`] if the URL makes no sense or its client was not built in; [`StateError::Io`].
    pub fn sharing_url(self, url: &str, options: &[(String, String)]) -> Result<Self, StateError> {
        if let Some(folder) = folder_of_url(url)? {
            fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        }
        Ok(Self { objects: Objects::at_url(url, options)?, is_shared: true, ..self })
    }

    /// The same folder with any other store that others share. `place` is what it is called in errors; one operation of it
    /// may take `timeout`, or what is usual.
    ///
    /// # Errors
    /// [`StateError::Io`] if its thread cannot be started.
    pub fn sharing(
        self,
        store: Arc<dyn object_store::ObjectStore>,
        place: &str,
        timeout: Option<Duration>,
    ) -> Result<Self, StateError> {
        Ok(Self { objects: Objects::of(store, place, timeout)?, is_shared: true, ..self })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether other servers may change the state.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// The admin token that is kept here; made now, readable by its owner alone, if there is none. Also says where it is.
    ///
    /// # Errors
    /// [`StateError::Io`]; [`StateError::Damaged`] if the file is there and holds nothing that could be sent.
    pub fn admin_token(&self) -> Result<(String, PathBuf), StateError> {
        let path = self.path.join("admin-token");
        match read_text(&path) {
            Ok(token) if token.trim().is_empty() => {
                Err(StateError::Damaged { path, problem: "it is empty".to_owned() })
            }
            Ok(token) if !token.trim().bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
                Err(StateError::Damaged { path, problem: "it has other characters than visible ASCII".to_owned() })
            }
            Ok(token) => Ok((token.trim().to_owned(), path)),
            Err(FileUnreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let mut random = [0; 32];
                getrandom::fill(&mut random).map_err(|error| StateError::Io {
                    path: path.clone(),
                    source: io::Error::other(error.to_string()),
                })?;
                let token = Digest::of(&random).to_hex();
                let mut options = File::options();
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
                write_whole_with(&mut options, &self.path, &path, format!("{token}\n").as_bytes())?;
                Ok((token, path))
            }
            Err(FileUnreadable { source, .. }) => Err(StateError::Io { path, source }),
        }
    }

    pub(super) fn model(&self, name: &str) -> Result<ModelStore, StateError> {
        let path = self.path.join("models").join(name);
        let blobs = path.join("blobs");
        fs::create_dir_all(&blobs).map_err(io_error(&blobs))?;
        let store = ModelStore {
            objects: self.objects.clone(),
            folder: format!("models/{name}"),
            is_shared: self.is_shared,
            copies: self.is_shared.then_some(blobs),
            newest_served: self.is_shared.then(|| path.join("newest-generation")),
            feature_sets: path.join("feature-sets"),
            fits: path.join("fits"),
            dir: self.clone(),
        };
        if !self.is_shared {
            remove_left_overs(&path)?;
        }
        Ok(store)
    }
}

/// Removes what writers left behind that were ended in the middle.
fn remove_left_overs(model: &Path) -> Result<(), StateError> {
    for path in files_where(model, |name| is_staged(name) || name.ends_with(".tmp")) {
        fs::remove_file(&path).map_err(io_error(&path))?;
    }
    Ok(())
}

/// Whether a file in a folder is one that is to become an object. A list of objects has none of these.
pub(super) fn is_staged(name: &str) -> bool {
    name.contains('#')
}

/// The files of a model's state in a folder whose names are such.
pub(super) fn files_where(model: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let folders = ["generations", "blobs", "events", "history"].map(|folder| model.join(folder));
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().filter_map(Result::ok);
    entries.filter(|entry| is_wanted(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
}

/// What there is of one model.
#[derive(Clone, Debug)]
pub(super) struct ModelStore {
    pub(super) objects: Objects,
    /// In the store.
    pub(super) folder: String,
    pub(super) is_shared: bool,
    /// Copies of head files that lie elsewhere.
    copies: Option<PathBuf>,
    /// Where the number of the newest generation stands that was served, of a store that lies elsewhere.
    newest_served: Option<PathBuf>,
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

    /// The generations that there are, in ascending order.
    pub(super) fn generations(&self) -> Result<Vec<u64>, StateError> {
        let listed = self.objects.list(&generations_folder(&self.folder))?;
        let mut found: Vec<u64> = listed.iter().filter_map(generation_of).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Takes down which generation is served. An earlier number is left whole until this one is: nothing of either would
    /// tell nothing. Only a start waits for the disk.
    pub(super) fn remember(&self, generation: u64, is_start: bool) {
        let Some(path) = &self.newest_served else { return };
        let (text, beside) = (generation.to_string(), path.with_extension("tmp"));
        let written = match is_start {
            true => write_whole(path.parent().unwrap_or(path), path, text.as_bytes()),
            false => fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).map_err(io_error(path)),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "{error}");
        }
    }

    /// What somebody does who wants none of what was published.
    pub(super) fn how_to_begin_anew(&self) -> String {
        let generations = self.objects.name(&generations_folder(&self.folder));
        match &self.newest_served {
            None => format!("move {generations} away"),
            Some(path) => {
                format!("stop its servers, move {generations} away and remove {} on each of them", path.display())
            }
        }
    }

    /// Refuses a store that has lost what this server has served of it. Whoever began anew in the folder of a file system that
    /// is not mounted would serve a model without what was published, and let that disappear behind it later.
    pub(super) fn check_not_lost(&self, newest: u64) -> Result<(), StateError> {
        let Some(path) = &self.newest_served else { return Ok(()) };
        // None, or half of one, tells nothing.
        let served: Option<u64> = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        match served.filter(|served| newest < *served) {
            Some(served) => Err(StateError::Unreachable {
                object: self.objects.name(&self.folder),
                problem: format!(
                    "this server has served generation {served} of it, and the newest is {newest}: another folder, or one \
                     that is not mounted? If what is gone is to be given up, remove {}",
                    path.display()
                ),
            }),
            None => Ok(()),
        }
    }

    /// The manifest of a generation; `None` if there is none.
    pub(super) fn manifest(&self, generation: u64) -> Result<Option<Manifest>, StateError> {
        manifest(&self.objects, &self.folder, generation)
    }

    /// Writes the manifest of a generation that must be new; `false` if it is there already.
    ///
    /// # Errors
    /// [`StateError::Unreachable`]: then it may have been written. Every other error: then it has not.
    pub(super) fn create(&self, manifest: &Manifest) -> Result<bool, StateError> {
        let path = manifest_path(&self.folder, manifest.generation);
        let bytes = manifest.to_bytes().map_err(|error| StateError::Io {
            path: self.objects.name(&path).into(),
            source: io::Error::other(error),
        })?;
        self.objects.create(&path, bytes.into())
    }

    fn blob_path(&self, digest: &str) -> String {
        format!("{}/blobs/{digest}", self.folder)
    }

    /// Keeps a head file. One that is there, whole, is left alone if a manifest names it; otherwise it becomes new, so that
    /// nobody who removes old ones takes it for one. Says whether it is new.
    pub(super) fn put_blob(&self, digest: &str, bytes: &[u8], is_named: bool) -> Result<bool, StateError> {
        if is_named && self.stored_blob(digest).is_ok() {
            return Ok(false);
        }
        self.objects.put(&self.blob_path(digest), bytes.to_vec().into())?;
        self.keep_copy(digest, bytes);
        Ok(true)
    }

    /// Writes a head file again that went between its writing and that of the generation which names it: a clean-up has
    /// looked for that one too early.
    pub(super) fn keep_blob(&self, digest: &str, bytes: &[u8]) -> Result<(), StateError> {
        match self.find_blob(digest, bytes.len()) {
            Err(StateError::Damaged { .. }) => self.put_blob(digest, bytes, false).map(drop),
            found => found,
        }
    }

    /// A head file, whose content is checked against its name: a copy that is whole, or what the store has.
    pub(super) fn blob(&self, digest: &str) -> Result<Vec<u8>, StateError> {
        if let Some(folder) = &self.copies
            && let Ok(bytes) = fs::read(folder.join(digest))
            && Digest::of(&bytes).to_hex() == digest
        {
            return Ok(bytes);
        }
        let bytes = self.stored_blob(digest)?;
        self.keep_copy(digest, &bytes);
        Ok(bytes)
    }

    /// Whether the store has a head file of that length; its content is not looked at.
    ///
    /// # Errors
    /// [`StateError::Damaged`] if it has not.
    pub(super) fn find_blob(&self, digest: &str, n_bytes: usize) -> Result<(), StateError> {
        let path = self.blob_path(digest);
        let problem = match self.objects.meta(&path)? {
            Some(found) if found.size == n_bytes as u64 => return Ok(()),
            Some(found) => format!("it has {} bytes instead of {n_bytes}", found.size),
            None => "it is missing".to_owned(),
        };
        Err(StateError::Damaged { path: self.objects.name(&path).into(), problem })
    }

    /// A head file as the store has it.
    pub(super) fn stored_blob(&self, digest: &str) -> Result<Vec<u8>, StateError> {
        blob(&self.objects, &self.folder, digest)
    }

    /// What was read, where others share the store: there it is away that cannot be read.
    pub(super) fn of_a_read(&self, error: StateError) -> StateError {
        if self.is_shared { error.into_unreachable() } else { error }
    }

    fn keep_copy(&self, digest: &str, bytes: &[u8]) {
        if let Some(folder) = &self.copies
            && let Err(error) = write_whole(folder, &folder.join(digest), bytes)
        {
            // It can be fetched again.
            tracing::warn!(%error, "no copy of a head file was kept: {error}");
        }
    }
}

/// The path of a manifest in a store.
pub(super) fn manifest_path(folder: &str, generation: u64) -> String {
    format!("{}/{generation:011}.json", generations_folder(folder))
}

/// Where the manifests of the model in `folder` are.
pub(super) fn generations_folder(folder: &str) -> String {
    format!("{folder}/generations")
}

/// The generation whose manifest an object of that folder is, if it is one.
pub(super) fn generation_of(object: &Listed) -> Option<u64> {
    object.name.strip_suffix(".json")?.parse().ok()
}

/// The manifest of a generation of the model in `folder`; `None` if there is none.
pub(super) fn manifest(objects: &Objects, folder: &str, generation: u64) -> Result<Option<Manifest>, StateError> {
    let path = manifest_path(folder, generation);
    let Some(bytes) = objects.get(&path)? else { return Ok(None) };
    let path = || PathBuf::from(objects.name(&path));
    Manifest::from_bytes(&bytes, generation).map(Some).map_err(|error| match error {
        ManifestError::Newer { format } => StateError::Newer { path: path(), format },
        ManifestError::Damaged { problem } => StateError::Damaged { path: path(), problem },
    })
}

/// A head file of the model in `folder`, whose content is checked against its name.
pub(super) fn blob(objects: &Objects, folder: &str, digest: &str) -> Result<Vec<u8>, StateError> {
    let path = format!("{folder}/blobs/{digest}");
    let damaged = |problem: String| StateError::Damaged { path: objects.name(&path).into(), problem };
    let bytes = objects.get(&path)?.ok_or_else(|| damaged("it is missing".to_owned()))?;
    let found = Digest::of(&bytes).to_hex();
    match found == digest {
        true => Ok(bytes.into()),
        false => Err(damaged(format!("its SHA-256 is {found}"))),
    }
}

/// Writes a file that appears whole or not at all, and is on the disk when this returns.
pub(super) fn write_whole(folder: &Path, path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    write_whole_with(&mut File::options(), folder, path, bytes)
}

/// The same with what the options say of a new file.
fn write_whole_with(options: &mut fs::OpenOptions, folder: &Path, path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = options.write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // On a full disk it would take what little there is. There may be none.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| File::open(folder)?.sync_data()).map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("by a folder")).unwrap();
        write_whole(folder.path(), &path, b"bytes").unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
