//! Files that are read again while the server runs.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    files::{FileUnreadable, read},
    heads::Digest,
    sync::Snapshot,
};

/// What a look at the files has brought.
#[derive(Debug)]
pub enum Look<E> {
    /// They say what they said the last time.
    Unchanged,
    /// They say something else, which is in use from now on.
    Renewed,
    /// They cannot be used; what was in use before still is.
    Failed(E),
}

/// Makes something of files: their paths and, in the same order, their contents.
pub type Make<T, E> = fn(&[PathBuf], &[Vec<u8>]) -> Result<T, E>;

/// What is made of some files, and made again when they change.
///
/// Whoever reads it has it at the cost of one load of a pointer. A change is found by the content, not by the time that a
/// file system notes for it, so no edit is missed.
#[derive(Debug)]
pub struct Reloaded<T, E> {
    paths: Vec<PathBuf>,
    make: Make<T, E>,
    current: Snapshot<T>,
    /// What the files said when they were looked at last, and whether that is in use.
    seen: Mutex<(Option<Digest>, bool)>,
}

impl<T, E: From<FileUnreadable>> Reloaded<T, E> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// If a file cannot be read, or `make` does not take it.
    pub fn open(paths: Vec<PathBuf>, make: Make<T, E>) -> Result<Self, E> {
        let contents = read_all(&paths)?;
        let current = Snapshot::new(make(&paths, &contents)?);
        Ok(Self { paths, make, current, seen: Mutex::new((Some(digest(&contents)), true)) })
    }

    /// What is in use.
    pub fn get(&self) -> Arc<T> {
        self.current.load()
    }

    /// Reads the files again, and uses what they say if that is new and can be used. Blocks.
    pub fn look(&self) -> Look<E> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = read_all(&self.paths);
        let now = contents.as_ref().ok().map(|contents| digest(contents));
        if seen.0 == now {
            return Look::Unchanged;
        }
        let made = contents.map_err(E::from).and_then(|contents| (self.make)(&self.paths, &contents));
        *seen = (now, made.is_ok());
        match made {
            Ok(made) => {
                self.current.store(Arc::new(made));
                Look::Renewed
            }
            Err(error) => Look::Failed(error),
        }
    }

    /// Whether the files say what is in use, as far as the last look could tell.
    pub fn is_current(&self) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, FileUnreadable> {
    paths.iter().map(|path| read(path)).collect()
}

fn digest(contents: &[Vec<u8>]) -> Digest {
    // With the digests of the parts, so that nothing moves unseen from one file to the next.
    let parts: Vec<u8> = contents.iter().flat_map(|content| *Digest::of(content).as_bytes()).collect();
    Digest::of(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrong;

    impl From<FileUnreadable> for Wrong {
        fn from(_: FileUnreadable) -> Self {
            Self
        }
    }

    fn number(_: &[PathBuf], contents: &[Vec<u8>]) -> Result<u32, Wrong> {
        String::from_utf8_lossy(&contents[0]).trim().parse().map_err(|_| Wrong)
    }

    #[test]
    fn what_cannot_be_used_leaves_what_was_there_and_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let open = || Reloaded::open(vec![path.clone()], number);
        assert!(open().is_err());
        std::fs::write(&path, "1").unwrap();
        let file = open().unwrap();
        assert!(matches!(file.look(), Look::Unchanged) && *file.get() == 1 && file.is_current());
        std::fs::write(&path, "2").unwrap();
        assert!(matches!(file.look(), Look::Renewed) && *file.get() == 2 && file.is_current());
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(file.look(), Look::Failed(_)) && *file.get() == 2 && !file.is_current());
        assert!(matches!(file.look(), Look::Unchanged) && !file.is_current());
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.look(), Look::Failed(_)) && *file.get() == 2);
        assert!(matches!(file.look(), Look::Unchanged));
        std::fs::write(&path, "2").unwrap();
        assert!(matches!(file.look(), Look::Renewed) && *file.get() == 2 && file.is_current());
    }
}
