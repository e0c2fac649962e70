//! Files that are written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

use super::{failure::WrongUsage, labelled_files::shown};

/// Links that are followed before they count as a circle, as Linux has it.
const MAX_LINKS: usize = 40;

/// What a path to be written leads to.
#[derive(Debug, PartialEq)]
enum Target {
    /// A file, or nothing yet: written beside it, then renamed.
    File(PathBuf),
    /// A pipe or a device: what is there is written to, and nothing takes its place.
    Stream,
}

impl Target {
    /// Follows links: it is the file that is replaced, and not the link.
    fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            // A file that some process has open, as `/dev/stdout` leads to one: a rename would go past whoever has it open.
            if path.starts_with("/proc") || path.starts_with("/dev/fd") {
                return Ok(Self::Stream);
            }
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_symlink() => path = folder_of(&path).join(fs::read_link(&path)?),
                Ok(found) if found.is_file() => return Ok(Self::File(path)),
                Ok(_) => return Ok(Self::Stream),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::File(path)),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("too many links"))
    }
}

/// Checks that a file could be written at `path`, before the work whose result it will hold.
pub(super) fn check_place(path: &Path) -> anyhow::Result<()> {
    if path == Path::new("-") {
        let problem = "--output: `-` is no file; /dev/stdout is standard output, and ./- a file of that name";
        return Err(WrongUsage(problem.to_owned()).into());
    }
    if path.file_name().is_none() || path.is_dir() {
        bail!("{}: it is a folder, and a file is to be written", shown(path));
    }
    let file = match Target::of(path).with_context(|| shown(path))? {
        Target::File(file) => file,
        // Opened, a pipe would wait for its reader, and end for him when it is closed again.
        Target::Stream if is_pipe(path) => return Ok(()),
        Target::Stream => return open_stream(path).map(drop).with_context(|| shown(path)),
    };
    if !folder_of(&file).is_dir() {
        bail!("{}: there is no folder {}", shown(path), shown(folder_of(&file)));
    }
    // It is gone again at once.
    let made = temporary_beside(&file).map(drop);
    made.with_context(|| format!("{}: no file can be made in {}", shown(path), shown(folder_of(&file))))
}

#[cfg(unix)]
fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_pipe(_path: &Path) -> bool {
    true
}

/// A file in the folder of `path`, removed when dropped. However long the name of that is, its own is short.
fn temporary_beside(path: &Path) -> io::Result<NamedTempFile<File>> {
    let mut builder = tempfile::Builder::new();
    // With the permissions that any new file has, and not readable by its owner alone.
    builder.prefix(".equipoise-").suffix(".tmp").make_in(folder_of(path), |path| File::create_new(path))
}

/// Whether `path` is standard output by another name: nothing else is then to be written there.
#[cfg(unix)]
pub(super) fn is_standard_output(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    place(path).is_some_and(|found| Some(found) == place(Path::new("/dev/stdout")))
}

/// Whether `path` is standard output by another name: it has none here.
#[cfg(not(unix))]
pub(super) fn is_standard_output(_path: &Path) -> bool {
    false
}

/// Writes what `write` writes to `path`: beside it first, then renamed. After a failure `path` is what it was. Pipes and
/// devices are written to as they are, once all of it is there.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> anyhow::Result<()> {
    let written = Target::of(path).and_then(|target| match target {
        Target::File(file) => replace(&file, write),
        Target::Stream => stream(path, write),
    });
    written.with_context(|| shown(path))
}

fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let (file, temporary) = temporary_beside(path)?.into_parts();
    let mut file = BufWriter::new(file);
    write(&mut file)?;
    file.flush()?;
    file.get_ref().sync_data()?;
    Ok(temporary.persist(path)?)
}

/// By way of a file without a name, because some formats go back to what they have written.
fn stream(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let mut file = BufWriter::new(tempfile::tempfile()?);
    write(&mut file)?;
    let mut file = file.into_inner()?;
    file.rewind()?;
    io::copy(&mut file, &mut open_stream(path)?).map(drop)
}

/// Where it is a file after all, somebody else's, nothing of that is lost.
fn open_stream(path: &Path) -> io::Result<File> {
    File::options().append(true).open(path)
}

/// The folder of `path`.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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

    #[test]
    fn a_long_name_is_written_and_one_that_is_too_long_refused_before() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (long, longer) = (folder.path().join("n".repeat(250)), folder.path().join("n".repeat(300)));
        check_place(&long).expect("a place");
        write_whole(&long, |file| file.write_all(b"all")).expect("written");
        assert_eq!(fs::read(&long).expect("it is there"), b"all");
        assert!(check_place(&longer).is_err());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_has_the_permissions_of_any() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [written, plain] = ["written", "plain"].map(|name| folder.path().join(name));
        write_whole(&written, |file| file.write_all(b"")).expect("written");
        fs::write(&plain, "").expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode();
        assert_eq!(mode(&written), mode(&plain));
    }

    /// Nobody, however mighty, makes a file there.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_in_which_no_file_can_be_made_is_no_place() {
        assert!(check_place(Path::new("/sys/features.npz")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_and_the_file_behind_it_is_replaced() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (file, link) = (folder.path().join("kept/a.npz"), folder.path().join("link"));
        fs::create_dir(folder.path().join("kept")).expect("a folder");
        symlink("second", &link).expect("a link");
        symlink("kept/a.npz", folder.path().join("second")).expect("a link");
        // The file need not be there yet.
        for content in [b"one", b"two"] {
            check_place(&link).expect("a place");
            write_whole(&link, |file| file.write_all(content)).expect("written");
            assert_eq!(fs::read(&file).expect("it is there"), content);
            assert!(link.is_symlink() && !file.is_symlink());
        }
        assert_eq!(fs::read_dir(folder.path().join("kept")).expect("a folder").count(), 1);
        symlink("circle", folder.path().join("circle")).expect("a link");
        assert!(check_place(&folder.path().join("circle")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_stays_a_pipe_and_gets_everything() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
        assert!(made.success() && !is_standard_output(&pipe) && is_standard_output(Path::new("/dev/fd/1")));
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).expect("it is read")
        });
        // Zip archives are written so: back to what stands before.
        let back = |file: &mut BufWriter<File>| {
            file.write_all(b"xxx-end")?;
            file.rewind()?;
            file.write_all(b"the")
        };
        check_place(&pipe).expect("a place");
        write_whole(&pipe, back).expect("written");
        assert_eq!(reader.join().expect("no panic"), b"the-end");
        assert!(!fs::symlink_metadata(&pipe).expect("it is there").is_file());
        write_whole(Path::new("/dev/null"), back).expect("written");
        assert!(!fs::symlink_metadata("/dev/null").expect("it is there").is_file());
    }

    #[cfg(unix)]
    #[test]
    fn a_stream_that_cannot_be_opened_is_no_place() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        assert!(check_place(&socket).is_err());
        check_place(Path::new("/dev/null")).expect("a place");
    }

    #[test]
    fn a_dash_is_no_file() {
        assert!(check_place(Path::new("-")).expect_err("refused").is::<WrongUsage>());
        check_place(Path::new("./-")).expect("a place");
    }
}
