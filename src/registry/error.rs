//! Why the registry refuses, and what can go wrong with the state.

use std::{io, path::PathBuf};

use super::IfMatch;
use crate::{
    dataset::FeatureSetError,
    heads::{DeriveError, HeadFileError, SettingsError},
    onnx::OnnxError,
};

/// Why a look-up or a change is refused. Nothing has been changed, unless the store did not answer
/// ([`StateError::is_unreachable`]): then it is not known.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The models are not loaded yet.
    #[error("the models are still being loaded")]
    NotLoaded,
    /// No model of that name.
    #[error("there is no model `{name}`")]
    ModelNotFound {
        /// The name.
        name: String,
    },
    /// No head of that name.
    #[error("there is no head `{name}`")]
    HeadNotFound {
        /// The name.
        name: String,
    },
    /// The head has no such version.
    #[error("head `{name}` has no version {version}")]
    VersionNotFound {
        /// The name.
        name: String,
        /// The version.
        version: u32,
    },
    /// A setting that cannot be.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A head file that cannot be read.
    #[error(transparent)]
    HeadFile(#[from] HeadFileError),
    /// A head that cannot be derived.
    #[error(transparent)]
    Derive(#[from] DeriveError),
    /// A head of another model.
    #[error(
        "the head is for {classes} classes and {feature_dim} features, and the model has {model_classes} and {model_dim}"
    )]
    Incompatible {
        /// C of the head.
        classes: usize,
        /// D of the head.
        feature_dim: usize,
        /// C of the model.
        model_classes: usize,
        /// D of the model.
        model_dim: usize,
    },
    /// The model is not at the generation at which the change was to be made.
    #[error("the change was to be made at {expected}, and the model is at generation {generation}")]
    PreconditionFailed {
        /// What was asked for.
        expected: IfMatch,
        /// What there is.
        generation: u64,
    },
    /// Other servers changed the model each time before this one could.
    #[error("other servers change the model all the time: {tries} tries were not enough")]
    Contended {
        /// How often it was tried.
        tries: u32,
    },
    /// There is no earlier default, or it was deleted.
    #[error("there is no earlier default head to go back to")]
    NoPreviousDefault,
    /// The default head is not deleted.
    #[error("head `{name}` version {version} is the default: activate another one first")]
    IsDefault {
        /// The name.
        name: String,
        /// The version.
        version: u32,
    },
    /// A base is not deleted.
    #[error("head `{dependent}` version {dependent_version} derives from head `{name}` version {version}")]
    HasDependents {
        /// The base's name.
        name: String,
        /// The base's version.
        version: u32,
        /// The derived head's name.
        dependent: String,
        /// The derived head's version.
        dependent_version: u32,
    },
    /// No feature set of that id.
    #[error("there is no feature set `{id}`")]
    FeatureSetNotFound {
        /// The id.
        id: String,
    },
    /// A feature set that a fit reads is not deleted.
    #[error("feature set `{id}` is in use by a fit")]
    FeatureSetInUse {
        /// The id.
        id: String,
    },
    /// A feature set that cannot be read, or is not for this model.
    #[error(transparent)]
    FeatureSet(FeatureSetError),
    /// The disk, or what feature sets may take of it, is full.
    #[error("there is no room for the feature set: {reason}")]
    StorageFull {
        /// The numbers.
        reason: String,
    },
    /// The sessions of the head could not be made.
    #[error("the sessions of the head could not be made: {0}")]
    Session(#[from] OnnxError),
    /// The change could not be written down.
    #[error("the change could not be written down: {0}")]
    State(#[from] StateError),
}

/// What can go wrong with the state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system says no.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has it.
    #[error("{path} is in use by another equipoise server", path = path.display())]
    Locked {
        /// The state directory.
        path: PathBuf,
    },
    /// A manifest or blob that is not what it was when it was written.
    #[error("{path} is damaged: {problem}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A manifest of a later version of equipoise.
    #[error("{path} is of a later version of equipoise (format `{format}`): run that one", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: String,
    },
    /// The store does not answer, or not so that it is known what it has. What was to be written may have been.
    #[error("{object}: {problem}")]
    Unreachable {
        /// The object.
        object: String,
        /// Why.
        problem: String,
    },
    /// The place of the shared store makes no sense.
    #[error("--state {url}: {problem}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The model was loaded without one.
    #[error("there is no state directory to keep it in")]
    Absent,
}

impl StateError {
    /// Whether the store is to blame, and not what lies in it: the same may work later.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The same as the store's fault: what cannot be read in one that others share, or is not what was written, may be a
    /// network's, and is as good as away.
    pub(super) fn into_unreachable(self) -> Self {
        let (path, problem) = match self {
            Self::Io { path, source } => (path, source.to_string()),
            Self::Damaged { path, problem } => (path, format!("it is damaged: {problem}")),
            Self::Newer { path, format } => {
                (path, format!("it is of a later version of equipoise (format `{format}`): run that one"))
            }
            other => return other,
        };
        Self::Unreachable { object: path.display().to_string(), problem }
    }
}
