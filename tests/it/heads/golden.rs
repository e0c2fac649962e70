//! Worked numbers: see `tests/data/method/README.md`.

use equipoise::{
    dataset::Shot,
    evaluate::{Accuracies, Evaluation},
    heads::{BiasMode, Head, HeadKind, Metric, Prediction, SettingsPatch, Transform, softmax, top_k},
};
use ndarray::{Array1, Array2};
use serde_json::Value;

use super::{assert_close, linear, logits, ncm, plain, tau_settings};

const TOLERANCE: f64 = 1e-5;

fn load(name: &str) -> Value {
    let path = format!("{}/tests/data/method/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn vector(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn table(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(vector).collect()
}

fn indices(value: &Value) -> Vec<usize> {
    vector(value).into_iter().map(|x| x as usize).collect()
}

fn vector_f32(value: &Value) -> Array1<f32> {
    vector(value).into_iter().map(|x| x as f32).collect()
}

fn matrix(value: &Value) -> Array2<f32> {
    let rows = table(value);
    Array2::from_shape_fn((rows.len(), rows[0].len()), |(row, column)| rows[row][column] as f32)
}

fn argmax(logits: &[Vec<f64>]) -> Vec<usize> {
    logits.iter().map(|row| top_k(row, 1)[0].class).collect()
}

#[test]
fn the_joint_head_has_the_worked_logits() {
    let file = load("tau_norm");
    let head = linear(HeadKind::Joint, &matrix(&file["W"]), Some(&vector_f32(&file["b"])), None);
    let actual = logits(&head, &plain(HeadKind::Joint), &matrix(&file["X"]));
    assert_close(&actual, &table(&file["joint_logits_with_bias"]), TOLERANCE, "joint");
    assert_eq!(argmax(&actual), indices(&file["joint_pred"]));
}

#[test]
fn tau_norm_has_the_worked_logits_for_each_tau_and_bias_mode() {
    let file = load("tau_norm");
    let base = linear(HeadKind::Joint, &matrix(&file["W"]), Some(&vector_f32(&file["b"])), None);
    let derived = base.derive(HeadKind::TauNorm, plain(HeadKind::TauNorm)).unwrap();
    let of_its_own = linear(HeadKind::TauNorm, &matrix(&file["W"]), Some(&vector_f32(&file["b"])), None);
    let modes = [
        (BiasMode::Drop, "logits_no_bias"),
        (BiasMode::Keep, "logits_option_bias_kept_unscaled"),
        (BiasMode::Scale, "logits_option_bias_scaled"),
    ];
    let taus = file["tau"].as_object().unwrap();
    assert_eq!(taus.len(), 5);
    for (tau, expected) in taus {
        for (mode, key) in modes {
            for head in [&derived, &of_its_own] {
                let actual = logits(head, &tau_settings(tau.parse().unwrap(), mode), &matrix(&file["X"]));
                assert_close(&actual, &table(&expected[key]), TOLERANCE, &format!("tau {tau}, {mode:?}"));
                if mode == BiasMode::Drop {
                    assert_eq!(argmax(&actual), indices(&expected["pred"]), "tau {tau}");
                }
            }
        }
    }
}

#[test]
fn the_norms_are_those_that_tau_is_an_exponent_of() {
    let file = load("tau_norm");
    let (weight, scale) = (matrix(&file["W"]), Array1::from_vec(vec![0.5, -2.0, 0.0, 1.0]));
    let expected = vector(&file["row_norms"]);
    let norms = linear(HeadKind::Joint, &weight, None, None).row_norms().unwrap();
    assert_close(&[norms], std::slice::from_ref(&expected), TOLERANCE, "norms");
    let norms = linear(HeadKind::Lws, &weight, None, Some(&scale)).row_norms().unwrap();
    let scaled = expected.iter().zip(&scale).map(|(norm, s)| norm * f64::from(*s).abs()).collect();
    assert_close(&[norms], &[scaled], TOLERANCE, "scaled norms");
    assert_eq!(ncm(&weight, None, Transform::None, Metric::L2).row_norms(), None);
}

#[test]
fn lws_scales_the_weights_and_the_bias() {
    let file = load("lws");
    let scale = vector_f32(&file["scales"]);
    let head = linear(HeadKind::Lws, &matrix(&file["W"]), Some(&vector_f32(&file["b"])), Some(&scale));
    let actual = logits(&head, &plain(HeadKind::Lws), &matrix(&file["X"]));
    assert_close(&actual, &table(&file["logits_reference"]), TOLERANCE, "lws");
    assert_eq!(argmax(&actual), indices(&file["pred_reference"]));
}

fn check_ncm(
    transform: Transform,
    metric: Metric,
    logits_of: impl Fn(&Value) -> &Value,
    pred: impl Fn(&Value) -> &Value,
) {
    let file = load("ncm");
    let name = if transform == Transform::None { "un" } else { transform.as_str() };
    let head = ncm(&matrix(&file["centroids"][name]), Some(&vector_f32(&file["global_mean"])), transform, metric);
    let actual = logits(&head, &plain(HeadKind::Ncm), &matrix(&file["queries"]));
    assert_close(&actual, &table(logits_of(&file)), TOLERANCE, &format!("{transform} {metric}"));
    assert_eq!(argmax(&actual), indices(pred(&file)), "{transform} {metric}");
}

#[test]
fn ncm_has_the_worked_logits_for_each_transform_and_metric() {
    for (transform, name) in [(Transform::None, "un"), (Transform::L2n, "l2n"), (Transform::Cl2n, "cl2n")] {
        let key = format!("{name}_l2");
        check_ncm(transform, Metric::L2, |file| &file["logits"][&key], |file| &file["pred"][&key]);
        let key = format!("{name}_cos");
        check_ncm(transform, Metric::Dot, |file| &file["logits"][&key], |file| &file["pred"][&key]);
        let (logits, pred) = ("true_cosine_logits", "true_cosine_pred");
        check_ncm(transform, Metric::Cosine, |file| &file[logits][name], |file| &file[pred][name]);
    }
}

fn sure(class: usize) -> Vec<Prediction> {
    vec![Prediction { class, probability: 1.0, logit: 0.0 }]
}

#[test]
fn shot_accuracy_skips_a_class_that_does_not_occur() {
    let file = load("shot_acc");
    let shots: Vec<Shot> = indices(&file["train_counts"]).into_iter().map(|n| Shot::of(n as u64)).collect();
    let mut evaluation = Evaluation::new(&shots);
    for (label, predicted) in indices(&file["labels"]).into_iter().zip(indices(&file["preds"])) {
        evaluation.add(label, &sure(predicted));
    }
    let report = evaluation.report();
    let accuracies: Vec<f64> = report.per_class.iter().map(|class| class.accuracy).collect();
    assert_close(&[accuracies], &[vector(&file["per_class_acc_present_classes"])], TOLERANCE, "per class");
    assert_eq!(report.per_class.iter().map(|class| class.class).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let key = |key: &str| file[key].as_f64().unwrap();
    let Accuracies { micro, macro_, many, medium, few } = report.accuracies;
    let actual = [many, medium, few, micro, macro_].map(Option::unwrap);
    let expected = ["many", "medium", "few", "all_micro", "all_macro"].map(key);
    assert_close(&[actual.to_vec()], &[expected.to_vec()], TOLERANCE, "groups");
    assert_eq!(report.n, 25);
}

#[test]
fn an_empty_group_or_set_has_no_accuracy() {
    let mut evaluation = Evaluation::new(&[Shot::Many, Shot::Few]);
    let report = evaluation.report();
    let accuracies = report.accuracies;
    assert_eq!(
        (report.n, accuracies.micro, accuracies.macro_, accuracies.many, report.top5, report.ece),
        (0, None, None, None, None, None)
    );
    evaluation.add(0, &sure(1));
    let report = evaluation.report();
    let Accuracies { many, medium, few, .. } = report.accuracies;
    assert_eq!((many, medium, few), (Some(0.0), None, None));
    assert_eq!((report.ece_by_shot.many, report.ece_by_shot.few), (Some(1.0), None));
    // Without training counts there are no shots.
    let mut without = Evaluation::new(&[Shot::Unknown; 2]);
    without.add(0, &sure(1));
    assert_eq!((without.report().accuracies.many, without.report().ece), (None, Some(1.0)));
    assert_eq!(serde_json::to_value(&report).unwrap()["few"], Value::Null);
}

#[test]
fn top5_looks_at_five_classes_and_no_further() {
    let ranking: Vec<Prediction> = (0..6).flat_map(sure).collect();
    let mut evaluation = Evaluation::new(&[Shot::Few; 6]);
    evaluation.add(4, &ranking);
    evaluation.add(5, &ranking);
    assert_eq!(evaluation.report().top5, Some(0.5));
}

#[test]
fn temperature_and_calibration_error_have_the_worked_values() {
    let file = load("calibration");
    let raw = matrix(&file["logits"]);
    let head: Head = linear(HeadKind::Joint, &Array2::eye(4), None, None);
    let patch = SettingsPatch { temperature: Some(file["T"].as_f64().unwrap()), ..SettingsPatch::default() };
    let settings = plain(HeadKind::Joint).with(patch, HeadKind::Joint).unwrap();
    let cooled = logits(&head, &settings, &raw);
    let probabilities: Vec<Vec<f64>> = cooled.iter().map(|row| softmax(row)).collect();
    assert_close(&probabilities, &table(&file["probs"]), TOLERANCE, "probabilities");

    let mut evaluation = Evaluation::new(&[Shot::Few; 4]);
    for (row, label) in cooled.iter().zip(indices(&file["y"])) {
        evaluation.add(label, &top_k(row, 5));
    }
    let report = evaluation.report();
    assert!((report.ece.unwrap() - file["ece15"].as_f64().unwrap()).abs() < TOLERANCE, "{:?}", report.ece);
    assert_eq!(report.top5, Some(1.0));
}

#[test]
fn a_probability_on_a_boundary_belongs_to_the_bin_below_it() {
    // One right and one wrong at 1/3, the upper edge of bin 5: in one bin they give |1 − 2/3| / 2. The two just above
    // fall into bin 6 and give as much again.
    let mut evaluation = Evaluation::new(&[Shot::Few; 2]);
    for (label, probability) in [(0, 1.0 / 3.0), (1, 1.0 / 3.0), (0, 0.34), (1, 0.34)] {
        evaluation.add(label, &[Prediction { class: 0, probability, logit: 0.0 }]);
    }
    let expected = ((1.0f64 - 2.0 / 3.0).abs() + (1.0f64 - 0.68).abs()) / 4.0;
    assert!((evaluation.report().ece.unwrap() - expected).abs() < 1e-12);
}

#[test]
fn equal_logits_go_to_the_lower_class_whatever_k_is() {
    // 40 classes, so that both ways of selecting are taken; 0 and −0 are equal.
    let logits: Vec<f64> = (0..40).map(|class| if class % 2 == 0 { -0.0 } else { 0.0 }).collect();
    for k in [1, 2, 16, 17, 39, 40, 1000] {
        let classes: Vec<usize> = top_k(&logits, k).iter().map(|best| best.class).collect();
        assert_eq!(classes, (0..k.min(40)).collect::<Vec<_>>(), "k = {k}");
    }
    assert!(top_k(&logits, 0).is_empty());
    assert!(top_k(&[], 3).is_empty());
}

#[test]
fn softmax_does_not_overflow() {
    assert_close(&[softmax(&[1e4, 1e4, -1e4])], &[vec![0.5, 0.5, 0.0]], 1e-12, "large");
    assert_close(&[softmax(&[f64::NEG_INFINITY, 3.0])], &[vec![0.0, 1.0]], 0.0, "masked");
}
