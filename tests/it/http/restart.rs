//! What survives a restart, and what a changed model directory does.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::json;

use super::{feature_rows, head_file, head_file_of};
use crate::app::{Setup, TOKEN, TestApp, copy_of_icons30, send};

async fn heads(app: &TestApp) -> serde_json::Value {
    send(app.admin("GET", "heads")).await.expect(200).json()
}

#[tokio::test]
async fn settings_heads_the_default_and_deletions_survive_a_restart() {
    let setup = Setup::new();
    let app = setup.start();
    app.patch("tau", json!({ "tau": 1.25, "bias": "scale", "temperature": 2.5 })).await.expect(200);
    app.put_head("mine", head_file(1, Some(&[5; 30]))).await.expect(201);
    app.put_head("mine", head_file(2, None)).await.expect(201);
    app.derive_head("soft", json!({ "kind": "tau_norm", "base": "mine@2", "tau": 0.3 })).await.expect(201);
    app.put_head("gone", head_file(3, None)).await.expect(201);
    app.delete_head("gone").await.expect(204);
    app.delete_head("ncm").await.expect(204);
    app.activate(json!({ "head": "mine", "version": 1 })).await.expect(200);
    let (before, answer) = (heads(&app).await, app.classify_features("?head=tau,mine,soft", &feature_rows(2)).await);
    app.shutdown();
    for _ in 0..2 {
        let app = setup.start();
        assert_eq!(heads(&app).await, before);
        let again = app.classify_features("?head=tau,mine,soft", &feature_rows(2)).await;
        assert_eq!(again.json()["images"], answer.json()["images"]);
        assert_eq!(app.classify_features("", &feature_rows(1)).await.results(0)[0]["head"], "mine");
        app.classify_features("?head=ncm", &feature_rows(1)).await.problem(404, "head_not_found");
        app.shutdown();
    }
    let app = setup.start();
    assert_eq!(app.put_head("gone", head_file(3, None)).await.expect(201).json()["version"], 2);
    assert_eq!(app.put_head("ncm", head_file(4, None)).await.expect(201).json()["version"], 2);
}

#[tokio::test]
async fn a_setting_is_to_the_last_bit_what_was_sent_also_after_a_restart() {
    // Numbers that a parser which rounds twice gets wrong.
    const SENT: [&str; 3] = ["1.2431526306379115", "0.8414709848078965", "4.440892098500626"];
    let setup = Setup::new();
    for sent in SENT {
        let app = setup.start();
        let body = format!("{{\"tau\": {sent}}}");
        let patch = app.admin("PATCH", "heads/tau").header("content-type", "application/json").body(body);
        assert!(send(patch).await.expect(200).text().contains(sent));
        app.shutdown();
        let app = setup.start();
        let read = send(app.admin("GET", "heads/tau")).await.expect(200).text();
        assert!(read.contains(sent), "{sent}: {read}");
        app.shutdown();
    }
}

#[tokio::test]
async fn a_changed_model_directory_gives_new_versions_and_leaves_the_old_ones() {
    let copy = copy_of_icons30();
    let setup = Setup::new().models(&[copy.path()]);
    let app = setup.start();
    app.patch("tau", json!({ "tau": 0.11 })).await.expect(200);
    app.delete_head("lws").await.expect(204);
    let old = app.classify_features("?head=joint,tau", &feature_rows(1)).await.json()["images"].clone();
    app.shutdown();

    std::fs::write(copy.path().join("heads/joint.safetensors"), head_file(9, None)).unwrap();
    let toml = std::fs::read_to_string(copy.path().join("model.toml")).unwrap();
    std::fs::write(copy.path().join("model.toml"), toml + "[heads.more]\nkind = \"tau_norm\"\nbase = \"crt\"\n")
        .unwrap();
    for _ in 0..2 {
        let app = setup.start();
        let list = heads(&app).await;
        let versions = |head: &str| {
            let head = list["heads"].as_array().unwrap().iter().find(|view| view["head"] == head);
            head.map_or(0, |head| head["versions"].as_array().unwrap().len())
        };
        // The head derived from the changed one changes with it; a deleted one that did not change stays deleted.
        assert_eq!(["joint", "tau", "more", "crt", "lws"].map(versions), [2, 2, 1, 1, 0]);
        assert_eq!(list["default"], json!({ "head": "joint", "version": 2 }));
        let first = app.classify_features("?head=joint@1,tau@1", &feature_rows(1)).await;
        assert_eq!(first.json()["images"], old);
        let second = app.classify_features("?head=tau", &feature_rows(1)).await.results(0)[0].clone();
        assert_eq!((&second["version"], &second["tau"]), (&json!(2), &json!(0.6)));
        app.shutdown();
    }
}

/// What a model directory means by the name of a head is what it declares, and neither what was published beside that nor
/// nothing because that was deleted.
#[tokio::test]
async fn a_model_directory_means_the_heads_that_it_declares() {
    let copy = copy_of_icons30();
    let setup = Setup::new().models(&[copy.path()]);
    let app = setup.start();
    // A head that nothing can be derived from, and one that nobody has activated.
    let ncm = std::fs::read(copy.path().join("heads/ncm.safetensors")).unwrap();
    assert_eq!(app.put_head("joint", ncm).await.expect(201).json()["version"], 2);
    app.delete_head("crt").await.expect(204);
    app.delete_head("lws").await.expect(204);
    app.shutdown();
    let toml = std::fs::read_to_string(copy.path().join("model.toml")).unwrap();
    let write = |toml: &str| std::fs::write(copy.path().join("model.toml"), toml).unwrap();
    let toml = toml.replace("tau = 0.6", "tau = 0.7");
    assert!(toml.contains("tau = 0.7"));
    let more = "[heads.more]\nkind = \"tau_norm\"\nbase = \"crt\"\n";
    write(&format!("{toml}{more}"));
    for _ in 0..2 {
        let app = setup.start();
        let list = heads(&app).await;
        let newest = |head: &str| {
            let view = list["heads"].as_array().unwrap().iter().find(|view| view["head"] == head).unwrap();
            view["versions"].as_array().unwrap().last().unwrap().clone()
        };
        let (tau, more) = (newest("tau"), newest("more"));
        assert_eq!((&tau["version"], &tau["base"]), (&json!(2), &json!({ "head": "joint", "version": 1 })));
        assert_eq!((&more["version"], &more["base"]), (&json!(1), &json!({ "head": "crt", "version": 2 })));
        app.classify_features("?head=tau@1,tau@2,more,crt@2", &feature_rows(1)).await.expect(200);
        app.shutdown();
    }
    // A default that was deleted is published again, and the file of the default gives the default.
    write(&format!("{}{more}", toml.replace("default = \"joint\"", "default = \"lws\"")));
    let app = setup.start();
    assert_eq!(heads(&app).await["default"], json!({ "head": "lws", "version": 2 }));
    app.activate(json!({ "head": "joint", "version": 1 })).await.expect(200);
    app.shutdown();
    std::fs::write(copy.path().join("heads/joint.safetensors"), head_file(9, None)).unwrap();
    let app = setup.start();
    assert_eq!(heads(&app).await["default"], json!({ "head": "joint", "version": 3 }));
    // What was published beside it and activated stays the default.
    app.put_head("joint", head_file(8, None)).await.expect(201);
    app.activate(json!({ "head": "joint", "version": 4 })).await.expect(200);
    app.shutdown();
    std::fs::write(copy.path().join("heads/joint.safetensors"), head_file(7, None)).unwrap();
    let app = setup.start();
    assert_eq!(heads(&app).await["default"], json!({ "head": "joint", "version": 4 }));
}

#[tokio::test]
async fn a_model_that_has_become_another_is_told_the_ways_out() {
    let copy = copy_of_icons30();
    let setup = Setup::new().models(&[copy.path()]);
    setup.start().shutdown();
    // One class more, with a head that fits it.
    let labels = std::fs::read_to_string(copy.path().join("labels.txt")).unwrap();
    std::fs::write(copy.path().join("labels.txt"), labels.trim_end().to_owned() + "\nmore\n").unwrap();
    std::fs::write(copy.path().join("heads/joint.safetensors"), head_file_of(31, 96, 1, None)).unwrap();
    let toml = std::fs::read_to_string(copy.path().join("model.toml")).unwrap();
    let (before, _) = toml.split_once("[heads.crt]").unwrap();
    std::fs::write(copy.path().join("model.toml"), before.replace("train_counts = \"train_counts.csv\"\n", ""))
        .unwrap();
    let error = load_error(&setup);
    let generations = setup.state.path().join("models/icons30/generations");
    assert!(error.contains("30 classes") && error.contains("another name in model.toml"), "{error}");
    assert!(error.contains(&format!("move {} away: ", generations.display())), "{error}");
    std::fs::remove_dir_all(generations).unwrap();
    setup.start().shutdown();
}

#[tokio::test]
async fn a_setting_that_cannot_be_is_told_of_the_version_that_would_have_it() {
    let copy = copy_of_icons30();
    let setup = Setup::new().models(&[copy.path()]);
    setup.start().shutdown();
    let toml = std::fs::read_to_string(copy.path().join("model.toml")).unwrap();
    std::fs::write(copy.path().join("model.toml"), toml.replace("[heads.crt]", "[heads.crt]\ntau = 0.5")).unwrap();
    let error = load_error(&setup);
    assert!(error.contains("head `crt` version 2: "), "{error}");
}

/// The only file of a folder of the state directory whose content is `bytes`, or the newest by name.
pub(super) fn file_of(setup: &Setup, folder: &str, content: Option<&[u8]>) -> PathBuf {
    let folder = setup.state.path().join("models/icons30").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|path| content.is_none_or(|content| std::fs::read(path).unwrap() == content));
    files.pop().unwrap()
}

#[track_caller]
pub(super) fn load_error(setup: &Setup) -> String {
    setup.server().unwrap().load().unwrap_err().to_string()
}

#[tokio::test]
async fn publishing_the_same_head_again_mends_its_damaged_file() {
    let setup = Setup::new();
    let app = setup.start();
    app.put_head("mine", head_file(1, None)).await.expect(201);
    std::fs::write(file_of(&setup, "blobs", Some(&head_file(1, None))), b"damaged").unwrap();
    app.put_head("mine", head_file(1, None)).await.expect(201);
    app.shutdown();
    setup.start().shutdown();
}

#[tokio::test]
async fn what_cannot_be_written_down_is_500_and_changes_nothing() {
    let setup = Setup::new();
    let app = setup.start();
    let before = heads(&app).await;
    // A folder where the next manifest is to be: also root cannot write there.
    let next = file_of(&setup, "generations", None);
    let number: u64 = next.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let in_the_way = next.with_file_name(format!("{:011}.json", number + 1));
    std::fs::create_dir(&in_the_way).unwrap();
    let answer = app.patch("tau", json!({ "tau": 0.1 })).await;
    let detail = answer.problem(500, "state_not_written");
    assert!(!detail.contains("generations"), "{detail}");
    app.activate(json!({ "head": "crt" })).await.problem(500, "state_not_written");
    assert_eq!(heads(&app).await, before);
    std::fs::remove_dir(&in_the_way).unwrap();
    app.patch("tau", json!({ "tau": 0.1 })).await.expect(200);
}

#[tokio::test]
async fn the_token_that_the_server_makes_is_its_owners_alone_and_kept() {
    let setup = Setup::new().own_token();
    let file = setup.state.path().join("admin-token");
    let app = setup.start();
    let token = std::fs::read_to_string(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(token.trim().len() >= 32);
    let path = "/admin/v1/models/icons30/heads";
    send(app.request("GET", path).bearer_auth(token.trim())).await.expect(200);
    send(app.request("GET", path).bearer_auth(TOKEN)).await.problem(403, "forbidden");
    app.shutdown();
    let app = setup.start();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), token);
    send(app.request("GET", path).bearer_auth(token.trim())).await.expect(200);
    app.shutdown();
    let other = Setup::new().own_token();
    other.server().unwrap();
    assert_ne!(std::fs::read_to_string(other.state.path().join("admin-token")).unwrap(), token);
}

#[tokio::test]
async fn a_state_directory_has_one_server() {
    let setup = Setup::new();
    let app = setup.start();
    let error = setup.server().err().unwrap().to_string();
    assert!(error.contains(setup.state.path().to_str().unwrap()) && error.contains("in use"), "{error}");
    app.shutdown();
    setup.start().shutdown();
}

#[tokio::test]
async fn two_models_of_one_name_are_refused() {
    let copy = copy_of_icons30();
    let setup = Setup::new().models(&[&crate::app::icons30(), copy.path()]);
    assert!(load_error(&setup).contains("icons30"));
}
