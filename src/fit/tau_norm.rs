//! Choosing tau.

use serde::Serialize;

use super::{FitError, Samples, TauGrid, Watch, engine::Engine, measure::count_correct};
use crate::{
    dataset::Shot,
    evaluate::Accuracies,
    heads::{BiasMode, Head, HeadKind, Scoring, Settings},
};

/// What one tau and one treatment of the bias get right.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// The exponent.
    pub tau: f64,
    /// What becomes of the bias.
    pub bias: BiasMode,
    /// The accuracies.
    #[serde(flatten)]
    pub accuracies: Accuracies,
}

/// The settings with the best macro accuracy on `validation`, and every one that was tried. Of equal ones the first wins:
/// the treatments in their order, then the values in theirs.
pub(super) fn choose(
    grid: &TauGrid,
    base: &Head,
    validation: &Samples<'_>,
    shots: &[Shot],
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<(Settings, Vec<CurvePoint>), FitError> {
    let tried: Vec<Settings> = grid
        .bias
        .iter()
        .flat_map(|&bias| grid.tau.iter().map(move |&tau| (tau, bias)))
        .map(|(tau, bias)| Settings { tau: Some(tau), bias: Some(bias), ..Settings::default_of(HeadKind::TauNorm) })
        .collect();
    let any = Settings::default_of(HeadKind::TauNorm);
    let derived =
        base.derive(HeadKind::TauNorm, any).map_err(|source| FitError::Base { reason: source.to_string() })?;
    let scorings: Vec<Scoring> = tried.iter().map(|settings| derived.scoring(settings)).collect();
    let scorings: Vec<&Scoring> = scorings.iter().collect();
    let correct = count_correct(validation, derived.weights(), &scorings, engine, watch)?;
    let seen = validation.class_counts();
    let curve: Vec<CurvePoint> = tried
        .iter()
        .zip(correct)
        .map(|(settings, correct)| CurvePoint {
            tau: settings.tau.unwrap_or_default(),
            bias: settings.bias.unwrap_or_default(),
            accuracies: Accuracies::new(&correct, &seen, shots),
        })
        .collect();
    let mut best = 0;
    for (index, point) in curve.iter().enumerate() {
        // Equal accuracies may differ in the last bit, which depends on the order of the sum.
        if point.accuracies.macro_ > curve[best].accuracies.macro_.map(|best| best + 1e-12) {
            best = index;
        }
    }
    Ok((tried[best], curve))
}
