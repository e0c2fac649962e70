//! Head files: safetensors with the numbers, and a few words about them.

use std::{collections::BTreeMap, str::FromStr};

use ndarray::{Array1, Array2};
use safetensors::{Dtype, SafeTensors};

use super::{
    BiasMode, Digest, Head, HeadKind, Parameters, Settings, SettingsError, SettingsPatch, TrainPrior, Transform,
};

/// The value of the metadata key `format`.
pub const FORMAT: &str = "equipoise-head/1";

/// What can be wrong with a head file.
#[derive(Debug, thiserror::Error)]
pub enum HeadFileError {
    /// Not a safetensors file, or a damaged one.
    #[error("not a readable safetensors file: {reason}")]
    Container {
        /// What the reader says.
        reason: String,
    },
    /// Another or a newer format.
    #[error("metadata `format` must be `{FORMAT}`, and is `{found}`")]
    Format {
        /// What stands there; empty if nothing does.
        found: String,
    },
    /// A metadata key that the kind needs is not there.
    #[error("metadata `{key}` is missing")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A metadata value that cannot be.
    #[error("metadata `{key}` is `{found}`, and must be {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: String,
    },
    /// A tensor that the kind needs is not there.
    #[error("tensor `{tensor}` is missing: a head of kind {kind} needs it")]
    MissingTensor {
        /// The tensor.
        tensor: &'static str,
        /// The head's kind.
        kind: HeadKind,
    },
    /// A tensor that the kind has no use for.
    #[error("tensor `{tensor}` does not belong to a head of kind {kind}")]
    UnexpectedTensor {
        /// The tensor.
        tensor: String,
        /// The head's kind.
        kind: HeadKind,
    },
    /// Another element type.
    #[error("tensor `{tensor}` must be {expected}, and is {found:?}")]
    Dtype {
        /// The tensor.
        tensor: &'static str,
        /// `float32` or `int64`.
        expected: &'static str,
        /// Its element type.
        found: Dtype,
    },
    /// Another shape.
    #[error("tensor `{tensor}` has shape {found:?}, and `classes` and `feature_dim` ask for {expected:?}")]
    Shape {
        /// The tensor.
        tensor: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What the metadata says.
        expected: Vec<usize>,
    },
    /// NaN or an infinity among the numbers.
    #[error("tensor `{tensor}` has a value that is not finite at index {index}")]
    NotFinite {
        /// The tensor.
        tensor: &'static str,
        /// Counted through in row-major order.
        index: usize,
    },
    /// A negative training count, or none above 0.
    #[error("tensor `train_counts` {problem}")]
    TrainCounts {
        /// What is wrong with it.
        problem: String,
    },
    /// An initial setting out of range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// A head and the digest of the file it was read from. A clone shares the weights.
#[derive(Clone, Debug)]
pub struct HeadFile {
    /// The head.
    pub head: Head,
    /// SHA-256 of the file's bytes.
    pub digest: Digest,
}

impl HeadFile {
    /// Reads a head file: `weight [C, D]`, `bias [C]` and `scale [C]`, or `centroids [C, D]` and `mean [D]`; `train_counts [C]`.
    ///
    /// # Errors
    /// [`HeadFileError`] names the tensor or the key, and what it should be.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeadFileError> {
        Ok(Self { head: Self::parse_head(bytes)?, digest: Digest::of(bytes) })
    }

    /// The head alone: what needs no digest is spared it.
    pub(crate) fn parse_head(bytes: &[u8]) -> Result<Head, HeadFileError> {
        let container = |error: safetensors::SafeTensorError| HeadFileError::Container { reason: error.to_string() };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(container)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(container)?;
        let metadata: BTreeMap<String, String> = header
            .metadata()
            .as_ref()
            .map(|map| map.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
            .unwrap_or_default();
        Reader { tensors, metadata }.head()
    }
}

const TENSORS: [&str; 6] = ["weight", "bias", "scale", "centroids", "mean", "train_counts"];
const KEYS: [&str; 9] =
    ["format", "kind", "classes", "feature_dim", "transform", "metric", "train_prior", "tau", "bias"];

struct Reader<'a> {
    tensors: SafeTensors<'a>,
    metadata: BTreeMap<String, String>,
}

impl Reader<'_> {
    fn head(&self) -> Result<Head, HeadFileError> {
        let format = self.metadata.get("format").cloned().unwrap_or_default();
        if format != FORMAT {
            return Err(HeadFileError::Format { found: shortened(&format) });
        }
        let kind: HeadKind = self.required("kind")?;
        let num_classes = self.size("classes")?;
        let feature_dim = self.size("feature_dim")?;
        self.refuse_foreign_tensors(kind)?;

        let parameters = match kind {
            HeadKind::Ncm => {
                let transform = self.optional("transform")?.unwrap_or(Transform::None);
                let mean = match transform {
                    Transform::Cl2n => Some(self.needed(kind, "mean", &[feature_dim])?),
                    Transform::None | Transform::L2n => None,
                };
                let centroids = self.needed(kind, "centroids", &[num_classes, feature_dim])?;
                Parameters::Ncm {
                    centroids: matrix(centroids, "centroids", num_classes, feature_dim)?,
                    mean: mean.map(Array1::from_vec),
                    transform,
                    metric: self.required("metric")?,
                }
            }
            HeadKind::Joint | HeadKind::Crt | HeadKind::TauNorm | HeadKind::Lws => {
                if let Some(found) = self.metadata.get("transform").filter(|found| *found != "none") {
                    let expected = format!("none for a head of kind {kind}");
                    return Err(HeadFileError::Value { key: "transform", found: shortened(found), expected });
                }
                let scale = match kind {
                    HeadKind::Lws => Some(self.needed(kind, "scale", &[num_classes])?),
                    _ => None,
                };
                let weight = self.needed(kind, "weight", &[num_classes, feature_dim])?;
                Parameters::Linear {
                    weight: matrix(weight, "weight", num_classes, feature_dim)?,
                    bias: self.floats("bias", &[num_classes])?.map(Array1::from_vec),
                    scale: scale.map(Array1::from_vec),
                }
            }
        };
        let train_counts = self.train_counts(num_classes)?;
        let prior = self.optional("train_prior")?.unwrap_or(TrainPrior::default_of(kind));
        let initial = self.initial_settings(kind)?;
        let provenance =
            self.metadata.iter().filter(|(key, _)| !KEYS.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone()));
        Ok(Head::new(kind, parameters, train_counts).with_record(prior, initial, provenance.collect()))
    }

    fn refuse_foreign_tensors(&self, kind: HeadKind) -> Result<(), HeadFileError> {
        let belongs = |name: &str| match name {
            "weight" | "bias" => kind != HeadKind::Ncm,
            "scale" => kind == HeadKind::Lws,
            // `mean` may stand beside any transform; it is used by cl2n alone.
            "centroids" | "mean" => kind == HeadKind::Ncm,
            name => TENSORS.contains(&name),
        };
        // The first in the alphabet, so that the same file is refused with the same words.
        match self.tensors.names().into_iter().filter(|name| !belongs(name)).min() {
            Some(name) => Err(HeadFileError::UnexpectedTensor { tensor: shortened(name), kind }),
            None => Ok(()),
        }
    }

    fn optional<T: FromStr<Err = String>>(&self, key: &'static str) -> Result<Option<T>, HeadFileError> {
        let parse = |found: &String| {
            found.parse().map_err(|names| HeadFileError::Value {
                key,
                found: shortened(found),
                expected: format!("one of {names}"),
            })
        };
        self.metadata.get(key).map(parse).transpose()
    }

    fn required<T: FromStr<Err = String>>(&self, key: &'static str) -> Result<T, HeadFileError> {
        self.optional(key)?.ok_or(HeadFileError::MissingKey { key })
    }

    fn size(&self, key: &'static str) -> Result<usize, HeadFileError> {
        let found = self.metadata.get(key).ok_or(HeadFileError::MissingKey { key })?;
        match found.parse() {
            Ok(size) if size > 0 => Ok(size),
            _ => Err(HeadFileError::Value { key, found: shortened(found), expected: "an integer above 0".to_owned() }),
        }
    }

    fn number(&self, key: &'static str) -> Result<Option<f64>, HeadFileError> {
        let parse = |found: &String| {
            found.parse().map_err(|_| HeadFileError::Value {
                key,
                found: shortened(found),
                expected: "a number".to_owned(),
            })
        };
        self.metadata.get(key).map(parse).transpose()
    }

    fn initial_settings(&self, kind: HeadKind) -> Result<Settings, HeadFileError> {
        let default = Settings::default_of(kind);
        if kind != HeadKind::TauNorm {
            return Ok(default);
        }
        let bias = match self.metadata.get("bias").map(String::as_str) {
            None => None,
            Some("drop") => Some(BiasMode::Drop),
            Some("keep") => Some(BiasMode::Keep),
            Some("scale") => Some(BiasMode::Scale),
            Some(found) => {
                let expected = "one of drop, keep, scale".to_owned();
                return Err(HeadFileError::Value { key: "bias", found: shortened(found), expected });
            }
        };
        Ok(default.with(SettingsPatch { tau: self.number("tau")?, bias, temperature: None }, kind)?)
    }

    fn floats(&self, tensor: &'static str, shape: &[usize]) -> Result<Option<Vec<f32>>, HeadFileError> {
        let Ok(view) = self.tensors.tensor(tensor) else { return Ok(None) };
        if view.dtype() != Dtype::F32 {
            return Err(HeadFileError::Dtype { tensor, expected: "float32", found: view.dtype() });
        }
        check_shape(tensor, view.shape(), shape)?;
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(HeadFileError::NotFinite { tensor, index }),
            None => Ok(Some(values)),
        }
    }

    fn needed(&self, kind: HeadKind, tensor: &'static str, shape: &[usize]) -> Result<Vec<f32>, HeadFileError> {
        self.floats(tensor, shape)?.ok_or(HeadFileError::MissingTensor { tensor, kind })
    }

    fn train_counts(&self, num_classes: usize) -> Result<Option<Vec<u64>>, HeadFileError> {
        let tensor = "train_counts";
        let Ok(view) = self.tensors.tensor(tensor) else { return Ok(None) };
        if view.dtype() != Dtype::I64 {
            return Err(HeadFileError::Dtype { tensor, expected: "int64", found: view.dtype() });
        }
        check_shape(tensor, view.shape(), &[num_classes])?;
        let count = |(class, bytes): (usize, &[u8])| {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            u64::try_from(i64::from_le_bytes(word))
                .map_err(|_| HeadFileError::TrainCounts { problem: format!("is negative for class {class}") })
        };
        let counts: Vec<u64> = view.data().chunks_exact(8).enumerate().map(count).collect::<Result<_, _>>()?;
        if counts.iter().all(|&count| count == 0) {
            return Err(HeadFileError::TrainCounts {
                problem: "is 0 for every class: none could be predicted".to_owned(),
            });
        }
        Ok(Some(counts))
    }
}

/// What a file says, short enough for a message.
fn shortened(found: &str) -> String {
    const MAX_CHARS: usize = 64;
    match found.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &found[..end]),
        None => found.to_owned(),
    }
}

fn check_shape(tensor: &'static str, found: &[usize], expected: &[usize]) -> Result<(), HeadFileError> {
    if found == expected {
        Ok(())
    } else {
        Err(HeadFileError::Shape { tensor, found: found.to_vec(), expected: expected.to_vec() })
    }
}

fn matrix(values: Vec<f32>, tensor: &'static str, rows: usize, columns: usize) -> Result<Array2<f32>, HeadFileError> {
    let found = vec![values.len()];
    Array2::from_shape_vec((rows, columns), values).map_err(|_| HeadFileError::Shape {
        tensor,
        found,
        expected: vec![rows, columns],
    })
}
