//! What may change while a head is served.

use serde::{Deserialize, Serialize};

use super::head::HeadKind;

/// The largest tau that is taken. The paper's grid ends at 1, the reference code's at 2.
pub const MAX_TAU: f64 = 5.0;

/// What becomes of the bias of the base head under tau-normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BiasMode {
    /// It is dropped, as in the reference code.
    #[default]
    Drop,
    /// It is added as it is: tau 0 is then the base head.
    Keep,
    /// It is scaled with the weights, by `‖wⱼ‖^−τ`.
    Scale,
}

/// The settings of one head version. Those that do not apply to its kind are `None`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Exponent of the weight norm, `0..=5`; tau_norm only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// What becomes of the bias; tau_norm only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<BiasMode>,
    /// Divides the logits; above 0.
    pub temperature: f64,
}

/// A change of settings: what is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SettingsPatch {
    /// The new tau.
    pub tau: Option<f64>,
    /// The new treatment of the bias.
    pub bias: Option<BiasMode>,
    /// The new temperature.
    pub temperature: Option<f64>,
}

/// Why a change of settings is refused. Nothing has been changed.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SettingsError {
    /// The kind of head has no such setting.
    #[error("`{setting}` is not adjustable for a head of kind {kind}")]
    NotAdjustable {
        /// The setting's name.
        setting: &'static str,
        /// The head's kind.
        kind: HeadKind,
    },
    /// The value is not a number within the range.
    #[error("`{setting}` must be {range}, and is {value}")]
    OutOfRange {
        /// The setting's name.
        setting: &'static str,
        /// What it may be.
        range: &'static str,
        /// What was asked for.
        value: f64,
    },
}

impl Settings {
    /// The settings of a head of `kind` that says nothing of its own: tau 1 and the bias dropped for tau_norm.
    pub fn default_of(kind: HeadKind) -> Self {
        let adjustable = kind == HeadKind::TauNorm;
        Self { tau: adjustable.then_some(1.0), bias: adjustable.then(BiasMode::default), temperature: 1.0 }
    }

    /// These settings with `patch` applied, for a head of `kind`.
    ///
    /// # Errors
    /// [`SettingsError`] if a value is out of range or the kind has no such setting.
    pub fn with(self, patch: SettingsPatch, kind: HeadKind) -> Result<Self, SettingsError> {
        for (setting, present) in [("tau", patch.tau.is_some()), ("bias", patch.bias.is_some())] {
            if present && kind != HeadKind::TauNorm {
                return Err(SettingsError::NotAdjustable { setting, kind });
            }
        }
        if let Some(tau) = patch.tau.filter(|tau| !(0.0..=MAX_TAU).contains(tau)) {
            return Err(SettingsError::OutOfRange { setting: "tau", range: "a number from 0 to 5", value: tau });
        }
        if let Some(value) = patch.temperature.filter(|value| !(*value > 0.0 && value.is_finite())) {
            return Err(SettingsError::OutOfRange { setting: "temperature", range: "a number above 0", value });
        }
        Ok(Self {
            tau: patch.tau.or(self.tau),
            bias: patch.bias.or(self.bias),
            temperature: patch.temperature.unwrap_or(self.temperature),
        })
    }
}
