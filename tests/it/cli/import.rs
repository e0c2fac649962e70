//! `equipoise import`.

use std::{fs, path::Path};

use super::{equipoise, fails, icon, path, prints, prints_json, root, text};

fn classifier(name: &str) -> String {
    path(&root().join("tests/data/onnx").join(name))
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_is_imported_classifies_and_what_was_assumed_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = path(&folder.path().join("tiny"));
    let said = prints(&["import", &classifier("softmax.onnx"), "-o", &model]);
    for part in [
        "tiny: 5 classes, 6 features",
        "dropped a trailing Softmax",
        "9 random images",
        "class_0 to class_4 (--labels)",
        "ImageNet's (--mean)",
        "ImageNet's (--std)",
        "(--resize)",
        "(--crop)",
        "(--interpolation)",
        "(--train-counts)",
        "(--name)",
    ] {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    assert_eq!(entries(Path::new(&model)), ["backbone.onnx", "heads", "labels.txt", "model.toml"]);
    assert_eq!(entries(folder.path()), ["tiny"]);
    let tau_0 = ["classify", &icon("bell/00.png"), "--model", &model, "--json", "--head", "joint,tau", "--tau", "0"];
    let answer = prints_json(&tau_0);
    let results = &answer["images"][0]["results"];
    assert_eq!((&answer["model"], &results[1]["tau"]), (&"tiny".into(), &0.0.into()));
    // At tau 0 the derived head is the classifier itself, bias included.
    assert_eq!(results[0]["predictions"], results[1]["predictions"]);
    assert_eq!(results[0]["predictions"].as_array().map(Vec::len), Some(5));
}

#[test]
fn what_the_flags_say_is_in_the_directory() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("a file");
        path(&file)
    };
    // As some editors write it: the mark is no part of the first label.
    let labels = file("l.txt", "\u{feff}ant\nbee\ncat\ndog\nelk\n");
    let counts = file("c.csv", "class,count\n0,200\n1,100\n2,50\n3,20\n4,5\n");
    let model = path(&folder.path().join("new/model"));
    let said = prints(&[
        "import",
        &classifier("gemm_transb.onnx"),
        "-o",
        &model,
        "--name",
        "pets",
        "--labels",
        &labels,
        "--train-counts",
        &counts,
        "--resize",
        "10,12",
        "--crop",
        "8,8",
        "--pre-crop",
        "0.875",
        "--interpolation",
        "bicubic",
        "--mean",
        "0.5,0.25,0",
        "--std",
        "1,0.5,0.25",
        "--exif-orientation",
        "apply",
    ]);
    assert!(!said.contains("assumed"), "{said}");
    assert!(fs::read_to_string(Path::new(&model).join("labels.txt")).expect("it is there").starts_with("ant\n"));
    let seen = prints_json(&["inspect", &model, "--json"]);
    assert_eq!(seen["name"], "pets");
    let expected = serde_json::json!({
        "pre_crop": 0.875, "resize": [10, 12], "crop": 8, "interpolation": "bicubic", "mean": [0.5, 0.25, 0.0],
        "std": [1.0, 0.5, 0.25], "exif_orientation": "apply"
    });
    assert_eq!(seen["preprocess"], expected);
    assert_eq!(seen["shots"], serde_json::json!({"many": 1, "medium": 3, "few": 1}));
    assert_eq!(seen["default_head"], "joint");
    let tau = &seen["heads"][1];
    assert_eq!((&tau["head"], &tau["base"]), (&"tau".into(), &"joint".into()));
    assert_eq!(tau["settings"], serde_json::json!({"tau": 1.0, "bias": "scale", "temperature": 1.0}));
    let table = prints(&["classify", &icon("bell/00.png"), "--model", &model]);
    assert!(table.contains("elk") && table.contains("few"), "{table}");
}

#[test]
fn weights_beside_the_classifier_are_found_from_its_own_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in ["external.onnx", "weights.bin"] {
        fs::copy(classifier(file), folder.path().join(file)).expect("a copy");
    }
    let mut command = equipoise(&["import", "external.onnx", "-o", "m"]);
    // From another folder ONNX Runtime may not be found.
    let runtime = root().join(".ort/onnxruntime/capi");
    if std::env::var_os("ORT_DYLIB_PATH").is_none() && runtime.exists() {
        command.env("ORT_DYLIB_PATH", runtime);
    }
    let output = command.current_dir(folder.path()).output().expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(entries(&folder.path().join("m")), ["backbone.onnx", "heads", "labels.txt", "model.toml"]);
}

#[test]
fn only_a_new_or_empty_directory_is_written_unless_forced() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("m");
    fs::create_dir(&model).expect("a folder");
    let import = classifier("gemm_transb.onnx");
    prints(&["import", &import, "-o", &path(&model)]);
    fails(&["import", &import, "-o", &path(&model)], &["m: the directory is not empty", "--force"]);
    fs::write(model.join("notes.txt"), "mine").expect("a file");
    prints(&["import", &classifier("gemm_no_bias.onnx"), "-o", &path(&model), "--force", "--name", "second"]);
    assert_eq!(entries(&model), ["backbone.onnx", "heads", "labels.txt", "model.toml", "notes.txt"]);
    assert_eq!(prints_json(&["inspect", &path(&model), "--json"])["name"], "second");
}

#[test]
fn a_failure_says_why_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let two = path(&folder.path().join("two.txt"));
    fs::write(&two, "a\nb\n").expect("a file");
    let gap = path(&folder.path().join("gap.txt"));
    fs::write(&gap, "a\n\nc\n").expect("a file");
    let model = path(&folder.path().join("m"));
    let check = |file: &str, more: &[&str], parts: &[&str]| {
        let file = classifier(file);
        fails(&[&["import", &file, "-o", &model], more].concat(), parts);
        assert_eq!(entries(folder.path()), ["gap.txt", "two.txt"]);
    };
    check("gemm_transb.onnx", &["--labels", &two], &["two.txt: 2 labels", "5 classes"]);
    check("gemm_transb.onnx", &["--labels", &gap], &["gap.txt: line 2 is empty"]);
    check("gemm_transb.onnx", &["--train-counts", &two], &["two.txt: line 1", "class,count"]);
    check("gemm_transb.onnx", &["--crop", "9"], &["--crop keeps 9 x 9", "8 x 8"]);
    check("gemm_transb.onnx", &["--resize", "6", "--crop", "8"], &["`crop` of 8x8 is larger than"]);
    check("gemm_transb.onnx", &["--mean", "123.7,116.3,103.5"], &["divide those of 0..255 by 255"]);
    check("conv3x3.onnx", &[], &["conv3x3.onnx: node", "1x1"]);
    let vast = folder.path().join("vast.onnx");
    fs::File::create(&vast).and_then(|file| file.set_len(1 << 31)).expect("a file without content");
    fails(&["import", &path(&vast), "-o", &model], &["vast.onnx: 2147483648 bytes", "2 GB"]);
    fs::remove_file(vast).expect("it was there");
    check("absent.onnx", &[], &["absent.onnx: No such file"]);
    check("golden.json", &[], &["golden.json", "not an ONNX model"]);
}
