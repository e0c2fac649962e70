//! Writes a model directory: all of it, or nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::{TAU, shown};
use crate::{
    cli::whole_file::folder_of,
    preprocess::{PreprocessConfig, Resize},
};

/// What a model directory is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) name: &'a str,
    pub(super) backbone: &'a [u8],
    /// The head file of the classifier's last layer.
    pub(super) joint: &'a [u8],
    pub(super) labels: &'a [String],
    pub(super) train_counts: Option<&'a str>,
    pub(super) preprocess: &'a PreprocessConfig,
}

/// A directory that may be written.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    is_there: bool,
}

/// A model directory written beside its place, or in it. It is removed unless it is published.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    place: Place,
    /// `model.toml` last: with it the directory becomes a model.
    files: Vec<&'static str>,
}

impl Place {
    /// Checks that `path` is new, empty, or to be written whatever is in it.
    pub(super) fn find(path: &Path, force: bool) -> anyhow::Result<Self> {
        let is_there = match fs::read_dir(path) {
            Ok(mut entries) => {
                if !force && entries.next().is_some() {
                    bail!("{}: the directory is not empty; --force replaces the files that import writes", shown(path));
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error).with_context(|| shown(path)),
        };
        Ok(Self { path: path.to_owned(), is_there })
    }

    /// Writes the parts where they disturb nobody yet.
    pub(super) fn stage(self, parts: &Parts<'_>) -> anyhow::Result<Staged> {
        // In the same file system as the place, so that a rename is enough.
        let folder = if self.is_there { &self.path } else { folder_of(&self.path) };
        let path = folder.join(format!(".import-{}", std::process::id()));
        let mut staged = Staged { path, place: self, files: Vec::new() };
        staged.write(parts).with_context(|| shown(&staged.path))?;
        Ok(staged)
    }
}

impl Staged {
    /// Where it is now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, parts: &Parts<'_>) -> io::Result<()> {
        fs::create_dir_all(self.path.join("heads"))?;
        let labels: String = parts.labels.iter().map(|label| format!("{label}\n")).collect();
        let toml = model_toml(parts);
        let files = [
            ("backbone.onnx", Some(parts.backbone)),
            ("heads/joint.safetensors", Some(parts.joint)),
            ("labels.txt", Some(labels.as_bytes())),
            ("train_counts.csv", parts.train_counts.map(str::as_bytes)),
            ("model.toml", Some(toml.as_bytes())),
        ];
        for (name, bytes) in files {
            if let Some(bytes) = bytes {
                fs::write(self.path.join(name), bytes)?;
                self.files.push(name);
            }
        }
        Ok(())
    }

    /// Puts it in its place: a new directory at once, into one that is there a file after the other.
    pub(super) fn publish(self) -> anyhow::Result<()> {
        let place = &self.place.path;
        if !self.place.is_there {
            return fs::rename(&self.path, place).with_context(|| shown(place));
        }
        fs::create_dir_all(place.join("heads")).with_context(|| shown(place))?;
        for name in &self.files {
            fs::rename(self.path.join(name), place.join(name)).with_context(|| shown(&place.join(name)))?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Nothing is there any more when it became the place itself.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn model_toml(parts: &Parts<'_>) -> String {
    // Every pixel is decoded, which needs no line.
    let PreprocessConfig { pre_crop, resize, crop, interpolation, mean, std, exif_orientation, decode: _ } =
        parts.preprocess;
    let sides = |height: u32, width: u32| format!("[{height}, {width}]");
    let resize = resize.map(|resize| match resize {
        Resize::ShorterSide(side) => side.to_string(),
        Resize::Exact { height, width } => sides(height, width),
    });
    let crop = crop.map(|crop| match crop.size() {
        (height, width) if height == width => height.to_string(),
        (height, width) => sides(height, width),
    });
    let given = [("pre_crop", pre_crop.map(|share| format!("{share:?}"))), ("resize", resize), ("crop", crop)];
    let sizes: String = given.into_iter().filter_map(|(key, value)| Some(format!("{key} = {}\n", value?))).collect();
    let train_counts = if parts.train_counts.is_some() { "train_counts = \"train_counts.csv\"\n" } else { "" };
    // The names of filters and of what becomes of an orientation are those of serde.
    let interpolation = serde_json::json!(interpolation);
    let exif_orientation = serde_json::json!(exif_orientation);
    format!(
        "name = \"{name}\"
backbone = \"backbone.onnx\"

[preprocess]
{sizes}interpolation = {interpolation}
mean = {mean:?}
std = {std:?}
exif_orientation = {exif_orientation}

[classes]
labels = \"labels.txt\"
{train_counts}
[heads]
default = \"joint\"

# The classifier's own last layer.
[heads.joint]
file = \"heads/joint.safetensors\"

# The same with each class's weights divided by the tau-th power of their norm. At tau 0 it is joint; a validation set says
# which tau is best.
[heads.tau]
kind = \"tau_norm\"
base = \"joint\"
{TAU}
",
        name = parts.name,
    )
}
