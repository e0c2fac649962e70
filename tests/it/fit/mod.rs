//! How heads are made, held against worked numbers and an independent script's.

mod engines;
mod golden;
mod icons30;
mod samplers;
mod tasks;

use std::{ops::ControlFlow, path::PathBuf};

use equipoise::{
    dataset::FeatureSet,
    fit::{FitError, FitTask, Fitted, PlainEngine, Recipe, Validation, Watch, fit},
    heads::{Head, HeadFile, HeadKind},
};
use serde_json::Value;

fn json(file: &str) -> Value {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn icons30(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/icons30").join(file)
}

fn icons30_set(split: &str) -> FeatureSet {
    FeatureSet::read(&icons30(&format!("features/{split}.npz")), Some(30), 1 << 30).unwrap()
}

fn joint_head() -> Head {
    HeadFile::parse(&std::fs::read(icons30("heads/joint.safetensors")).unwrap()).unwrap().head
}

fn recipe(method: HeadKind, params: Value) -> Recipe {
    Recipe::new(method, params.as_object().unwrap().clone()).unwrap()
}

/// A fit by the plain engine that nobody watches.
fn fit_plainly(
    recipe: &Recipe,
    features: &FeatureSet,
    validation: Validation<'_>,
    base: Option<&Head>,
) -> Result<Fitted, FitError> {
    let task = FitTask { recipe, features, validation, base, train_counts: None, cache_bytes: 1 << 30 };
    fit(&task, &mut PlainEngine::default(), &mut Watch::new(&mut |_| ControlFlow::Continue(())))
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

fn singles(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|value| value as f32).collect()
}

fn indices(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|value| value as u32).collect()
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(found) - expected).abs() <= tolerance, "{what}[{index}]: {found}, expected {expected}");
    }
}
