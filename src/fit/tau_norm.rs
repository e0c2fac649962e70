//! Choosing tau.

use std::ops::ControlFlow;

use serde::Serialize;

use super::{FitError, Progress, TauGrid, Watch, engine::Engine, measure::Scored};
use crate::{
    dataset::Shot,
    evaluate::{Accuracies, best_macro},
    heads::{BiasMode, Head, HeadKind, Scoring, Settings},
};

/// Classes under all settings that are tried at once: a hundred megabytes.
const CLASSES_AT_ONCE: usize = 1 << 22;

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
    let seen = scored.samples().class_counts();
    let mut curve: Vec<CurvePoint> = Vec::with_capacity(tried.len());
    for group in tried.chunks((CLASSES_AT_ONCE / head.num_classes()).max(1)) {
        let n_before = curve.len() as f64;
        let mut on_progress = |told: Option<Progress>| {
            let done = |of_group: f64| (n_before + of_group * group.len() as f64) / tried.len() as f64;
            let answer = match told {
                Some(told) => watch.tell(Progress { done: done(told.done), ..told }),
                None => watch.check(),
            };
            if answer.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let scorings: Vec<Scoring> = group.iter().map(|settings| head.scoring(settings)).collect();
        let scorings: Vec<&Scoring> = scorings.iter().collect();
        let correct = scored.count_correct(&scorings, engine, &mut Watch::new(&mut on_progress))?;
        curve.extend(group.iter().zip(correct).map(|(settings, correct)| CurvePoint {
            tau: settings.tau.unwrap_or_default(),
            bias: settings.bias.unwrap_or_default(),
            accuracies: Accuracies::new(&correct, &seen, shots),
        }));
    }
    let best = best_macro(curve.iter().map(|point| &point.accuracies));
    Ok((tried[best], curve))
}
