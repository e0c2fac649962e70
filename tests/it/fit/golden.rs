//! Steps of SGD against worked numbers (`tests/data/method`) and torch's (`tests/data/fit/sgd.json`), by every engine.

use equipoise::{
    fit::{Batch, Engine, PlainEngine, Rows, Sgd},
    heads::HeadKind,
};
use ndarray::Array2;
use serde_json::{Value, json as value};

use super::{assert_near, indices, json, numbers, recipe, singles};

/// What float32 arithmetic leaves of numbers of this size.
const TOLERANCE: f64 = 1e-5;

/// Every engine that this build has.
pub(super) fn engines() -> Vec<(&'static str, Box<dyn Engine>)> {
    #[cfg_attr(not(feature = "server"), expect(unused_mut, reason = "there is one only"))]
    let mut engines: Vec<(&'static str, Box<dyn Engine>)> = vec![("plain", Box::new(PlainEngine::default()))];
    #[cfg(feature = "server")]
    {
        use equipoise::onnx::{DeviceChoice, FitEngine, SessionOptions};
        let options = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
        engines.push(("ONNX Runtime", Box::new(FitEngine::new(&options).unwrap())));
    }
    engines
}

fn matrix(rows: &Value) -> Array2<f32> {
    let values = singles(rows);
    let n_rows = rows.as_array().unwrap().len();
    Array2::from_shape_vec((n_rows, values.len() / n_rows), values).unwrap()
}

#[test]
fn two_steps_of_crt_have_the_worked_values() {
    let file = json("method/crt.json");
    let (features, labels) = (matrix(&file["X"]), indices(&file["y"]));
    for (name, mut engine) in engines() {
        let mut parameters = [singles(&file["W0"]), singles(&file["b0"])].concat();
        let mut sgd = Sgd::new(parameters.len(), 0.9, 5e-4, 2);
        for (number, step) in file["steps"].as_array().unwrap().iter().enumerate() {
            let batch = Batch {
                table: features.view(),
                rows: Rows::Range { start: 0, end: 4 },
                labels: &labels,
                row_weights: &[0.25; 4],
            };
            let (weight, bias) = parameters.split_at(16);
            let gradient = engine.linear_gradient(&batch, weight, bias).unwrap();
            assert_near(
                &[gradient.loss as f32],
                &numbers(&step["loss_before"]),
                TOLERANCE,
                &format!("{name}, step {number}: loss"),
            );
            sgd.step(0.2, &gradient.parts, &mut parameters);
            let expected = [numbers(&step["W_after"]), numbers(&step["b_after"])].concat();
            assert_near(&parameters, &expected, TOLERANCE, &format!("{name}, step {number}"));
        }
    }
}

#[test]
fn two_steps_of_lws_have_the_worked_values() {
    let file = json("method/lws.json");
    let (features, weight) = (matrix(&file["X"]), matrix(&file["W"]));
    let scores = features.dot(&weight.t()) + &ndarray::Array1::from_vec(singles(&file["b"]));
    let train = &file["train"];
    let labels = indices(&train["y"]);
    for (name, mut engine) in engines() {
        let mut scale = singles(&train["init_scales"]);
        let mut sgd = Sgd::new(4, 0.9, 5e-4, 2);
        for (number, step) in train["steps"].as_array().unwrap().iter().enumerate() {
            let batch = Batch {
                table: scores.view(),
                rows: Rows::Index(&[0, 1, 2, 3]),
                labels: &labels,
                row_weights: &[0.25; 4],
            };
            let gradient = engine.scale_gradient(&batch, &scale).unwrap();
            assert_near(
                &[gradient.loss as f32],
                &numbers(&step["loss_before"]),
                TOLERANCE,
                &format!("{name}, step {number}: loss"),
            );
            assert_near(
                &gradient.parts.concat(),
                &numbers(&step["grad_ce"]),
                TOLERANCE,
                &format!("{name}, step {number}: gradient"),
            );
            sgd.step(0.2, &gradient.parts, &mut scale);
            assert_near(&scale, &numbers(&step["scales_after"]), TOLERANCE, &format!("{name}, step {number}"));
        }
    }
}

#[test]
fn six_steps_on_drawn_batches_are_those_of_torch() {
    let file = json("fit/sgd.json");
    let (features, all_labels) = (matrix(&file["features"]), indices(&file["labels"]));
    let (weight, bias) = (singles(&file["initial"]["weight"]), singles(&file["initial"]["bias"]));
    let layer = Array2::from_shape_vec((5, 8), weight.clone()).unwrap();
    let scores = features.dot(&layer.t()) + &ndarray::Array1::from_vec(bias.clone());
    for (name, mut engine) in engines() {
        let mut parameters = [weight.clone(), bias.clone()].concat();
        let mut scale = vec![1.0f32; 5];
        let (mut sgd, mut sgd_of_scale) = (Sgd::new(45, 0.9, 5e-4, 2), Sgd::new(5, 0.9, 5e-4, 2));
        let steps = file["batches"].as_array().unwrap().iter();
        let expected = file["linear_steps"].as_array().unwrap().iter().zip(file["scale_steps"].as_array().unwrap());
        for (number, (batch, (linear, scaled))) in steps.zip(expected).enumerate() {
            let rows = indices(batch);
            let labels: Vec<u32> = rows.iter().map(|&row| all_labels[row as usize]).collect();
            let batch = Batch {
                table: features.view(),
                rows: Rows::Index(&rows),
                labels: &labels,
                row_weights: &[1.0 / 16.0; 16],
            };
            let gradient = engine.linear_gradient(&batch, &parameters[..40], &parameters[40..]).unwrap();
            assert_near(
                &[gradient.loss as f32],
                &numbers(&linear["loss"]),
                TOLERANCE,
                &format!("{name}, step {number}: loss"),
            );
            sgd.step(0.2, &gradient.parts, &mut parameters);
            let expected = [numbers(&linear["weight"]), numbers(&linear["bias"])].concat();
            assert_near(&parameters, &expected, TOLERANCE, &format!("{name}, step {number}"));

            let batch = Batch { table: scores.view(), ..batch };
            let gradient = engine.scale_gradient(&batch, &scale).unwrap();
            assert_near(
                &[gradient.loss as f32],
                &numbers(&scaled["loss"]),
                TOLERANCE,
                &format!("{name}, step {number}: loss"),
            );
            sgd_of_scale.step(0.2, &gradient.parts, &mut scale);
            assert_near(&scale, &numbers(&scaled["scale"]), TOLERANCE, &format!("{name}, step {number}: scale"));
        }
    }
}

#[test]
fn the_learning_rate_falls_as_a_half_cosine_and_the_last_epoch_has_one() {
    let file = json("method/crt.json");
    let equipoise::fit::Recipe::Linear(_, softmax) = recipe(HeadKind::Crt, value!({})) else { panic!() };
    let rates: Vec<f32> = (1..=10).map(|epoch| softmax.learning_rate(epoch, 100_000) as f32).collect();
    let table = &file["cosine_lr_base0.2_T10"];
    let expected = table.as_object().map_or_else(
        || numbers(table),
        |tables| numbers(tables.iter().find(|(name, _)| name.contains("e-1")).unwrap().1),
    );
    assert_near(&rates, &expected, TOLERANCE, "rate");
    // It scales with the batch, also where that is all rows.
    assert!((softmax.learning_rate(1, 256) - 0.1).abs() < 1e-12);
}
