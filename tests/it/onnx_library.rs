//! The search for libonnxruntime, in temporary folders: nothing is loaded.

use std::fs;
use std::path::{Path, PathBuf};

use equipoise::onnx::{Found, LibraryError, OLDEST_MINOR_VERSION, SearchPlaces, init};

fn touch(dir: &Path, name: &str) -> PathBuf {
    fs::create_dir_all(dir).expect("a folder");
    fs::write(dir.join(name), "").expect("a file");
    dir.join(name)
}

fn plain_name() -> String {
    format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

#[test]
fn places_are_searched_in_order() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let root = root.path();
    let places = SearchPlaces {
        explicit: None,
        configured_dir: Some(root.join("configured")),
        executable_dir: Some(root.join("a/target/debug")),
        current_dir: Some(root.join("b/here")),
    };
    // Each is preferred to the ones above it.
    let folders = [
        "b/.ort/onnxruntime/capi",
        "b/here/.ort/onnxruntime/capi",
        "a/.ort/onnxruntime/capi",
        "a/target/debug/lib",
        "a/target/debug",
        "configured",
    ];
    assert!(matches!(places.find(), Ok(Found::Nothing { searched }) if searched.len() >= folders.len()));
    for folder in folders {
        let file = touch(&root.join(folder), &plain_name());
        assert_eq!(places.find().expect("nothing explicit is missing"), Found::File(file));
    }
}

#[test]
fn an_explicit_path_is_the_only_one_tried() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let elsewhere = touch(&root.path().join("elsewhere"), &plain_name());
    let configured_dir = elsewhere.parent().map(Path::to_path_buf);
    let find = |explicit: &Path| {
        SearchPlaces {
            explicit: Some(explicit.to_path_buf()),
            configured_dir: configured_dir.clone(),
            ..SearchPlaces::default()
        }
        .find()
    };
    let missing = root.path().join("absent.so");
    let err = find(&missing).expect_err("it is not there");
    assert!(matches!(&err, LibraryError::ExplicitMissing { path } if *path == missing));
    assert!(err.to_string().contains("make ort"), "{err}");
    let other = touch(root.path(), "any-name.so");
    assert_eq!(find(&other).expect("a file"), Found::File(other));
    assert_eq!(find(&root.path().join("elsewhere")).expect("a folder that holds it"), Found::File(elsewhere));
}

#[cfg(target_os = "linux")]
#[test]
fn the_highest_version_is_taken_where_only_versions_are() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let find = || {
        SearchPlaces { configured_dir: Some(root.path().to_path_buf()), ..SearchPlaces::default() }
            .find()
            .expect("nothing explicit")
    };
    for name in [
        "libonnxruntime_providers_shared.so",
        "libonnxruntime.so.2",
        "libonnxruntime.so.1.x",
        "libonnxruntime.sock",
        "onnxruntime.so.1.2",
    ] {
        touch(root.path(), name);
    }
    assert!(matches!(find(), Found::Nothing { .. }));
    for name in ["libonnxruntime.so.1", "libonnxruntime.so.1.9.0", "libonnxruntime.so.1.31.1", "libonnxruntime.so"] {
        let file = touch(root.path(), name);
        assert_eq!(find(), Found::File(file), "{name}");
    }
}

#[test]
fn not_found_says_what_was_searched_and_what_to_do() {
    let err = ort_missing(vec![PathBuf::from("first"), PathBuf::from("second")]);
    let message = err.to_string();
    for part in ["`first`, `second`", "make ort", "ORT_DYLIB_PATH", &plain_name()] {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
    let old = LibraryError::TooOld { path: PathBuf::from("old.so"), version: "1.17.3".to_owned() };
    assert!(old.to_string().contains(&format!("1.17.3, which is too old: 1.{OLDEST_MINOR_VERSION}")), "{old}");
}

fn ort_missing(searched: Vec<PathBuf>) -> LibraryError {
    LibraryError::NotFound { searched, system: "no such file".to_owned() }
}

#[test]
fn the_library_is_loaded_once() {
    let first = init(None).expect("this machine has ONNX Runtime: run `make ort`");
    let second = init(Some(Path::new("/nowhere"))).expect("it is loaded already");
    assert!(std::ptr::eq(first, second));
    println!("ONNX Runtime {} from {}", first.version, first.path.display());
    assert!(first.version.starts_with("1."), "{}", first.version);
}
