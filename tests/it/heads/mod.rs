//! Heads through the public API: worked numbers, properties, hostile files.

mod algebra;
mod files;
mod golden;
mod hostile;

use equipoise::heads::{
    BiasMode, Head, HeadKind, Metric, Parameters, Scores, Scoring, Settings, SettingsPatch, Transform,
};
use ndarray::{Array1, Array2};

/// The logits of every row of `features` under `scoring`.
pub(super) fn logits_with(head: &Head, scoring: &Scoring, features: &Array2<f32>) -> Vec<Vec<f64>> {
    let (raw, squared_norms) = head.weights().raw_scores(features.view());
    let row = |(row, raw): (usize, ndarray::ArrayView1<'_, f32>)| {
        let mut logits = vec![f64::NAN; 3];
        let raw = raw.to_vec();
        let squared_norm = squared_norms.get(row).copied().unwrap_or(0.0);
        scoring.logits(Scores { raw: &raw, squared_norm }, &mut logits);
        logits
    };
    raw.rows().into_iter().enumerate().map(row).collect()
}

/// The logits of every row of `features` under `settings`.
pub(super) fn logits(head: &Head, settings: &Settings, features: &Array2<f32>) -> Vec<Vec<f64>> {
    logits_with(head, &head.scoring(settings), features)
}

pub(super) fn tau_settings(tau: f64, bias: BiasMode) -> Settings {
    let patch = SettingsPatch { tau: Some(tau), bias: Some(bias), temperature: None };
    Settings::default_of(HeadKind::TauNorm).with(patch, HeadKind::TauNorm).unwrap()
}

pub(super) fn plain(kind: HeadKind) -> Settings {
    Settings::default_of(kind)
}

pub(super) fn linear(
    kind: HeadKind,
    weight: &Array2<f32>,
    bias: Option<&Array1<f32>>,
    scale: Option<&Array1<f32>>,
) -> Head {
    let parameters = Parameters::Linear { weight: weight.clone(), bias: bias.cloned(), scale: scale.cloned() };
    Head::new(kind, parameters, None)
}

pub(super) fn ncm(centroids: &Array2<f32>, mean: Option<&Array1<f32>>, transform: Transform, metric: Metric) -> Head {
    let mean = mean.filter(|_| transform == Transform::Cl2n).cloned();
    Head::new(HeadKind::Ncm, Parameters::Ncm { centroids: centroids.clone(), mean, transform, metric }, None)
}

/// Asserts that two tables agree within `tolerance`.
#[track_caller]
pub(super) fn assert_close(actual: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: rows");
    for (row, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(actual.len(), expected.len(), "{what}: columns of row {row}");
        for (column, (a, e)) in actual.iter().zip(expected).enumerate() {
            assert!((a - e).abs() <= tolerance, "{what}: row {row}, column {column} is {a}, and should be {e}");
        }
    }
}
