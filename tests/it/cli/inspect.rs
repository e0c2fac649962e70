//! `equipoise inspect`.

use std::collections::BTreeMap;

use equipoise::heads::{FORMAT, TensorView, write_safetensors};
use serde_json::Value;

use super::{equipoise, fails, icons30, path, prints, prints_json, text};

fn shipped(name: &str) -> String {
    path(&icons30().join(name))
}

#[test]
fn a_model_directory_is_told_with_all_its_heads() {
    let table = prints(&["inspect", &path(&icons30())]);
    for part in [
        "model `icons30`",
        "7 many, 11 medium, 12 few shot",
        "head `joint`, the default",
        "tau_norm of joint",
        "32 x 32",
    ] {
        assert!(table.contains(part), "no `{part}` in: {table}");
    }
    let seen = prints_json(&["inspect", &path(&icons30()), "--json"]);
    assert_eq!((&seen["type"], &seen["classes"], &seen["feature_dim"]), (&"model".into(), &30.into(), &96.into()));
    let heads: Vec<&str> =
        seen["heads"].as_array().expect("a list").iter().filter_map(|head| head["head"].as_str()).collect();
    assert_eq!(heads, ["crt", "joint", "lws", "ncm", "tau"]);
    assert_eq!(seen["samples"]["total"], 2028);
    let norms = &seen["heads"][1]["norms"];
    assert!(norms["count_correlation"].as_f64().is_some_and(|correlation| correlation > 0.9), "{norms}");
    assert_eq!(norms["max_label"], "file");
    assert!(seen["heads"][3].get("norms").is_none(), "ncm has no weights to normalise");
}

#[test]
fn head_and_feature_files_need_no_onnx_runtime() {
    let without = |file: &str| {
        let mut command = equipoise(&["inspect", file, "--json"]);
        command.env("ORT_DYLIB_PATH", "/nonexistent").output().expect("the binary runs")
    };
    let seen = |file: &str| -> Value {
        let output = without(&shipped(file));
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let head = seen("heads/joint.safetensors");
    assert_eq!((&head["type"], &head["kind"], &head["shots"]["few"]), (&"head".into(), &"joint".into(), &12.into()));
    assert_eq!((head["provenance"]["seed"].as_str(), head["warnings"].as_array().map(Vec::len)), (Some("0"), Some(0)));
    assert_eq!(head["digest"].as_str().map(str::len), Some(64));
    let ncm = seen("heads/ncm.safetensors");
    assert_eq!((&ncm["metric"], &ncm["transform"]), (&"l2".into(), &"l2n".into()));
    let features = seen("features/train.npz");
    assert_eq!(
        (&features["type"], &features["rows"], &features["classes"]),
        (&"features".into(), &2028.into(), &30.into())
    );
    assert_eq!(
        features["samples"],
        serde_json::json!({"total": 2028, "min": 3, "median": 30.0, "max": 300, "classes_without": 0})
    );
    let directory = without(&path(&icons30()));
    assert_eq!(directory.status.code(), Some(1));
    assert!(text(&directory.stderr).contains("ORT_DYLIB_PATH"), "{}", text(&directory.stderr));
}

#[test]
fn norms_that_are_near_equal_are_warned_of() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = path(&folder.path().join("h.safetensors"));
    let metadata = [("format", FORMAT), ("kind", "joint"), ("classes", "3"), ("feature_dim", "2")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let weight = TensorView::F32(&[1.0, 0.0, 0.0, 1.0, 0.6, 0.8], vec![3, 2]);
    let counts = TensorView::I64(&[9, 5, 0], vec![3]);
    let tensors = BTreeMap::from([("weight".to_owned(), weight), ("train_counts".to_owned(), counts)]);
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &metadata, &tensors).expect("written");
    std::fs::write(&file, bytes).expect("a file");
    let table = prints(&["inspect", &file]);
    assert!(table.contains("tau-norm has nothing to do"), "{table}");
    assert!(table.contains("1 class had no training sample"), "{table}");
}

#[test]
fn what_is_none_of_the_three_is_refused() {
    fails(&["inspect", &shipped("labels.txt")], &["labels.txt: neither a head file nor a feature file"]);
    fails(&["inspect", &shipped("backbone.onnx")], &["backbone.onnx: not a readable safetensors file"]);
    fails(&["inspect", "absent"], &["absent: No such file"]);
    fails(&["inspect", &path(&icons30().join("heads"))], &["model directory", "model.toml: No such file"]);
    fails(
        &["inspect", &shipped("features/val.npz"), "--max-feature-set-bytes", "100"],
        &["val.npz", "the limit is 100"],
    );
}
