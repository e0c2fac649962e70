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

/// Its text, without the byte-order mark that some editors put in front of it.
pub(crate) fn read_text(path: &Path) -> Result<String, FileUnreadable> {
    let text = fs::read_to_string(path).map_err(FileUnreadable::of(path))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_order_mark_in_front_is_no_part_of_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        for (written, read) in [("\u{feff}a\n", "a\n"), ("a\u{feff}", "a\u{feff}"), ("\u{feff}", ""), ("", "")] {
            fs::write(&path, written).unwrap();
            assert_eq!(read_text(&path).unwrap(), read);
        }
    }
}
