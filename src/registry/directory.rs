//! Model directories: `model.toml`, and what it points at.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::is_valid_name;
use crate::{
    dataset::{CountsError, parse_train_counts},
    files::{FileUnreadable, read_text},
    heads::{BiasMode, HeadKind, SettingsPatch},
    onnx::CudaOptions,
    preprocess::PreprocessConfig,
};

/// What can be wrong with a model directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] FileUnreadable),
    /// `model.toml` is not TOML, or has a key or a value that it must not have.
    #[error("{path}: {source}", path = path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The key, the line and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// A name of a model or a head that does not fit.
    #[error("{path}: `{name}` is no name: letters, digits, `.`, `_` and `-`, at most 64, the first a letter or a digit", path = path.display())]
    Name {
        /// `model.toml`.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A head that says too little, too much, or something else than can be.
    #[error("{path}: [heads.{head}]: {problem}", path = path.display())]
    Head {
        /// `model.toml`.
        path: PathBuf,
        /// The head.
        head: String,
        /// What is wrong.
        problem: String,
    },
    /// Training counts that cannot be.
    #[error("{path}: {source}", path = path.display())]
    Counts {
        /// The file.
        path: PathBuf,
        /// The line and what is wrong.
        source: CountsError,
    },
    /// Labels that cannot be.
    #[error("{path}: {problem}", path = path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Where a head of a model directory comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadOrigin {
    /// A head file.
    File(PathBuf),
    /// Derived from another head of the directory.
    Derived {
        /// Its kind.
        kind: HeadKind,
        /// The other head's name.
        base: String,
    },
    /// The last layer of a backbone file that is a whole classifier.
    Classifier,
}

/// A head as `model.toml` declares it.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadDeclaration {
    /// Where it comes from.
    pub origin: HeadOrigin,
    /// The settings that `model.toml` gives it.
    pub settings: SettingsPatch,
}

/// A model directory, read and checked. The backbone and the head files are not opened yet.
#[derive(Clone, Debug)]
pub struct ModelDirectory {
    /// The folder.
    pub path: PathBuf,
    /// The model's name.
    pub name: String,
    /// The ONNX file.
    pub backbone: PathBuf,
    /// How images become tensors.
    pub preprocess: PreprocessConfig,
    /// How it runs on an NVIDIA device.
    pub cuda: CudaOptions,
    /// The name of each class.
    pub labels: Vec<String>,
    /// Training samples of each class, if known.
    pub train_counts: Option<Vec<u64>>,
    /// The head that answers when none is named.
    pub default_head: String,
    /// The heads, by name.
    pub heads: BTreeMap<String, HeadDeclaration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelToml {
    name: String,
    backbone: PathBuf,
    preprocess: PreprocessConfig,
    #[serde(default)]
    cuda: CudaOptions,
    classes: ClassesToml,
    heads: HeadsToml,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassesToml {
    labels: PathBuf,
    train_counts: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadToml {
    file: Option<PathBuf>,
    kind: Option<HeadKind>,
    base: Option<String>,
    tau: Option<f64>,
    bias: Option<BiasMode>,
    temperature: Option<f64>,
}

struct HeadsToml {
    default: String,
    heads: BTreeMap<String, HeadToml>,
}

// By hand, because a flattened map would lose the lines of the errors inside it.
impl<'de> Deserialize<'de> for HeadsToml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Heads;
        impl<'de> Visitor<'de> for Heads {
            type Value = HeadsToml;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with `default` and one table for each head")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeadsToml, A::Error> {
                let (mut default, mut heads) = (None, BTreeMap::new());
                while let Some(key) = map.next_key::<String>()? {
                    if key == "default" {
                        default = Some(map.next_value()?);
                    } else {
                        heads.insert(key, map.next_value()?);
                    }
                }
                let default = default.ok_or_else(|| serde::de::Error::missing_field("default"))?;
                Ok(HeadsToml { default, heads })
            }
        }
        deserializer.deserialize_map(Heads)
    }
}

impl ModelDirectory {
    /// Reads `model.toml`, the labels and the training counts of the folder `path`.
    ///
    /// # Errors
    /// [`DirectoryError`] names the file, the key and the line.
    pub fn read(path: &Path) -> Result<Self, DirectoryError> {
        let toml_path = path.join("model.toml");
        let model: ModelToml = toml::from_str(&read_text(&toml_path)?)
            .map_err(|source| DirectoryError::Toml { path: toml_path.clone(), source: Box::new(source) })?;
        for name in std::iter::once(&model.name).chain(model.heads.heads.keys()) {
            if !is_valid_name(name) {
                return Err(DirectoryError::Name { path: toml_path, name: name.clone() });
            }
        }
        let labels = read_labels(&path.join(&model.classes.labels))?;
        let train_counts = match &model.classes.train_counts {
            None => None,
            Some(file) => {
                let file = path.join(file);
                let counts = parse_train_counts(&read_text(&file)?, labels.len());
                Some(counts.map_err(|source| DirectoryError::Counts { path: file, source })?)
            }
        };
        let problem = |head: &str, problem: String| DirectoryError::Head {
            path: toml_path.clone(),
            head: head.to_owned(),
            problem,
        };
        let mut heads = BTreeMap::new();
        for (name, head) in &model.heads.heads {
            let origin = match (&head.file, head.kind, &head.base) {
                (Some(file), None, None) => HeadOrigin::File(path.join(file)),
                (None, Some(kind), Some(base)) if model.heads.heads.contains_key(base) => {
                    HeadOrigin::Derived { kind, base: base.clone() }
                }
                (None, Some(_), Some(base)) => {
                    return Err(problem(name, format!("there is no head `{base}` to be its base")));
                }
                (None, Some(HeadKind::Joint), None) => HeadOrigin::Classifier,
                _ => {
                    let expected = "it needs either `file`, or `kind` and `base`, or `kind = \"joint\"` alone for the last \
                                    layer of a whole classifier";
                    return Err(problem(name, expected.to_owned()));
                }
            };
            let settings = SettingsPatch { tau: head.tau, bias: head.bias, temperature: head.temperature };
            heads.insert(name.clone(), HeadDeclaration { origin, settings });
        }
        let default_head = model.heads.default;
        if !heads.contains_key(&default_head) {
            return Err(problem(&default_head, "it is the default, and there is no such head".to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            name: model.name,
            backbone: path.join(model.backbone),
            preprocess: model.preprocess,
            cuda: model.cuda,
            labels,
            train_counts,
            default_head,
            heads,
        })
    }
}

/// Reads the name of each class, one a line.
pub(crate) fn read_labels(path: &Path) -> Result<Vec<String>, DirectoryError> {
    let problem = |problem: String| DirectoryError::Labels { path: path.to_owned(), problem };
    let labels: Vec<String> = read_text(path)?.lines().map(|line| line.trim().to_owned()).collect();
    match labels.iter().position(String::is_empty) {
        Some(index) => Err(problem(format!("line {} is empty", index + 1))),
        None if labels.is_empty() => Err(problem("there is no label".to_owned())),
        None => Ok(labels),
    }
}
