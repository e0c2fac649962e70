//! `equipoise evaluate`.

use std::{collections::BTreeMap, fs, process::Output};

use equipoise::{
    dataset::NpzWriter,
    heads::{FORMAT, TensorView, write_safetensors},
};
use serde_json::{Value, json};

use super::{equipoise, fails, icons30, is_wrong_usage, path, prints, prints_json, text};

fn shipped(name: &str) -> String {
    path(&icons30().join(name))
}

/// A tau-normalised head of the joint one that ships, at tau 0.6.
fn tau_head(folder: &tempfile::TempDir) -> String {
    let output = path(&folder.path().join("tau.safetensors"));
    let (train, joint) = (shipped("features/train.npz"), shipped("heads/joint.safetensors"));
    let fixed = ["--param", "tau=[0.6]", "--param", "bias=drop"];
    prints(
        &[&["fit", "--features", &train, "--method", "tau_norm", "--base", &joint, "-o", &output], &fixed[..]].concat(),
    );
    output
}

#[test]
fn a_table_has_accuracies_calibration_and_confusions() {
    let (test, joint) = (shipped("features/test.npz"), shipped("heads/joint.safetensors"));
    let table = prints(&["evaluate", "--features", &test, "--head", &joint]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], format!("{joint}, kind joint, on {test}"));
    let rows: Vec<&str> = lines[2..8].to_vec();
    let expected = [
        "percent     all  macro   many  medium    few",
        "accuracy  82.59  82.59  92.86   90.91  68.98",
        "top-5     94.26",
    ];
    assert_eq!(rows[..3], expected, "{table}");
    assert!(rows[3].starts_with("ECE        6.54"), "{table}");
    assert_eq!(
        rows[4..],
        ["classes      30             7      11     12", "samples     540           126     198    216"]
    );
    assert_eq!((lines[9], lines[10]), ("most often confused", "class  taken for  times  of"), "{table}");
    assert_eq!(lines.len(), 21, "{table}");
    assert_eq!(prints(&["evaluate", "--features", &test, "--head", &joint]), table);
}

#[test]
fn json_is_the_report_and_with_tau_also_a_curve() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (test, head) = (shipped("features/test.npz"), tau_head(&folder));
    let evaluate =
        |more: &[&str]| prints_json(&[&["evaluate", "--features", &test, "--head", &head, "--json"], more].concat());
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ");
    let report = evaluate(&[]);
    let words = "ece ece_by_shot few macro many medium micro n per_class settings top5 warnings";
    assert_eq!(keys(&report), format!("confusions {words}"));
    assert_eq!(report["settings"], json!({ "tau": 0.6, "bias": "drop", "temperature": 1.0 }));
    assert_eq!((report["n"].as_u64(), report["per_class"].as_array().map(Vec::len)), (Some(540), Some(30)));

    let curve = evaluate(&["--tau", "0:2:0.1"]);
    assert_eq!(keys(&curve), format!("confusions curve {words}"));
    let without = |keys: &[&str], answer: &Value| {
        let mut answer = answer.clone();
        answer.as_object_mut().expect("an object").retain(|key, _| !keys.contains(&key.as_str()));
        answer
    };
    assert_eq!(without(&["curve"], &curve), report);
    let points = curve["curve"].as_array().expect("a list");
    let taus: Vec<&Value> = points.iter().map(|point| &point["tau"]).collect();
    let expected: Vec<Value> = (0..=20).map(|step| json!(f64::from(step) / 10.0)).collect();
    assert_eq!(taus, expected.iter().collect::<Vec<_>>());
    assert_eq!(keys(&points[6]), "report tau");
    // At the tau that the head has.
    let numbers = without(&["settings", "warnings"], &report);
    assert_eq!(points[6]["report"], numbers);
    assert_eq!(evaluate(&["--tau", "0.6"])["curve"], json!([{ "tau": 0.6, "report": numbers }]));
    let list = evaluate(&["--tau", "2,0.6"]);
    assert_eq!(without(&["curve"], &list), report);
    assert_eq!(list["curve"][1]["report"], numbers);
    assert_eq!(list["curve"][0], points[20]);
}

#[test]
fn a_curve_has_a_row_for_each_tau_and_the_best_is_marked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (test, head) = (shipped("features/test.npz"), tau_head(&folder));
    let table = prints(&["evaluate", "--features", &test, "--head", &head, "--tau", "0:1:0.3"]);
    let lines: Vec<&str> = table.lines().collect();
    let expected = [
        "tau    all  macro   many  medium    few  top-5    ECE",
        "0    82.96  82.96  92.86   90.91  69.91  94.26   5.81",
        "0.3  85.00  85.00  92.06   91.41  75.00  94.26   3.15",
        "0.6  86.11  86.11  92.06   90.91  78.24  94.07   7.22  best macro",
        "0.9  86.11  86.11  91.27   90.40  79.17  94.07  15.57",
        "",
        "at tau 0.6",
    ];
    assert_eq!(lines[2..9], expected, "{table}");
    // Below it the report of the best, as without --tau.
    let alone = prints(&["evaluate", "--features", &test, "--head", &head]);
    let report = |table: &str| table.split_once("at tau 0.6\n").map(|(_, report)| report.to_owned());
    assert!(report(&table).is_some() && report(&table) == report(&alone), "{alone}");
}

#[test]
fn features_that_cannot_be_normalised_in_float32_are_named_by_their_row() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = path(&folder.path().join("large.npz"));
    let mut writer = NpzWriter::new(fs::File::create(&file).expect("a file"), 3, 96).expect("a file");
    for value in [1.0, 2.0, 1e19] {
        writer.write_row(&[value; 96]).expect("a row");
    }
    writer.finish(&[0, 1, 2]).expect("written");
    fails(&["evaluate", "--features", &file, "--head", &shipped("heads/ncm.safetensors")], &["row 2", "not finite"]);
}

#[test]
fn training_counts_make_the_shots() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let counts = path(&folder.path().join("counts.csv"));
    let lines: String = (0..30).map(|class| format!("{class},{}\n", if class < 10 { 50 } else { 5 })).collect();
    fs::write(&counts, format!("class,count\n{lines}")).expect("a file");
    let arguments =
        ["evaluate", "--features", &shipped("features/test.npz"), "--head", &shipped("heads/crt.safetensors")];
    let table = prints(&[&arguments[..], &["--train-counts", &counts]].concat());
    assert!(table.contains("classes      30            0      10     20"), "{table}");
    let report = prints_json(&[&arguments[..], &["--train-counts", &counts, "--json"]].concat());
    assert_eq!((&report["many"], &report["ece_by_shot"]["many"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_head_without_counts_has_no_shots_and_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = path(&folder.path().join("h.safetensors"));
    let metadata = [("format", FORMAT), ("kind", "joint"), ("classes", "30"), ("feature_dim", "96")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let weight = vec![0.5; 30 * 96];
    let tensors = BTreeMap::from([("weight".to_owned(), TensorView::F32(&weight, vec![30, 96]))]);
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &metadata, &tensors).expect("written");
    fs::write(&file, bytes).expect("a file");
    let arguments = ["evaluate", "--features", &shipped("features/test.npz"), "--head", &file, "--json"];
    let Output { status, stdout, stderr } = equipoise(&arguments).output().expect("the binary runs");
    assert!(status.success() && text(&stderr).contains("has no training counts: --train-counts"), "{}", text(&stderr));
    let report: Value = serde_json::from_slice(&stdout).expect("JSON");
    assert!(report["warnings"][0].as_str().expect("a warning").contains("has no training counts"), "{report}");
    assert_eq!((&report["few"], &report["macro"]), (&Value::Null, &json!(1.0 / 30.0)));
}

#[test]
fn a_report_of_what_a_head_was_made_from_is_warned_of() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let head = path(&folder.path().join("crt.safetensors"));
    let [train, val, test] = ["train", "val", "test"].map(|split| shipped(&format!("features/{split}.npz")));
    prints(&["fit", "--features", &train, "--validation", &val, "--method", "crt", "-o", &head]);
    let warns = |set: &str| {
        let arguments = ["evaluate", "--features", set, "--head", &head];
        let Output { status, stderr, .. } = equipoise(&arguments).output().expect("the binary runs");
        assert!(status.success());
        text(&stderr)
    };
    assert!(warns(&val).contains("crt.safetensors was chosen on this very set: "), "{}", warns(&val));
    assert!(warns(&train).contains("crt.safetensors was fitted on this very set: "), "{}", warns(&train));
    assert_eq!(warns(&test), "");
}

#[test]
fn what_cannot_be_evaluated_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| path(&folder.path().join(name));
    let (test, joint) = (shipped("features/test.npz"), shipped("heads/joint.safetensors"));
    let small = file("small.safetensors");
    let write = |classes: usize, dim: usize| {
        let metadata = [("format", FORMAT), ("kind", "joint")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut metadata: BTreeMap<String, String> = metadata.into();
        metadata.insert("classes".into(), classes.to_string());
        metadata.insert("feature_dim".into(), dim.to_string());
        let weight = vec![0.5; classes * dim];
        let tensors = BTreeMap::from([("weight".to_owned(), TensorView::F32(&weight, vec![classes, dim]))]);
        let mut bytes = Vec::new();
        write_safetensors(&mut bytes, &metadata, &tensors).expect("written");
        fs::write(&small, bytes).expect("a file");
    };
    fs::write(file("counts.csv"), "class,count\n0,5\n").expect("a file");
    let check = |features: &str, head: &str, more: &[&str], parts: &[&str]| {
        fails(&[&["evaluate", "--features", features, "--head", head], more].concat(), parts);
    };
    write(30, 8);
    check(&test, &small, &[], &["test.npz has 96 features, and head", "small.safetensors takes 8"]);
    write(5, 96);
    check(&test, &small, &[], &["features for head", "small.safetensors: ", "test.npz: the label of row", "5 classes"]);
    check("absent.npz", &joint, &[], &["features for head", "absent.npz: the file cannot be read: No such file"]);
    check(&test, "absent", &[], &["absent: No such file"]);
    check(&test, &test, &[], &["test.npz: not a readable safetensors file"]);
    check(&test, &joint, &["--train-counts", &file("counts.csv")], &["counts.csv: class 1 has no line"]);
}

#[test]
fn wrong_usage_is_refused() {
    let (test, joint) = (shipped("features/test.npz"), shipped("heads/joint.safetensors"));
    let check = |tau: &str, part: &str| {
        is_wrong_usage(&["evaluate", "--features", &test, "--head", &joint, "--tau", tau], part);
    };
    is_wrong_usage(&["evaluate"], "--features <FILE> --head <FILE>");
    check("1", "`tau` is not adjustable for a head of kind joint");
    check("5.1", "tau is a number from 0 to 5");
    check("0:6:1", "tau is a number from 0 to 5");
    check("0:1", "a range is START:STOP:STEP");
    check("1:0:0.1", "a range goes from START up to STOP");
    check("0:5:0.001", "at most 1000 are taken");
    check("a", "tau is a number from 0 to 5");
}
