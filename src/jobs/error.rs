//! Why a fit or an evaluation is refused.

use super::FitState;
use crate::{
    fit::{FitError, RecipeError},
    heads::HeadKind,
    registry::{RegistryError, StateError},
};

/// Why a fit or an evaluation is refused. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// From the registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A name that no head can have.
    #[error("`{key}` is `{name}`, which is no name of a head")]
    HeadName {
        /// Where it stands.
        key: &'static str,
        /// The name.
        name: String,
    },
    /// Parameters that the method does not take.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A fit that cannot succeed.
    #[error(transparent)]
    Fit(FitError),
    /// A base without a linear layer.
    #[error("`base`: method {method} needs a linear base, and head `{head}` version {version} is of kind {kind}")]
    Base {
        /// The method.
        method: HeadKind,
        /// The base's name.
        head: String,
        /// Its version.
        version: u32,
        /// Its kind.
        kind: HeadKind,
    },
    /// Nothing to compare on.
    #[error("`publish` is `if_better`, which needs a `validation`")]
    NothingToCompareOn,
    /// The queue of fits is full.
    #[error("{capacity} fits wait already")]
    QueueFull {
        /// How many may wait.
        capacity: usize,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
    /// No fit of that id.
    #[error("there is no fit `{id}`")]
    NotFound {
        /// The id.
        id: String,
    },
    /// Nothing is left to cancel.
    #[error("fit `{id}` cannot be cancelled any more: it is {state}", state = state.as_str())]
    Finished {
        /// The id.
        id: String,
        /// How it ended; or it still runs, and its head is being written down.
        state: FitState,
    },
    /// There is no head to publish.
    #[error("fit `{id}` has not succeeded: it is {state}", state = state.as_str())]
    NotSucceeded {
        /// The id.
        id: String,
        /// How far it is.
        state: FitState,
    },
    /// As many evaluations as there may be.
    #[error("{capacity} evaluations run already")]
    TooManyEvaluations {
        /// How many may run at once.
        capacity: usize,
    },
    /// A list that is empty or too long.
    #[error("`tau` must be a list of 1 to {max} values, and has {found}")]
    TauList {
        /// The longest.
        max: usize,
        /// How many there are.
        found: usize,
    },
    /// A feature row whose logits are no numbers.
    #[error("{0}")]
    NotFinite(FitError),
    /// The engine failed.
    #[error("the evaluation failed: {0}")]
    Engine(String),
}

impl From<StateError> for JobError {
    fn from(error: StateError) -> Self {
        Self::Registry(error.into())
    }
}
