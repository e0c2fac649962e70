//! Files that are written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::labelled_files::shown;

/// Checks that a file could be written at `path`, before the work whose result it will hold.
pub(super) fn check_place(path: &Path) -> anyhow::Result<()> {
    if path.file_name().is_none() || path.is_dir() {
        bail!("{}: it is a folder, and a file is to be written", shown(path));
    }
    if !folder_of(path).is_dir() {
        bail!("{}: there is no folder {}", shown(path), shown(folder_of(path)));
    }
    Ok(())
}

/// Writes what `write` writes to `path`: beside it first, then renamed. After a failure `path` is what it was.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = Temporary(folder_of(path).join(name));
    let written = (|| {
        let mut file = BufWriter::new(File::create(&temporary.0)?);
        write(&mut file)?;
        file.flush()?;
        file.get_ref().sync_data()?;
        fs::rename(&temporary.0, path)
    })();
    written.with_context(|| shown(path))
}

/// The folder of `path`.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removed when dropped, unless it has been renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is not there any more when all went well.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_what_was_there_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.npz");
        write_whole(&path, |file| file.write_all(b"old")).expect("written");
        let failed = write_whole(&path, |file| {
            file.write_all(b"new")?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).expect("it is there"), b"old");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
