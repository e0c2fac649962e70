//! Which image files an `extract` takes, and the class of each by the folder that it lies in.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::text::printable;

/// By these endings files in folders are taken for images. A file that is named itself is always taken.
const EXTENSIONS: [&str; 9] = ["bmp", "gif", "jfif", "jpeg", "jpg", "png", "tif", "tiff", "webp"];
/// Folders below a folder. A link to a folder above would go on for ever.
const MAX_DEPTH: usize = 32;

/// Files in the order they are extracted in.
#[derive(Debug, Default)]
pub(super) struct LabelledFiles {
    /// The files.
    pub(super) files: Vec<PathBuf>,
    /// The folder that says the class of each.
    folders: Vec<PathBuf>,
    /// Files in folders that were left out, because by their names they are no images.
    pub(super) left_out: Vec<PathBuf>,
    /// What nobody can say of whether it is a folder, as a link to nothing.
    pub(super) unreadable: Vec<(PathBuf, io::Error)>,
}

impl LabelledFiles {
    /// The files that `inputs` name, in this order, those of a folder sorted by their paths. Names that begin with a dot
    /// are passed over.
    ///
    /// The class of an image below a folder that was named is said by the folder next below that, or by the folder itself
    /// for an image right in it; that of a file that was named by the folder around it.
    ///
    /// # Errors
    /// Something cannot be looked at, which may be the folder of a whole class: unless it is named as images are, and so is an
    /// image that cannot be read, or `skip_unreadable` is set.
    pub(super) fn find(inputs: &[PathBuf], skip_unreadable: bool) -> anyhow::Result<Self> {
        let mut found = Self::default();
        for input in inputs {
            let metadata = fs::metadata(input).with_context(|| shown(input))?;
            if metadata.is_dir() {
                let n_before = found.files.len();
                found.descend(input, input, 0)?;
                if !skip_unreadable && let Some((path, error)) = found.unreadable.pop() {
                    return Err(error).with_context(|| shown(&path));
                }
                if found.files.len() == n_before {
                    let endings = EXTENSIONS.join(", ");
                    bail!("{}: there is no image in this folder: no file that ends in {endings}", shown(input));
                }
            } else {
                found.folders.push(input.parent().unwrap_or(Path::new("")).to_owned());
                found.files.push(input.clone());
            }
        }
        Ok(found)
    }

    fn descend(&mut self, folder: &Path, of_class: &Path, depth: usize) -> anyhow::Result<()> {
        if depth > MAX_DEPTH {
            bail!("{}: more than {MAX_DEPTH} folders inside each other", shown(folder));
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| shown(folder))? {
            let path = entry.with_context(|| shown(folder))?.path();
            if !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            match fs::metadata(&path) {
                Ok(found) if found.is_dir() => {
                    self.descend(&path, if depth == 0 { &path } else { of_class }, depth + 1)?;
                }
                _ if is_image(&path) => {
                    self.folders.push(of_class.to_owned());
                    self.files.push(path);
                }
                Ok(_) => self.left_out.push(path),
                Err(error) => self.unreadable.push((path, error)),
            }
        }
        Ok(())
    }

    /// The class of each file: its folder's name is a label, or else an index of a class.
    pub(super) fn labels(&self, labels: &[String]) -> anyhow::Result<Vec<u32>> {
        let mut by_name: HashMap<&OsStr, Vec<usize>> = HashMap::new();
        for (class, label) in labels.iter().enumerate() {
            by_name.entry(OsStr::new(label)).or_default().push(class);
        }
        let mut known: HashMap<&Path, u32> = HashMap::new();
        let mut classes = Vec::with_capacity(self.files.len());
        for (folder, file) in self.folders.iter().zip(&self.files) {
            let class = match known.get(folder.as_path()) {
                Some(&class) => class,
                None => {
                    let class = class_of(folder, file, labels.len(), &by_name)?;
                    known.insert(folder, class);
                    class
                }
            };
            classes.push(class);
        }
        Ok(classes)
    }
}

fn class_of(
    folder: &Path,
    file: &Path,
    num_classes: usize,
    by_name: &HashMap<&OsStr, Vec<usize>>,
) -> anyhow::Result<u32> {
    // `.` and `..` have no name of their own, and a file named without a folder lies in the current one.
    let whole = match folder.file_name() {
        Some(_) => folder.to_owned(),
        None => {
            let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            here.canonicalize().with_context(|| shown(here))?
        }
    };
    let name = whole.file_name().unwrap_or_default();
    let index = || name.to_str()?.parse::<usize>().ok().filter(|&class| class < num_classes);
    let class = match by_name.get(name).map(Vec::as_slice) {
        Some([class]) => *class,
        Some([first, second, ..]) => bail!(
            "{}: both class {first} and class {second} are labelled so; name the folder by the class's index",
            shown(&whole)
        ),
        _ => index().with_context(|| {
            format!(
                "{}: this folder's name is neither a label of the model nor a class index from 0 to {}, so {} has no \
                 label; --no-labels extracts without",
                shown(&whole),
                num_classes.saturating_sub(1),
                shown(file)
            )
        })?,
    };
    Ok(u32::try_from(class)?)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// A path for a message.
pub(super) fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("it is below the root")).expect("a folder");
            fs::write(path, b"").expect("a file");
        }
        root
    }

    #[track_caller]
    fn check(files: &[&str], inputs: &[&str], expected: Result<&[(&str, u32)], &str>) {
        let root = folder_of(files);
        let labels = ["cat", "dog", "1", "twin", "twin"].map(str::to_owned);
        let inputs: Vec<PathBuf> = inputs.iter().map(|input| root.path().join(input)).collect();
        let found = LabelledFiles::find(&inputs, false).and_then(|found| Ok((found.labels(&labels)?, found)));
        match (found, expected) {
            (Ok((classes, found)), Ok(expected)) => {
                let names =
                    found.files.iter().map(|file| file.strip_prefix(root.path()).expect("it is below the root"));
                let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
                let found: Vec<(&str, u32)> = names.iter().map(String::as_str).zip(classes).collect();
                assert_eq!(found, expected);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "no `{part}` in: {error}"),
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn the_folder_below_the_one_that_was_named_is_the_label() {
        let files = ["all/dog/b.PNG", "all/dog/a.jpg", "all/cat/deep/er/c.webp", "all/.git/d.png", "all/notes.txt"];
        let sorted = [("all/cat/deep/er/c.webp", 0), ("all/dog/a.jpg", 1), ("all/dog/b.PNG", 1)];
        check(&files, &["all"], Ok(&sorted));
        check(&files, &["all/dog"], Ok(&sorted[1..]));
        check(&files, &["all/dog/b.PNG", "all"], Ok(&[sorted[2], sorted[0], sorted[1], sorted[2]]));
        check(&files, &["all/cat"], Err("deep: this folder's name is neither a label"));
    }

    #[test]
    fn a_name_is_a_label_first_and_then_an_index() {
        check(&["1/a.png", "0/a.png", "04/a.png"], &["."], Ok(&[("0/a.png", 0), ("04/a.png", 4), ("1/a.png", 2)]));
        check(&["5/a.png"], &["."], Err("5: this folder's name is neither a label"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_is_an_image_by_its_name_or_may_be_the_folder_of_a_class() {
        use std::os::unix::fs::symlink;
        let root = folder_of(&["dog/a.png", "dog/notes.txt"]);
        let (inputs, link) = ([root.path().to_owned()], |name: &str| root.path().join(name));
        symlink("nothing", link("dog/b.png")).expect("a link");
        let names = |files: &[PathBuf]| -> Vec<String> {
            files.iter().map(|file| file.file_name().expect("a name").to_string_lossy().into_owned()).collect()
        };
        let found = LabelledFiles::find(&inputs, false).expect("files");
        assert_eq!(
            (names(&found.files), names(&found.left_out)),
            (vec!["a.png".into(), "b.png".into()], vec!["notes.txt".into()])
        );
        for name in ["cat", "dog/circle"] {
            symlink(if name == "cat" { "nothing" } else { "circle" }, link(name)).expect("a link");
            let error = LabelledFiles::find(&inputs, false).expect_err("it may be a folder");
            assert_eq!(error.to_string(), shown(&link(name)));
            let found = LabelledFiles::find(&inputs, true).expect("files");
            let [(unreadable, _)] = &found.unreadable[..] else { panic!("{found:?}") };
            assert_eq!((names(&found.files).len(), names(&found.left_out).len(), unreadable), (2, 1, &link(name)));
            fs::remove_file(link(name)).expect("removed");
        }
    }

    #[test]
    fn what_has_no_label_is_named() {
        check(&["cow/a.png", "dog/a.png"], &["."], Err("cow: this folder's name is neither a label of the model nor"));
        check(&["twin/a.png"], &["."], Err("twin: both class 3 and class 4 are labelled so"));
        check(&["dog/a.txt"], &["dog"], Err("dog: there is no image in this folder"));
        check(&["dog/a.png"], &["cat"], Err("cat"));
    }
}
