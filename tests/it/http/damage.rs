//! State directories that are not what they were, and those of earlier versions.

use std::path::{Path, PathBuf};

use equipoise::heads::Digest;
use serde_json::json;

use super::{
    feature_rows, head_file,
    history::{audit, roll_back},
    restart::{file_of, load_error},
};
use crate::app::{Setup, TestApp, copy_of_icons30, root, send};

const DAMAGED: &str = "equipoise_state_damaged_files{model=\"icons30\"}";
const GENERATION: &str = "equipoise_state_generation{model=\"icons30\"}";
const FORMAT: &str = "equipoise-manifest/3";

async fn tau(app: &TestApp) -> f64 {
    send(app.admin("GET", "heads/tau")).await.expect(200).json()["settings"]["tau"].as_f64().unwrap()
}

#[tokio::test]
async fn the_last_generation_that_is_whole_serves() {
    let setup = Setup::new();
    let app = setup.start();
    app.patch("tau", json!({ "tau": 0.25 })).await.expect(200);
    app.put_head("mine", head_file(1, None)).await.expect(201);
    assert_eq!(app.metrics().await.get(GENERATION), 3.0);
    assert_eq!(app.metrics().await.get(DAMAGED), 0.0);
    app.shutdown();
    let blob = file_of(&setup, "blobs", Some(&head_file(1, None)));
    let manifest = file_of(&setup, "generations", None);
    for path in [blob, manifest] {
        let good = std::fs::read(&path).unwrap();
        let altered = |from: usize| {
            let mut altered = good.clone();
            altered[from] ^= 0x01;
            altered
        };
        for bad in [good[..good.len() / 2].to_vec(), Vec::new(), altered(good.len() / 2), altered(good.len() - 9)] {
            std::fs::write(&path, bad).unwrap();
            let app = setup.start();
            let samples = app.metrics().await;
            assert_eq!((samples.get(DAMAGED), samples.get(GENERATION)), (1.0, 2.0));
            assert_eq!(tau(&app).await, 0.25);
            app.classify_features("?head=mine", &feature_rows(1)).await.problem(404, "head_not_found");
            app.shutdown();
        }
        std::fs::write(&path, good).unwrap();
    }
    let app = setup.start();
    app.classify_features("?head=mine", &feature_rows(1)).await.expect(200);
    assert_eq!(app.metrics().await.get(DAMAGED), 0.0);
    app.shutdown();

    // It goes on after what is damaged, which stays where it is.
    let newest = file_of(&setup, "generations", None);
    std::fs::write(&newest, b"damaged").unwrap();
    let app = setup.start();
    let patched = app.patch("tau", json!({ "tau": 0.5 })).await.expect(200);
    assert_eq!(patched.header("etag"), Some("\"4\""));
    let entries = audit(&app, "").await["entries"].clone();
    let generations: Vec<_> = entries.as_array().unwrap().iter().map(|entry| entry["generation"].clone()).collect();
    assert_eq!(generations, [4, 2, 1]);
    assert_eq!(entries[0]["parent"], 2);
    app.shutdown();
    let app = setup.start();
    let samples = app.metrics().await;
    // It is there still, and still told.
    assert_eq!((tau(&app).await, samples.get(GENERATION), samples.get(DAMAGED)), (0.5, 4.0, 1.0));
    assert_eq!(std::fs::read(&newest).unwrap(), b"damaged");
}

#[tokio::test]
async fn what_cannot_be_read_is_not_taken_for_damage() {
    let setup = Setup::new();
    let app = setup.start();
    app.put_head("mine", head_file(1, None)).await.expect(201);
    app.shutdown();
    let (blob, away) = (file_of(&setup, "blobs", Some(&head_file(1, None))), setup.state.path().join("away"));
    std::fs::rename(&blob, &away).unwrap();
    // A link to itself: also root cannot read it.
    std::os::unix::fs::symlink(&blob, &blob).unwrap();
    let error = load_error(&setup);
    assert!(error.contains(blob.to_str().unwrap()) && error.contains("symbolic links"), "{error}");
    std::fs::rename(&away, &blob).unwrap();
    let app = setup.start();
    let samples = app.metrics().await;
    assert_eq!((samples.get(DAMAGED), samples.get(GENERATION)), (0.0, 2.0));
    app.classify_features("?head=mine", &feature_rows(1)).await.expect(200);
}

#[tokio::test]
async fn what_cannot_be_read_and_is_not_served_is_counted_and_keeps_nobody_from_starting() {
    let setup = Setup::new();
    let app = setup.start();
    app.put_head("mine", head_file(1, None)).await.expect(201);
    app.delete_head("mine").await.expect(204);
    app.shutdown();
    let blob = file_of(&setup, "blobs", Some(&head_file(1, None)));
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(&blob, &blob).unwrap();
    let app = setup.start();
    let samples = app.metrics().await;
    assert_eq!((samples.get(DAMAGED), samples.get(GENERATION)), (1.0, 3.0));
}

#[tokio::test]
async fn versions_that_a_missing_generation_gave_are_not_given_again() {
    let setup = Setup::new();
    let app = setup.start();
    for (head, seed, version) in [("mine", 1, 1), ("crt", 2, 2), ("crt", 3, 3), ("crt", 4, 4)] {
        assert_eq!(app.put_head(head, head_file(seed, None)).await.expect(201).json()["version"], version);
    }
    app.shutdown();
    let folder = setup.state.path().join("models/icons30/generations");
    std::fs::remove_file(folder.join("00000000003.json")).unwrap();
    std::fs::remove_file(folder.join("00000000004.json")).unwrap();
    std::fs::write(folder.join("00000000005.json"), b"damaged").unwrap();
    let app = setup.start();
    assert_eq!(app.metrics().await.get(GENERATION), 2.0);
    assert_eq!(app.put_head("crt", head_file(5, None)).await.expect(201).json()["version"], 5);
}

#[tokio::test]
async fn versions_of_generations_that_are_passed_over_are_not_given_again() {
    let setup = Setup::new();
    let app = setup.start();
    for (head, seed, version) in [("mine", 1, 1), ("mine", 2, 2), ("crt", 3, 2), ("new", 4, 1)] {
        assert_eq!(app.put_head(head, head_file(seed, None)).await.expect(201).json()["version"], version);
    }
    app.shutdown();
    // Only the first of them is whole: the head file of the second is cut short. The last cannot even be read.
    std::fs::write(file_of(&setup, "blobs", Some(&head_file(2, None))), b"cut short").unwrap();
    std::fs::write(file_of(&setup, "generations", None), b"damaged").unwrap();
    let app = setup.start();
    assert_eq!(app.metrics().await.get(GENERATION), 2.0);
    for (head, version) in [("mine", 4), ("crt", 4), ("lws", 3), ("other", 1)] {
        assert_eq!(app.put_head(head, head_file(5, None)).await.expect(201).json()["version"], version);
    }
    let before = send(app.admin("GET", "heads")).await.expect(200).json();
    app.shutdown();
    let app = setup.start();
    assert_eq!(send(app.admin("GET", "heads")).await.expect(200).json(), before);
}

#[tokio::test]
async fn older_files_and_missing_ones_are_found_too() {
    let setup = Setup::new();
    let app = setup.start();
    for tau in 1..=5 {
        app.patch("tau", json!({ "tau": f64::from(tau) / 10.0 })).await.expect(200);
    }
    app.shutdown();
    let folder = setup.state.path().join("models/icons30/generations");
    std::fs::remove_file(folder.join("00000000003.json")).unwrap();
    std::fs::write(folder.join("00000000004.json"), b"{}").unwrap();
    std::fs::remove_file(file_of(&setup, "blobs", None)).unwrap();
    let app = setup.start();
    let samples = app.metrics().await;
    assert_eq!((samples.get(DAMAGED), samples.get(GENERATION)), (3.0, 6.0));
    app.shutdown();
    // The head file was one of the model directory's, and has been written again.
    let app = setup.start();
    assert_eq!(app.metrics().await.get(DAMAGED), 2.0);
}

#[tokio::test]
async fn without_a_whole_generation_nothing_is_served_and_the_file_is_named() {
    let setup = Setup::new();
    setup.start().shutdown();
    let manifest = file_of(&setup, "generations", None);
    let good = std::fs::read(&manifest).unwrap();
    for bad in [&good[..good.len() / 2], b"", b"[]"] {
        std::fs::write(&manifest, bad).unwrap();
        let error = load_error(&setup);
        assert!(error.contains(manifest.to_str().unwrap()) && error.contains("damaged"), "{error}");
    }
}

#[tokio::test]
async fn a_generation_of_a_later_version_is_refused_with_a_word() {
    let setup = Setup::new();
    let app = setup.start();
    app.patch("tau", json!({ "tau": 0.5 })).await.expect(200);
    app.shutdown();
    let manifest = file_of(&setup, "generations", None);
    let text = std::fs::read_to_string(&manifest).unwrap();
    let next = text.replace(FORMAT, "equipoise-manifest/4");
    // What it has more is as it was written, and nothing is damaged.
    let written: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut inner = written["manifest"].clone();
    inner["more"] = json!("of a later version");
    let (inner, format) = (inner.to_string(), &written["format"]);
    let digest = Digest::of(inner.as_bytes()).to_hex();
    let more = format!("{{\"format\": {format}, \"sha256\": \"{digest}\", \"manifest\": {inner}}}");
    for (later, format) in [(next, "equipoise-manifest/4"), (more, FORMAT)] {
        std::fs::write(&manifest, later).unwrap();
        let error = load_error(&setup);
        assert!(error.contains(manifest.to_str().unwrap()), "{error}");
        assert!(error.contains(format) && error.contains("later version of equipoise"), "{error}");
    }
    // An earlier one is read.
    std::fs::write(&manifest, text.replace(FORMAT, "equipoise-manifest/2")).unwrap();
    let app = setup.start();
    assert_eq!((app.metrics().await.get(DAMAGED), tau(&app).await), (0.0, 0.5));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target: PathBuf = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A directory that the first version wrote: tau patched, `mine` published and `soft` derived from it, tau activated and
/// patched, `mine` activated and patched, ncm deleted.
#[tokio::test]
async fn the_state_of_the_first_version_is_read_for_ever() {
    // The model directory of then: of another one the heads would be new versions.
    let model = copy_of_icons30();
    let v1 = root().join("tests/data/state/v1");
    for (head, digest) in [
        ("crt", "3a22a913b172f0b4935a743c01b15dfc3875bb00ebecc25bc400e121d3376886"),
        ("lws", "f983cd822a1d3014242983aa39398421f0b032eaa6bf3f9a73481d78dd1e3289"),
        ("ncm", "309694f084dd2f7fd47c7e5ad67f1c176416b79fe195ac6066021eac73eefde6"),
    ] {
        let file = model.path().join(format!("heads/{head}.safetensors"));
        std::fs::copy(v1.join("models/icons30/blobs").join(digest), file).unwrap();
    }
    let setup = Setup::new().models(&[model.path()]);
    copy(&v1, setup.state.path());
    let app = setup.start();
    let list = send(app.admin("GET", "heads")).await.expect(200).json();
    assert_eq!(list["default"], json!({ "head": "mine", "version": 1 }));
    let heads: Vec<&str> =
        list["heads"].as_array().unwrap().iter().map(|head| head["head"].as_str().unwrap()).collect();
    assert_eq!(heads, ["crt", "joint", "lws", "mine", "soft", "tau"]);
    assert_eq!(list["heads"][3]["settings"]["temperature"], 1.5);
    assert_eq!(list["heads"][4]["settings"]["tau"], 0.3);
    let samples = app.metrics().await;
    assert_eq!((samples.get(DAMAGED), samples.get(GENERATION)), (0.0, 9.0));
    app.classify_features("?head=mine,soft,tau", &feature_rows(2)).await.expect(200);
    // What it did not write down is not known; the defaults are.
    let entries = audit(&app, "").await["entries"].as_array().unwrap().clone();
    assert_eq!(entries.len(), 9);
    assert!(entries.iter().all(|entry| entry["author"].is_null() && entry["time"].is_null()));
    assert_eq!((&entries[0]["generation"], &entries[8]["generation"]), (&json!(9), &json!(1)));
    let back = roll_back(&app).await.expect(200).json();
    assert_eq!((&back["head"], &back["settings"]["tau"]), (&json!("tau"), &json!(0.9)));
    app.shutdown();
    let app = setup.start();
    assert_eq!(roll_back(&app).await.expect(200).json()["head"], "joint");
    roll_back(&app).await.problem(409, "no_previous_default");
    assert_eq!(app.put_head("ncm", head_file(1, None)).await.expect(201).json()["version"], 2);
}
