//! Heads in ONNX Runtime against plain loops in f64.

use std::sync::Arc;

use equipoise::heads::{FeatureMap, Weights};
use equipoise::onnx::{Features, OnnxError, Scorer, ScorerSpec, Transform};
use ndarray::Array2;
use proptest::prelude::*;

use crate::onnx::on_cpu;

/// `g(x)` of one row, in f64.
fn transformed(row: &[f32], transform: Transform<'_>) -> Vec<f64> {
    let row: Vec<f64> = match transform {
        Transform::CenterL2Normalize { mean } => {
            row.iter().zip(mean).map(|(&x, &m)| f64::from(x) - f64::from(m)).collect()
        }
        Transform::Identity | Transform::L2Normalize => row.iter().map(|&x| f64::from(x)).collect(),
    };
    if transform == Transform::Identity {
        return row;
    }
    let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    row.iter().map(|x| x / norm).collect()
}

#[track_caller]
fn check_scorer(weight: &[f32], rows: &[f32], n: usize, feature_dim: usize, transform: Transform<'_>) {
    let num_classes = weight.len() / feature_dim;
    let spec = ScorerSpec { weight, num_classes, feature_dim, transform, squared_norm: true };
    let mut scorer = Scorer::build(&spec, &on_cpu()).expect("a valid head");
    let features = Features::from_host(rows.to_vec(), n, feature_dim).expect("valid features");
    let scores = scorer.run(&features).expect("a run");
    assert_eq!((scores.n, scores.num_classes, scores.raw.len()), (n, num_classes, n * num_classes));
    let norms = scores.squared_norm.expect("asked for");
    assert_eq!(norms.len(), n);
    for (i, row) in rows.chunks(feature_dim).enumerate() {
        let x = transformed(row, transform);
        let size = x.iter().map(|x| x * x).sum::<f64>();
        assert!(
            (f64::from(norms[i]) - size).abs() <= 1e-5 * size.max(1e-3),
            "{transform:?} row {i}: {} {size}",
            norms[i]
        );
        for (class, w) in weight.chunks(feature_dim).enumerate() {
            let expected: f64 = x.iter().zip(w).map(|(x, &w)| x * f64::from(w)).sum();
            let scale: f64 = x.iter().zip(w).map(|(x, &w)| (x * f64::from(w)).abs()).sum();
            let found = f64::from(scores.raw[i * num_classes + class]);
            assert!(
                (found - expected).abs() <= 1e-5 * scale.max(1e-3),
                "{transform:?} row {i} class {class}: {found} {expected}"
            );
        }
    }
}

fn check_all_transforms(weight: &[f32], rows: &[f32], n: usize, feature_dim: usize) {
    let mean: Vec<f32> = (0..feature_dim).map(|j| j as f32 / 10.0 - 0.3).collect();
    for transform in [Transform::Identity, Transform::L2Normalize, Transform::CenterL2Normalize { mean: &mean }] {
        check_scorer(weight, rows, n, feature_dim, transform);
    }
}

#[test]
fn zero_rows_and_zero_weights_give_zeros_and_no_nan() {
    check_all_transforms(&[0.0; 12], &[0.0; 8], 2, 4);
    check_all_transforms(&[1.0, -2.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0], 2, 4);
    // A row equal to the mean is a zero row after centring.
    let mean = [0.5, -1.0];
    check_scorer(&[1.0, 2.0], &[0.5, -1.0], 1, 2, Transform::CenterL2Normalize { mean: &mean });
}

#[test]
fn one_class_and_one_feature_are_enough() {
    check_all_transforms(&[-2.0], &[3.0], 1, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn scores_are_those_of_plain_loops(
        (num_classes, feature_dim, n) in (1_usize..20, 1_usize..40, 1_usize..9),
        seed in proptest::collection::vec(-10.0_f32..10.0, 97),
    ) {
        let numbers = |len: usize, stride: usize| -> Vec<f32> { (0..len).map(|i| seed[i * stride % 97]).collect() };
        check_all_transforms(&numbers(num_classes * feature_dim, 13), &numbers(n * feature_dim, 29), n, feature_dim);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let spec = ScorerSpec {
        weight: &[0.0; 6],
        num_classes: 2,
        feature_dim: 3,
        transform: Transform::Identity,
        squared_norm: false,
    };
    let build = |spec: &ScorerSpec<'_>| Scorer::build(spec, &on_cpu());
    assert!(matches!(build(&ScorerSpec { num_classes: 3, ..spec }), Err(OnnxError::WeightShape { expected: 9, .. })));
    assert!(matches!(build(&ScorerSpec { weight: &[], num_classes: 0, ..spec }), Err(OnnxError::WeightShape { .. })));
    assert!(matches!(build(&ScorerSpec { num_classes: usize::MAX, ..spec }), Err(OnnxError::TooLarge { .. })));
    let short = Transform::CenterL2Normalize { mean: &[0.0; 2] };
    assert!(matches!(
        build(&ScorerSpec { transform: short, ..spec }),
        Err(OnnxError::WeightShape { what: "the mean", .. })
    ));
    let mut scorer = build(&spec).expect("a valid head");
    let features = Features::from_host(vec![0.0; 8], 2, 4).expect("valid features");
    assert!(matches!(scorer.run(&features), Err(OnnxError::FeatureShape { expected_dim: 3, .. })));
    let features = Features::from_host(vec![0.0; 6], 2, 3).expect("valid features");
    assert_eq!(scorer.run(&features).expect("a run").squared_norm, None);
}

#[test]
fn scores_beyond_float32_are_a_matter_of_their_row_alone() {
    let spec = ScorerSpec {
        weight: &[3e38, 3e38],
        num_classes: 1,
        feature_dim: 2,
        transform: Transform::Identity,
        squared_norm: false,
    };
    let mut scorer = Scorer::build(&spec, &on_cpu()).expect("a valid head");
    let features = Features::from_host(vec![0.1, 0.1, 2.0, 2.0], 2, 2).expect("valid features");
    let raw = scorer.run(&features).expect("a run").raw;
    assert!(raw[0].is_finite() && !raw[1].is_finite(), "{raw:?}");
}

#[test]
fn a_norm_beyond_float32_gives_no_scores_and_changes_no_other_row() {
    let mean = [0.5, -1.0, 2.0];
    let ordinary = [0.1, -7.0, 3.3, 1e-30, 0.0, 0.0, 1.0, 1e18, -1e18];
    for transform in [Transform::L2Normalize, Transform::CenterL2Normalize { mean: &mean }] {
        let weight = &[1.0, -2.0, 0.25, 3.0, 0.1, -0.7];
        let spec = ScorerSpec { weight, num_classes: 2, feature_dim: 3, transform, squared_norm: true };
        let mut scorer = Scorer::build(&spec, &on_cpu()).expect("a valid head");
        let mut run = |rows: &[f32]| {
            let features = Features::from_host(rows.to_vec(), rows.len() / 3, 3).expect("valid features");
            scorer.run(&features).expect("a run")
        };
        let alone = run(&ordinary);
        assert!(alone.raw.iter().all(|score| score.is_finite()), "{transform:?}: {alone:?}");
        for large in [2e19, -3e25, f32::MAX] {
            let scores = run(&[&[large, 0.0, large], &ordinary[..]].concat());
            let norms = scores.squared_norm.expect("asked for");
            assert!(scores.raw[..2].iter().chain(&norms[..1]).all(|score| !score.is_finite()), "{transform:?} {large}");
            assert_eq!((&scores.raw[2..], Some(&norms[1..])), (&alone.raw[..], alone.squared_norm.as_deref()));
        }
    }
}

#[test]
fn scorers_that_share_weights_answer_alike_and_outlive_each_other() {
    let values = (0..40 * 33).map(|i| (i % 101) as f32 / 50.0 - 1.0).collect();
    let matrix = Array2::from_shape_vec((40, 33), values).expect("as many values");
    let weights = || Arc::new(Weights::new(matrix.clone(), FeatureMap::L2Normalize, true));
    let features = Features::from_host((0..4 * 33).map(|i| (i % 29) as f32).collect(), 4, 33).expect("valid features");
    let mut alone = Scorer::build(&ScorerSpec::of(&weights()), &on_cpu()).expect("a valid head");
    let alone = alone.run(&features).expect("a run");
    for n_sessions in 0..5 {
        let weights = weights();
        let scorers = Scorer::build_several(&weights, &on_cpu(), n_sessions).expect("valid heads");
        assert_eq!(scorers.len(), n_sessions);
        let kept = Arc::downgrade(&weights);
        drop(weights);
        for mut scorer in scorers {
            assert_eq!(scorer.run(&features).expect("a run"), alone, "of {n_sessions}");
        }
        assert_eq!(kept.strong_count(), 0, "they go with the last session");
    }
}
