//! `equipoise fit`.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Output, Stdio},
};

use equipoise::{
    dataset::{FeatureSet, NpzWriter},
    heads::{BiasMode, HeadFile, HeadKind},
};
use serde_json::{Value, json};

use super::{equipoise, fails, icons30, is_wrong_usage, path, prints, prints_json, text};
use crate::app::{Setup, guard};

/// Features of the model that ships.
fn features(split: &str) -> String {
    path(&icons30().join(format!("features/{split}.npz")))
}

/// A head of the model that ships.
fn shipped(head: &str) -> String {
    path(&icons30().join(format!("heads/{head}.safetensors")))
}

/// Writes a small feature file, a row for each label.
fn write_features(file: &Path, dim: usize, labels: &[u32]) -> String {
    let mut writer = NpzWriter::new(fs::File::create(file).expect("a file"), labels.len(), dim).expect("a file");
    for (row, &label) in labels.iter().enumerate() {
        let value = |column: usize| if column == label as usize { 1.0 } else { 0.01 * row as f32 };
        writer.write_row(&(0..dim).map(value).collect::<Vec<f32>>()).expect("a row");
    }
    writer.finish(labels).expect("written");
    path(file)
}

/// The arguments of a fit of icons30, validated on its own validation set.
fn icons_fit<'a>(method: &'a str, sets: &'a [String; 2], output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["fit", "--features", &sets[0], "--validation", &sets[1], "--method", method, "-o", output];
    arguments.extend(more);
    arguments
}

fn sets() -> [String; 2] {
    ["train", "val"].map(features)
}

/// Accuracies of a report, in the order of the golden file.
fn assert_accuracies(report: &Value, expected: [f64; 5]) {
    for (key, expected) in ["micro", "macro", "many", "medium", "few"].into_iter().zip(expected) {
        let found = report[key].as_f64().expect("a share");
        assert!((found - expected).abs() < 1e-8, "{key}: {found}, and {expected} is expected");
    }
}

#[test]
fn a_table_says_what_was_made_chosen_and_how_good_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sets, output, joint) = (sets(), path(&folder.path().join("tau.safetensors")), shipped("joint"));
    let table = prints(&icons_fit("tau_norm", &sets, &output, &["--base", &joint]));
    let expected = format!(
        "{output}: head of kind tau_norm
  classes         30
  feature dim     96
  base            {joint}
  validated on    {}, 300 rows
  chosen on that  tau 0.6, bias drop

percent     all  macro   many  medium    few
accuracy  83.00  83.00  84.29   86.36  79.17
top-5     92.33
ECE        7.21         10.15    7.24  12.45
classes      30             7      11     12
samples     300            70     110    120
",
        sets[1]
    );
    assert_eq!(table, expected);
    let head = HeadFile::parse(&fs::read(&output).expect("written")).expect("a head").head;
    assert_eq!(
        (head.kind(), head.initial_settings().tau, head.initial_settings().bias),
        (HeadKind::TauNorm, Some(0.6), Some(BiasMode::Drop))
    );
    // Nothing but the head is left behind.
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn an_epoch_is_chosen_on_rows_that_were_held_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = path(&folder.path().join("crt.safetensors"));
    let arguments = ["fit", "--features", &features("train"), "--holdout", "0.2", "--method", "crt", "-o", &output];
    let Output { status, stdout, stderr } = equipoise(&arguments).output().expect("the binary runs");
    let (table, told) = (text(&stdout), text(&stderr));
    assert!(status.success(), "{told}");
    for part in ["train.npz, 1622 rows", "406 rows of", "0.2 of each class held out", "chosen on that  epoch "] {
        assert!(table.contains(part), "no `{part}` in: {table}");
    }
    // A line for each tenth, and the warning of the fit.
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("10 %, epoch 1 of 10, loss "), "{told}");
    assert!(lines[9].starts_with("100 %, epoch 10 of 10, loss "), "{told}");
    assert!(lines.len() == 11 && lines[10].starts_with("warning: SGD took"), "{told}");
}

#[test]
fn json_is_one_line_with_the_report_the_times_and_the_warnings() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sets, output) = (sets(), path(&folder.path().join("h.safetensors")));
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ");
    let printed = prints(&icons_fit("crt", &sets, &output, &["--json"]));
    assert_eq!((printed.lines().count(), printed.ends_with('\n')), (1, true));
    let answer: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(
        (keys(&answer), keys(&answer["timing_s"])),
        ("report timing_s warnings".into(), "fit load write".into())
    );
    assert_eq!((&answer["report"]["n"], &answer["report"]["chosen_on_this_set"]), (&300.into(), &json!(["epoch"])));
    assert!(answer["warnings"][0].as_str().is_some_and(|warning| warning.contains("SGD took")), "{answer}");

    let without = ["fit", "--features", &sets[0], "--method", "ncm", "-o", &output, "--json"];
    let answer = prints_json(&without);
    assert_eq!((&answer["report"], &answer["warnings"]), (&Value::Null, &json!([])));
}

#[test]
fn an_independent_optimiser_finds_the_same_accuracies() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sets, joint) = (sets(), shipped("joint"));
    let fit = |method: &str, more: &[&str]| {
        let output = path(&folder.path().join(method));
        prints_json(&[&icons_fit(method, &sets, &output, &["--json"])[..], more].concat())["report"].clone()
    };
    let test = |head: &str| {
        let head = path(&folder.path().join(head));
        prints_json(&["evaluate", "--features", &features("test"), "--head", &head, "--json"])
    };
    let [few_val, few_test] = [0.766_666_666_667, 0.759_259_259_259];
    let crt = fit("crt", &["--param", "solver=lbfgs"]);
    assert_accuracies(&crt, [0.81, 0.81, 0.842_857_142_857, 0.836_363_636_364, few_val]);
    let two = 0.851_851_851_852;
    assert_accuracies(&test("crt"), [two, two, 0.928_571_428_571, 0.904_040_404_040, few_test]);
    fit("tau_norm", &["--base", &joint]);
    let tau = test("tau_norm");
    assert_accuracies(
        &tau,
        [0.861_111_111_111, 0.861_111_111_111, 0.920_634_920_635, 0.909_090_909_091, 0.782_407_407_407],
    );
    assert!((tau["top5"].as_f64().expect("a share") - 0.940_740_740_741).abs() < 1e-8, "{tau}");
    assert!((tau["ece"].as_f64().expect("an error") - 0.072_205_537_5).abs() < 1e-5, "{tau}");
    fit("ncm", &["--param", "transform=l2n", "--param", "metric=l2"]);
    let ncm = 0.855_555_555_556;
    assert_accuracies(&test("ncm"), [ncm, ncm, 0.888_888_888_889, 0.909_090_909_091, 0.787_037_037_037]);
}

#[test]
fn the_same_command_writes_the_same_bytes_and_another_seed_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sets, joint) = (sets(), shipped("joint"));
    let bytes = |name: &str, method: &str, more: &[&str]| {
        let output = path(&folder.path().join(name));
        prints(&[&icons_fit(method, &sets, &output, &["--base", &joint])[..], more].concat());
        fs::read(output).expect("written")
    };
    for method in ["joint", "crt", "lws", "ncm", "tau_norm"] {
        let more: &[&str] = if method == "joint" { &["--param", "epochs=3"] } else { &[] };
        assert_eq!(bytes("1", method, more), bytes("2", method, more), "{method}");
    }
    assert_ne!(bytes("1", "crt", &[]), bytes("2", "crt", &["--param", "seed=1"]));
    // The limit changes where scores are kept, and not what comes of them.
    assert_eq!(bytes("1", "lws", &[]), bytes("2", "lws", &["--memory-limit-bytes", "1000"]));
}

#[test]
fn without_a_base_the_labels_of_both_sets_or_the_counts_make_the_classes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name);
    let train = write_features(&file("train.npz"), 4, &[0, 1, 0, 1, 1]);
    let val = write_features(&file("val.npz"), 4, &[0, 2, 1]);
    let output = path(&file("h.safetensors"));
    let classes = |arguments: &[&str]| {
        let answer = prints_json(
            &[&["fit", "--features", &train, "--method", "ncm", "-o", &output, "--json"], arguments].concat(),
        );
        let head = HeadFile::parse(&fs::read(&output).expect("written")).expect("a head").head;
        (head.num_classes(), answer)
    };
    assert_eq!(classes(&[]).0, 2);
    let (n, answer) = classes(&["--validation", &val]);
    assert_eq!(n, 3);
    assert_eq!(answer["warnings"][0], "1 of 3 classes have no sample and are never predicted; the first is class 2");
    assert_eq!((&answer["report"]["few"], &answer["report"]["many"]), (&answer["report"]["macro"], &Value::Null));
    let counts = path(&file("counts.csv"));
    fs::write(&counts, "class,count\n0,200\n1,50\n2,3\n3,1\n").expect("a file");
    let (n, answer) = classes(&["--validation", &val, "--train-counts", &counts]);
    let report = &answer["report"];
    assert_eq!((n, &report["many"], &report["medium"], &report["few"]), (4, &json!(1.0), &json!(1.0), &json!(0.0)));
}

#[test]
fn what_cannot_be_fitted_is_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| path(&folder.path().join(name));
    let train = write_features(&folder.path().join("train.npz"), 4, &[0, 1, 0, 1]);
    let narrow = write_features(&folder.path().join("narrow.npz"), 3, &[0, 1]);
    let single = write_features(&folder.path().join("single.npz"), 4, &[0, 1]);
    let same = write_features(&folder.path().join("same.npz"), 4, &[0, 1, 0, 1]);
    fs::write(file("counts.csv"), "class,count\n0,5\n").expect("a file");
    let (output, joint, icons) = (file("h.safetensors"), shipped("joint"), features("train"));
    let check = |features: &str, method: &str, more: &[&str], parts: &[&str]| {
        fails(&[&["fit", "--features", features, "--method", method, "-o", &output], more].concat(), parts);
        assert!(!Path::new(&output).exists());
    };
    check("absent.npz", "crt", &[], &["absent.npz: the file cannot be read: No such file"]);
    check(&joint, "crt", &[], &["joint.safetensors: neither `features` nor `feats` is there"]);
    check(&train, "crt", &["--validation", &narrow], &["narrow.npz has 3 features", "train.npz has 4 features"]);
    check(&train, "crt", &["--validation", &same], &["same.npz has the same content as", "train.npz"]);
    let offsets = write_features(&folder.path().join("offsets.npz"), 2048, &[0, 15_075_141]);
    for method in ["crt", "ncm"] {
        let words = "a head for 15075142 classes of 2048 features would have 123495563264 bytes";
        check(&offsets, method, &[], &["offsets.npz: ", words, "the largest label makes the number of classes"]);
    }
    let large = file("large.npz");
    let mut writer = NpzWriter::new(fs::File::create(&large).expect("a file"), 2, 4).expect("a file");
    [[0.5; 4], [f32::MAX; 4]].iter().for_each(|row| writer.write_row(row).expect("a row"));
    writer.finish(&[0, 1]).expect("written");
    check(&single, "crt", &["--holdout", "0.1"], &["single.npz: a holdout of 0.1 of each class holds out nothing"]);
    check(&train, "lws", &["--base", &joint], &["train.npz has 4 features", "joint.safetensors takes 96"]);
    check(&train, "lws", &["--base", &train], &["train.npz: not a readable safetensors file"]);
    check(&train, "crt", &["--base", "absent"], &["absent: No such file"]);
    check(
        &train,
        "crt",
        &["--train-counts", &file("counts.csv")],
        &["features for the counts", "counts.csv: ", "train.npz: the label of row 1 is 1, and there are 1 classes"],
    );
    check(&train, "crt", &["--train-counts", &train], &["train.npz"]);
    let ncm = shipped("ncm");
    check(
        &icons,
        "tau_norm",
        &["--base", &ncm, "--param", "tau=[1]", "--param", "bias=drop"],
        &["kind ncm, which has no"],
    );
    check(&train, "crt", &["--device", "cuda:9"], &["cuda"]);
    fails(&["fit", "--features", &train, "--method", "ncm", "-o", &path(folder.path())], &["it is a folder"]);

    // These show first how far they are.
    let ends = |features: &str, method: &str, params: [&str; 2], more: &[&str], part: &str| {
        let arguments = ["fit", "--features", features, "--method", method, "-o", &output];
        let params = ["--param", params[0], "--param", params[1]];
        let arguments = [&arguments[..], &params, more].concat();
        let Output { status, stderr, .. } = equipoise(&arguments).output().expect("the binary runs");
        let last = text(&stderr).lines().last().unwrap_or_default().to_owned();
        assert!(status.code() == Some(1) && last.contains(part), "{last}");
        assert!(!Path::new(&output).exists());
    };
    let diverges = "train.npz: the loss is no longer a finite number";
    ends(&icons, "crt", ["learning_rate=1e6", "weight_decay=1e6"], &[], diverges);
    let not_finite = "large.npz: the logits of row 1 of the validation set are not finite";
    ends(&train, "ncm", ["transform=none", "metric=dot"], &["--validation", &large], not_finite);
}

#[test]
fn wrong_usage_is_refused_before_any_file_is_opened() {
    let check = |method: &str, more: &[&str], part: &str| {
        is_wrong_usage(&[&["fit", "--features", "absent", "--method", method, "-o", "h"], more].concat(), part);
    };
    is_wrong_usage(&["fit"], "--features <FILE> --method <METHOD> --output <FILE>");
    check("crx", &[], "[possible values: joint, crt, lws, ncm, tau_norm]");
    check("crt", &["--param", "epochs"], "a parameter is KEY=VALUE, such as epochs=20");
    check("crt", &["--param", "epoch=3"], "params of method crt: unknown field `epoch`, expected one of `sampler`");
    check("crt", &["--param", "epochs=many"], "`epochs`: invalid type: string \"many\"");
    check("crt", &["--param", "epochs=0"], "`epochs` must be from 1 to 100000, and is 0");
    check("crt", &["--param", "sampler=none"], "`sampler`: unknown variant `none`");
    check("crt", &["--param", "q=1", "--param", "sampler=class_balanced"], "`sampler` and `q` both");
    check("crt", &["--param", "seed=1", "--param", "seed=1"], "`seed` is given twice");
    check("crt", &["--param", "tau=[1]"], "unknown field `tau`");
    check("lws", &["--base", "b", "--param", "init=two"], "`init`: unknown variant `two`");
    check("ncm", &["--param", "metric=l1"], "`metric` must be one of l2, cosine, dot, and is `l1`");
    check("tau_norm", &["--base", "b", "--param", "tau=[6]"], "`tau` must be a list of 1 to 10000 numbers from 0 to 5");
    check("tau_norm", &["--base", "b", "--param", "tau=1"], "`tau`: invalid type");
    check("lws", &[], "--method lws starts from another head: give --base");
    check("tau_norm", &[], "--method tau_norm starts from another head: give --base");
    check("tau_norm", &["--base", "b"], "give --validation or --holdout, or one tau and one bias");
    check("crt", &["--holdout", "1"], "a share is a number above 0 and below 1");
    check("crt", &["--holdout", "NaN"], "a share is a number above 0 and below 1");
    check("crt", &["--holdout", "0.5", "--validation", "v"], "cannot be used with");
    check("crt", &["--memory-limit-bytes", "1G"], "invalid value '1G' for '--memory-limit-bytes <BYTES>'");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let train = write_features(&folder.path().join("train.npz"), 4, &[0, 1]);
    let onto_itself = ["fit", "--features", &train, "--method", "ncm", "-o", &train];
    is_wrong_usage(&onto_itself, "train.npz is read, and would be replaced");
}

#[test]
fn parameters_come_from_the_environment_one_a_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = path(&folder.path().join("h.safetensors"));
    let mut command = equipoise(&["fit"]);
    command.env("EQUIPOISE_FEATURES", features("train")).env("EQUIPOISE_METHOD", "ncm");
    command.env("EQUIPOISE_OUTPUT", &output).env("EQUIPOISE_PARAM", "metric=cosine\ntransform=none");
    let Output { status, stderr, .. } = command.output().expect("the binary runs");
    assert!(status.success(), "{}", text(&stderr));
    let seen = prints_json(&["inspect", &output, "--json"]);
    assert_eq!((&seen["metric"], &seen["provenance"]["method"]), (&"cosine".into(), &"ncm".into()));
    // As it was asked for, though the cosine normalises.
    assert_eq!(seen["transform"], "none");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_it_with_nothing_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sets, output) = (sets(), path(&folder.path().join("h.safetensors")));
    let arguments = icons_fit("crt", &sets, &output, &["--param", "epochs=8000"]);
    let mut child =
        equipoise(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
    stderr.read_line(&mut line).expect("a line");
    assert!(line.starts_with("10 %, epoch 800 of 8000"), "{line}");
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(kill.success());
    assert!(!child.wait().expect("it ends").success());
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[test]
fn extract_fit_and_evaluate_need_no_server() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| path(&folder.path().join(name));
    let (test, head) = (file("test.npz"), file("crt.safetensors"));
    prints(&["extract", &path(&icons30().join("test")), "-o", &test]);
    let fitted = prints_json(&[
        "fit",
        "--features",
        &features("train"),
        "--validation",
        &test,
        "--method",
        "crt",
        "--param",
        "solver=lbfgs",
        "-o",
        &head,
        "--json",
    ]);
    let evaluate = ["evaluate", "--features", &test, "--head", &head, "--json"];
    let Output { status, stdout, stderr } = equipoise(&evaluate).output().expect("the binary runs");
    assert!(status.success(), "{}", text(&stderr));
    let report: Value = serde_json::from_slice(&stdout).expect("JSON");
    let is_of_report = |key: &str| !["settings", "warnings"].contains(&key);
    for (key, value) in report.as_object().expect("an object").iter().filter(|(key, _)| is_of_report(key)) {
        assert_eq!(value, &fitted["report"][key], "{key}");
    }
    assert_accuracies(
        &report,
        [0.851_851_851_852, 0.851_851_851_852, 0.928_571_428_571, 0.904_040_404_040, 0.759_259_259_259],
    );
    // L-BFGS chooses nothing.
    assert_eq!((&report["warnings"], text(&stderr)), (&json!([]), String::new()));
}

#[tokio::test]
async fn what_was_fitted_here_predicts_the_same_on_a_server() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sets, head, joint) = (sets(), path(&folder.path().join("tau.safetensors")), shipped("joint"));
    prints(&icons_fit("tau_norm", &sets, &head, &["--base", &joint]));
    let report = prints_json(&["evaluate", "--features", &features("test"), "--head", &head, "--json"]);

    let app = Setup::new().start();
    app.put_head("fitted", fs::read(&head).expect("written")).await.expect(201);
    let set = FeatureSet::read(Path::new(&features("test")), Some(30), 1 << 30).expect("it ships");
    let rows: Vec<Vec<f32>> = set.features().rows().into_iter().map(|row| row.to_vec()).collect();
    let (mut correct, mut seen) = ([0u32; 30], [0u32; 30]);
    for (rows, labels) in rows.chunks(60).zip(set.labels().chunks(60)) {
        let answer = guard("features", app.classify_features("?head=fitted&top_k=1", rows)).await.expect(200).json();
        for (image, &label) in answer["images"].as_array().expect("a list").iter().zip(labels) {
            let class = &image["results"][0]["predictions"][0]["class"];
            seen[label as usize] += 1;
            correct[label as usize] += u32::from(*class == label);
        }
    }
    let per_class = report["per_class"].as_array().expect("a list");
    assert_eq!(per_class.len(), 30);
    for (class, of_class) in per_class.iter().enumerate() {
        let accuracy = of_class["accuracy"].as_f64().expect("a share");
        assert_eq!((&of_class["class"], &of_class["n"]), (&class.into(), &seen[class].into()));
        assert!((accuracy - f64::from(correct[class]) / f64::from(seen[class])).abs() < 1e-12, "class {class}");
    }
}
