//! Fits on the disk: a record each, and beside it the head file that came of it.
//!
//! ```text
//! STATE/models/NAME/fits/ID.json          the record of a fit
//! STATE/models/NAME/fits/ID.safetensors   its head file, once it has succeeded; written before the record that names it
//! ```
//!
//! What stands in a record is for whoever runs the fits to say.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    StateDir, StateError,
    store::{io_error, write_whole},
};
use crate::heads::Digest;

const RECORD_SUFFIX: &str = ".json";
const HEAD_SUFFIX: &str = ".safetensors";

/// The folder with the fits of one model.
#[derive(Clone, Debug)]
pub struct FitFiles {
    folder: PathBuf,
    // Holds the lock of the state directory.
    _dir: StateDir,
}

impl FitFiles {
    /// The folder, made if it is not there, without what a write left behind.
    pub(super) fn open(folder: &Path, dir: StateDir) -> Result<Self, StateError> {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        let files = Self { folder: folder.to_owned(), _dir: dir };
        let names = files.names()?;
        for name in &names {
            let is_left_over = match name.strip_suffix(HEAD_SUFFIX) {
                Some(id) => !names.contains(&format!("{id}{RECORD_SUFFIX}")),
                None => name.ends_with(".tmp"),
            };
            if is_left_over {
                let path = folder.join(name);
                fs::remove_file(&path).map_err(io_error(&path))?;
            }
        }
        Ok(files)
    }

    fn names(&self) -> Result<Vec<String>, StateError> {
        let entries = fs::read_dir(&self.folder).map_err(io_error(&self.folder))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }

    fn path(&self, id: &str, suffix: &str) -> PathBuf {
        self.folder.join(format!("{id}{suffix}"))
    }

    /// Where the records lie, in no order.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn records(&self) -> Result<Vec<PathBuf>, StateError> {
        let names = self.names()?.into_iter().filter(|name| name.ends_with(RECORD_SUFFIX));
        Ok(names.map(|name| self.folder.join(name)).collect())
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// [`StateError::Io`]; then the earlier record is still there, or this one, and a power cut may undo it.
    pub fn write_record(&self, id: &str, record: &[u8]) -> Result<(), StateError> {
        write_whole(&self.folder, &self.path(id, RECORD_SUFFIX), record)
    }

    /// Writes a head file, whole or not at all.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write_head(&self, id: &str, file: &[u8]) -> Result<(), StateError> {
        write_whole(&self.folder, &self.path(id, HEAD_SUFFIX), file)
    }

    /// The head file of a fit, whose SHA-256 must be `digest`, in hexadecimal.
    ///
    /// # Errors
    /// [`StateError::Io`], [`StateError::Damaged`].
    pub fn head(&self, id: &str, digest: &str) -> Result<Vec<u8>, StateError> {
        let path = self.path(id, HEAD_SUFFIX);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let found = Digest::of(&bytes).to_hex();
        if found == digest {
            Ok(bytes)
        } else {
            Err(StateError::Damaged { path, problem: format!("its SHA-256 is {found}") })
        }
    }

    /// Removes a fit. What cannot be removed is merely kept.
    pub fn remove(&self, id: &str) {
        remove(&self.path(id, RECORD_SUFFIX));
        self.remove_head(id);
    }

    /// Removes the head file of a fit, if there is one.
    pub fn remove_head(&self, id: &str) {
        remove(&self.path(id, HEAD_SUFFIX));
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove {}", path.display());
        }
        _ => {}
    }
}
