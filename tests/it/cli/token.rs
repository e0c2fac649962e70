//! `equipoise token`.

use super::{equipoise, fails, is_wrong_usage, path, prints, text};

#[test]
fn a_token_is_printed_once_and_its_digest_is_for_the_file() {
    let printed = prints(&["token", "new", "--name", "shop", "--role", "predict"]);
    let (token, block) = printed.split_once("\n\n").unwrap();
    assert!(token.len() > 40 && token.bytes().all(|byte| byte.is_ascii_graphic()), "{token}");
    for part in ["[[token]]", "name = \"shop\"", "role = \"predict\"", "sha256 = \""] {
        assert!(block.contains(part), "no `{part}` in {block}");
    }
    assert!(!block.contains(token));
    assert_ne!(prints(&["token", "new", "--name", "shop", "--role", "predict"]), printed);
}

#[test]
fn with_a_file_the_token_alone_is_printed_and_the_block_appended() {
    let folder = tempfile::tempdir().unwrap();
    let file = path(&folder.path().join("tokens.toml"));
    let new =
        |name: &'static str| ["token", "new", "--name", name, "--role", "operate", "--file", &file].map(str::to_owned);
    for name in ["one", "two"] {
        let arguments = new(name);
        let token = prints(&arguments.each_ref().map(String::as_str));
        assert_eq!(token.lines().count(), 1);
        assert!(!std::fs::read_to_string(&file).unwrap().contains(token.trim()));
    }
    let before = std::fs::read_to_string(&file).unwrap();
    assert_eq!(before.matches("[[token]]").count(), 2);
    fails(&new("one").each_ref().map(String::as_str), &["tokens.toml", "`one`", "two tokens have this name"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    // The environment twins.
    let mut command = equipoise(&["token", "new"]);
    let output = command.env("EQUIPOISE_NAME", "x").env("EQUIPOISE_ROLE", "admin").output().unwrap();
    assert!(text(&output.stdout).contains("role = \"admin\""));
}

#[test]
fn names_and_roles_that_there_cannot_be_are_wrong_usage() {
    is_wrong_usage(&["token", "new", "--name", "a b", "--role", "predict"], "a name has 1 to 64");
    is_wrong_usage(&["token", "new", "--name", "admin", "--role", "predict"], "every server has");
    let folder = tempfile::tempdir().unwrap();
    let file = path(&folder.path().join("tokens.toml"));
    is_wrong_usage(&["token", "new", "--name", "server", "--role", "predict", "--file", &file], "what the audit calls");
    assert!(!std::path::Path::new(&file).exists());
    is_wrong_usage(&["token", "new", "--name", "a", "--role", "root"], "predict, operate or admin");
    is_wrong_usage(&["token", "new", "--role", "predict"], "--name");
    is_wrong_usage(&["token"], "new");
}
