//! Choosing tau.

use serde::Serialize;

use super::{FitError, TauGrid, Watch, engine::Engine, measure::Scored};
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

/// The settings of `head` with the best macro accuracy on the validation samples, which `scored` are with its weights, and
/// every one that was tried. Of equal ones the first wins: the treatments in their order, then the values in theirs.
pub(super) fn choose(
    grid: &TauGrid,
    head: &Head,
    scored: &mut Scored<'_, '_>,
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
    let scorings: Vec<Scoring> = tried.iter().map(|settings| head.scoring(settings)).collect();
    let scorings: Vec<&Scoring> = scorings.iter().collect();
    let correct = scored.count_correct(&scorings, engine, watch)?;
    let seen = scored.samples().class_counts();
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
