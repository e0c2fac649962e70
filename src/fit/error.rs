//! Why there is no head.

use super::EngineError;
use crate::heads::{HeadKind, LARGEST_WEIGHT_BYTES, Settings};

/// What a [`FitError`] calls the validation set where it names a set.
pub const VALIDATION_SET: &str = "the validation set";

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// Whoever watched did not want it any more.
    #[error("cancelled")]
    Cancelled,
    /// The engine failed.
    #[error("the engine failed: {0}")]
    Engine(#[from] EngineError),
    /// The loss is no finite number.
    #[error("the loss is no longer a finite number in epoch {epoch}: lower `learning_rate`, or normalise the features")]
    Diverged {
        /// From 1.
        epoch: usize,
    },
    /// Numbers of which L-BFGS makes nothing.
    #[error(
        "L-BFGS found nothing better than the same score for every class in {iterations} iterations, with a gradient of \
         {gradient:.1e}: the features, or the base's scores, are too large or too far from 0; standardise or normalise the \
         features"
    )]
    NothingGained {
        /// Steps that were taken.
        iterations: usize,
        /// Its largest component.
        gradient: f64,
    },
    /// A logit is no finite float32.
    #[error("the logits of row {row} of {set} are not finite{}", at(settings.as_ref()))]
    LogitsNotFinite {
        /// The feature set or the validation set.
        set: &'static str,
        /// Of the set, from 0.
        row: u32,
        /// Under which this is so, if the scores before them are finite.
        settings: Option<Settings>,
    },
    /// LWS or tau-norm without a base.
    #[error("method {method} needs a base head")]
    NoBase {
        /// The method.
        method: HeadKind,
    },
    /// A base that cannot be one.
    #[error("base: {reason}")]
    Base {
        /// Why.
        reason: String,
    },
    /// Two things that do not belong together.
    #[error("{what} has {found} {unit}, and the feature set has {expected}")]
    Mismatch {
        /// The base, the validation set or the training counts.
        what: &'static str,
        /// Classes or features.
        unit: &'static str,
        /// How many it has.
        found: usize,
        /// How many it should.
        expected: usize,
    },
    /// A weight matrix that no engine runs.
    #[error(
        "a head for {num_classes} classes of {feature_dim} features would have {bytes} bytes of weights, and the limit is \
         {LARGEST_WEIGHT_BYTES}: the largest label makes the number of classes where nothing else says it",
        bytes = *num_classes as u128 * *feature_dim as u128 * 4
    )]
    TooLarge {
        /// C.
        num_classes: usize,
        /// D.
        feature_dim: usize,
    },
    /// Several settings and nothing to choose on.
    #[error(
        "method {method} chooses between settings: give a `validation` set or `holdout`, or one `tau` and one `bias`"
    )]
    NoValidation {
        /// The method.
        method: HeadKind,
    },
    /// Choosing on what was fitted.
    #[error("the validation set has the same content as the feature set: what is fitted cannot be what is reported")]
    SameSet,
    /// Nothing held out.
    #[error("a holdout of {share} of each class holds out nothing: no class has two rows")]
    EmptyHoldout {
        /// As it was asked for.
        share: f64,
    },
    /// A share that is none.
    #[error("`holdout` must be above 0 and below 1, and is {share}")]
    HoldoutRange {
        /// As it was asked for.
        share: f64,
    },
    /// The fitted numbers are not finite.
    #[error("the fitted head is not valid: {reason}")]
    Invalid {
        /// What the reader of head files says.
        reason: String,
    },
}

impl FitError {
    /// The same, with the row in the validation set.
    pub(crate) fn of_validation_set(self) -> Self {
        match self {
            Self::LogitsNotFinite { row, settings, .. } => Self::LogitsNotFinite { set: VALIDATION_SET, row, settings },
            other => other,
        }
    }
}

/// The settings that make a logit larger than its scores.
fn at(settings: Option<&Settings>) -> String {
    let Some(settings) = settings else { return String::new() };
    let tau = settings.tau.map(|tau| format!("tau {tau}"));
    let temperature = (settings.temperature != 1.0).then(|| format!("temperature {}", settings.temperature));
    let words: Vec<String> = tau.into_iter().chain(temperature).collect();
    if words.is_empty() { String::new() } else { format!(" at {}", words.join(", ")) }
}
