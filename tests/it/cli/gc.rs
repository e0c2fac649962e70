//! `equipoise gc`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{equipoise, fails, path, prints, text};
use crate::{
    app::{Setup, send},
    http::{head_file, history::audit},
    shared::Store,
};

fn files(state: &Path, folder: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(state.join("models/icons30").join(folder)) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn old_generations_and_unnamed_head_files_go_and_the_audit_stays() {
    let setup = Setup::new();
    let state = setup.state.path().to_owned();
    let gc = |flags: &[&str]| prints(&[&["gc", "--state-dir", &path(&state)], flags].concat());
    let app = setup.start();
    app.put_head("mine", head_file(1, None)).await.expect(201);
    app.put_head("mine", head_file(2, None)).await.expect(201);
    for tau in 1..=9 {
        app.patch("tau", json!({ "tau": f64::from(tau) / 10.0 })).await.expect(200);
    }
    send(app.admin("DELETE", "heads/mine?version=1")).await.expect(204);
    let whole = audit(&app, "").await;
    // While a server has it nothing is removed, and it may be looked at.
    fails(&["gc", "--state-dir", &path(&state)], &["in use by another equipoise server"]);
    let would = gc(&["--dry-run", "--keep-generations", "3"]);
    assert!(would.contains("icons30: 10 files would be removed"), "{would}");
    let mut twin = equipoise(&["gc", "--state-dir", &path(&state), "--keep-generations", "3"]);
    assert_eq!(text(&twin.env("EQUIPOISE_DRY_RUN", "1").output().unwrap().stdout), would);
    app.shutdown();
    assert_eq!(files(&state, "blobs").len(), 6);
    assert_eq!(files(&state, "generations").len(), 13);
    // All are kept that any of the kept ones names.
    assert!(gc(&[]).contains("icons30: 0 files removed (0 bytes); 13 generations and 6 head files kept"));

    let told = gc(&["--keep-generations", "1"]);
    let blob = equipoise::heads::Digest::of(&head_file(1, None)).to_hex();
    assert!(told.contains(&blob) && told.contains("00000000012.json") && !told.contains("00000000013.json"), "{told}");
    assert!(told.contains("icons30: 13 files removed"), "{told}");
    assert_eq!((files(&state, "blobs").len(), files(&state, "generations").len()), (5, 1));
    assert!(gc(&["--keep-generations", "1"]).contains("icons30: 0 files removed"));
    let app = setup.start();
    assert_eq!(audit(&app, "").await, whole);
    assert_eq!(app.metrics().await.get("equipoise_state_damaged_files{model=\"icons30\"}"), 0.0);
    let page = audit(&app, "?limit=4").await;
    let rest = audit(&app, &format!("?before={}", page["next"].as_str().unwrap())).await;
    assert_eq!(rest["entries"].as_array().unwrap(), &whole["entries"].as_array().unwrap()[4..]);
    app.patch("tau", json!({ "tau": 1.0 })).await.expect(200);
    app.shutdown();
    gc(&["--keep-generations", "1"]);
    let app = setup.start();
    assert_eq!(audit(&app, "").await["entries"].as_array().unwrap()[1..], whole["entries"].as_array().unwrap()[..]);
}

#[tokio::test]
async fn damaged_files_are_named_and_nothing_is_removed_that_they_may_need() {
    let setup = Setup::new();
    let state = setup.state.path().to_owned();
    let app = setup.start();
    app.put_head("mine", head_file(1, None)).await.expect(201);
    app.delete_head("mine").await.expect(204);
    app.shutdown();
    let newest = files(&state, "generations").pop().unwrap();
    std::fs::write(&newest, "damaged").unwrap();
    let output = equipoise(&["gc", "--state-dir", &path(&state), "--keep-generations", "1"]).output().unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success());
    assert!(stderr.contains(newest.to_str().unwrap()) && stderr.contains("no head files were removed"), "{stderr}");
    assert!(stdout.contains("icons30: 1 file removed"), "{stdout}");
    assert_eq!(files(&state, "blobs").len(), 5);
    fails(&["gc", "--state-dir", &path(&state.join("none"))], &["none", "No such file"]);
}

#[test]
fn a_store_that_is_not_there_is_not_made() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = folder.path().join("typo/store");
    for flags in [&["--dry-run"][..], &[]] {
        let url = format!("file://{}", path(&store));
        fails(&[&["gc", "--state", &url], flags].concat(), &[&path(&store), "No such file"]);
        assert!(!folder.path().join("typo").exists());
    }
}

#[test]
fn a_directory_that_is_named_is_meant_whatever_the_environment_has() {
    let state = tempfile::TempDir::new().unwrap();
    std::fs::create_dir_all(state.path().join("models/named")).unwrap();
    let outcome = |command: &mut std::process::Command| {
        let output = command.env("EQUIPOISE_STATE", "file:///nowhere/at/all").output().unwrap();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let (is_well, told) = outcome(&mut equipoise(&["gc", "--state-dir", &path(state.path())]));
    assert!(is_well && told.contains("named: 0 files removed"), "{told}");
    // A server with both has its generations in the store.
    let (is_well, told) = outcome(equipoise(&["gc"]).env("EQUIPOISE_STATE_DIR", state.path()));
    assert!(!is_well && told.contains("/nowhere/at/all"), "{told}");
}

#[tokio::test]
async fn a_store_in_use_keeps_what_is_young() {
    let store = Store::new();
    let app = store.server(std::time::Duration::from_secs(3600)).start();
    app.put_head("mine", head_file(1, None)).await.expect(201);
    app.delete_head("mine").await.expect(204);
    let told = prints(&["gc", "--state", &store.url, "--keep-generations", "1"]);
    assert!(told.contains("icons30: 0 files removed (0 bytes); 3 generations"), "{told}");
    let Some(folder) = &store.folder else { return };
    let two_hours_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for file in files(folder.path(), "generations").iter().chain(&files(folder.path(), "blobs")) {
        std::fs::File::options().write(true).open(file).unwrap().set_modified(two_hours_ago).unwrap();
    }
    let told = prints(&["gc", "--state", &store.url, "--keep-generations", "1"]);
    assert!(told.contains("icons30: 3 files removed"), "{told}");
    // The server goes on, and the same head again is written again.
    app.put_head("mine", head_file(1, None)).await.expect(201);
    let second = store.server(std::time::Duration::from_secs(3600)).start();
    second.classify_features("?head=mine", &crate::http::feature_rows(1)).await.expect(200);
    assert_eq!(audit(&second, "").await["entries"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn what_a_killed_server_was_writing_goes_once_it_is_old() {
    let store = Store::new();
    let Some(folder) = &store.folder else { return };
    let app = store.server(std::time::Duration::from_secs(3600)).start();
    app.put_head("mine", head_file(1, None)).await.expect(201);
    let model = folder.path().join("models/icons30");
    let staged = ["generations/00000000003.json#1", "blobs/00ff#2"].map(|name| model.join(name));
    let gc = |flags: &[&str]| prints(&[&["gc", "--state", &store.url], flags].concat());
    for file in &staged {
        std::fs::write(file, "half of wha").unwrap();
    }
    // Another server may be writing it.
    assert!(gc(&[]).contains("icons30: 0 files removed"));
    let two_hours_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    for file in &staged {
        std::fs::File::options().write(true).open(file).unwrap().set_modified(two_hours_ago).unwrap();
    }
    assert!(gc(&["--dry-run"]).contains("icons30: 2 files would be removed (22 bytes)"));
    assert!(staged.iter().all(|file| file.exists()));
    let told = gc(&[]);
    assert!(staged.iter().all(|file| !file.exists() && told.contains(file.to_str().unwrap())), "{told}");
    assert!(told.contains("icons30: 2 files removed (22 bytes); 2 generations"), "{told}");
    app.put_head("mine", head_file(2, None)).await.expect(201);
}
