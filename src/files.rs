//! Reading a file as a whole, with an error that names it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub struct FileUnreadable {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl FileUnreadable {
    /// What `source` says of `path`.
    pub(crate) fn of(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self { path: path.to_owned(), source }
    }
}

/// Its bytes.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileUnreadable> {
    fs::read(path).map_err(FileUnreadable::of(path))
}

/// Its text.
pub(crate) fn read_text(path: &Path) -> Result<String, FileUnreadable> {
    fs::read_to_string(path).map_err(FileUnreadable::of(path))
}
