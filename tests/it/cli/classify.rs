//! `equipoise classify`.

use std::process::Stdio;

use serde_json::Value;

use super::{equipoise, fails, icon, icons30, path, prints, prints_json};

#[test]
fn a_table_names_the_image_the_heads_and_the_classes() {
    let image = icon("bell/00.png");
    let table = prints(&["classify", &image, &icon("car/01.png"), "--head", "joint,tau", "--top-k", "2"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        (lines.len(), lines[0], lines[1], lines[4]),
        (15, image.as_str(), "  joint", "  tau (tau 0.6)"),
        "{table}"
    );
    assert!(lines[2].starts_with("    bell ") && lines[2].ends_with(" %  medium"), "{table}");
    assert_eq!((lines[7], lines[8]), ("", icon("car/01.png").as_str()), "{table}");
    let columns: Vec<Option<usize>> = [2, 3, 5, 6].map(|line: usize| lines[line].find('%')).to_vec();
    assert!(columns[0].is_some() && columns.iter().all(|column| *column == columns[0]), "{table}");
}

#[test]
fn json_is_what_the_api_answers() {
    let images = [icon("bell/00.png"), icon("printer/01.png")];
    let answer = prints_json(&[
        "classify",
        &images[0],
        &images[1],
        "--json",
        "--head",
        "joint,tau@1",
        "--tau",
        "1.5",
        "--top-k",
        "3",
    ]);
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&answer), "images model timing_ms");
    assert_eq!(keys(&answer["timing_ms"]), "backbone head preprocess queue total");
    assert_eq!(answer["model"], "icons30");
    assert_eq!(answer["images"].as_array().map(Vec::len), Some(2));
    for image in answer["images"].as_array().expect("a list") {
        assert_eq!(keys(image), "results");
        let (joint, tau) = (&image["results"][0], &image["results"][1]);
        assert_eq!(
            (keys(joint), keys(tau)),
            ("head kind predictions version".into(), "head kind predictions tau version".into())
        );
        assert_eq!((&joint["head"], &tau["head"], &tau["kind"]), (&"joint".into(), &"tau".into(), &"tau_norm".into()));
        assert_eq!((&tau["tau"], &tau["version"]), (&1.5.into(), &1.into()));
        let predictions = joint["predictions"].as_array().expect("a list");
        assert_eq!(predictions.len(), 3);
        assert_eq!(keys(&predictions[0]), "class label logit probability shot");
    }
    assert_eq!(answer["images"][0]["results"][0]["predictions"][0]["label"], "bell");
}

#[test]
fn many_images_are_answered_in_order_and_like_one_alone() {
    let names = ["bell/00.png", "car/01.png", "clock/02.png", "home/03.png", "key/04.png"];
    let images: Vec<String> = (0..60).map(|index| icon(names[index % names.len()])).collect();
    let classify = |images: &[String], more: &[&str]| {
        let mut arguments = vec!["classify", "--json"];
        arguments.extend(images.iter().map(String::as_str));
        arguments.extend(more);
        prints_json(&arguments)
    };
    let all = classify(&images, &["--sessions", "1", "--max-batch-size", "2"]);
    assert_eq!(all["images"].as_array().map(Vec::len), Some(60));
    for index in [0, 1, 2, 3, 4, 58] {
        let alone = classify(&images[index..=index], &[]);
        let best = |answer: &Value, index: usize| {
            let best = &answer["images"][index]["results"][0]["predictions"][0];
            (best["class"].clone(), best["logit"].as_f64().expect("a number"))
        };
        let (expected, found) = (best(&alone, 0), best(&all, index));
        assert_eq!(expected.0, found.0, "image {index}");
        assert!((expected.1 - found.1).abs() < 1e-4, "image {index}: {expected:?} and {found:?}");
    }
}

#[test]
fn what_cannot_be_answered_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bad = path(&folder.path().join("bad.png"));
    std::fs::write(&bad, "no image").expect("a file");
    let good = icon("bell/00.png");
    fails(&["classify", &bad], &["bad.png: unknown image format"]);
    fails(&["classify", "--json", &good, &bad], &["bad.png: unknown image format"]);
    fails(&["classify", &good, "absent.png"], &["absent.png: No such file"]);
    fails(&["classify", &path(folder.path())], &["it is a folder"]);
    fails(&["classify", &good, "--head", "nope"], &["there is no head `nope`", "crt, joint, lws, ncm, tau"]);
    fails(&["classify", &good, "--head", "joint,joint"], &["names `joint` version 1 twice"]);
    fails(&["classify", &good, "--head", "joint,"], &["empty name"]);
    fails(&["classify", &good, "--tau", "1"], &["`tau` applies to none of the heads"]);
    fails(&["classify", &good, "--model", &path(folder.path())], &["model directory", "model.toml: No such file"]);
    fails(&["classify", &good, "--max-image-pixels", "2000"], &["bell/00.png: the image has", "more than 2000 pixels"]);
}

#[test]
fn a_wrong_model_toml_is_one_line_with_the_key_and_its_place() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let toml = std::fs::read_to_string(icons30().join("model.toml")).expect("it ships");
    std::fs::write(folder.path().join("model.toml"), toml.replace("resize =", "resise =")).expect("a file");
    fails(&["classify", &icon("bell/00.png"), "--model", &path(folder.path())], &["model.toml", "line 5", "resise"]);
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let images: Vec<String> = (0..40).map(|index| icon(&format!("bell/{:02}.png", index % 10))).collect();
    let mut arguments = vec!["classify"];
    arguments.extend(images.iter().map(String::as_str));
    let mut child =
        equipoise(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", super::text(&output.stderr));
}
