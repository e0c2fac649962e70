//! The command line, through the built binary: what it prints, where, and its exit codes.

mod classify;
mod evaluate;
mod extract;
mod fit;
mod gc;
mod import;
mod inspect;
mod serve;
mod token;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The model that ships.
fn icons30() -> PathBuf {
    root().join("models/icons30")
}

/// A test image of the model that ships.
fn icon(name: &str) -> String {
    path(&icons30().join("test").join(name))
}

fn path(path: &Path) -> String {
    path.to_str().expect("test paths are text").to_owned()
}

/// The binary, without what the environment may say to it. ONNX Runtime is found from the current folder.
fn equipoise(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
    command.args(arguments).current_dir(root());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"EQUIPOISE_")) {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the output is text")
}

/// What it prints when all goes well.
#[track_caller]
pub(crate) fn prints(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = equipoise(arguments).output().expect("the binary runs");
    assert!(status.success(), "{arguments:?}: {}", text(&stderr));
    text(&stdout)
}

#[track_caller]
pub(crate) fn prints_json(arguments: &[&str]) -> Value {
    serde_json::from_str(&prints(arguments)).expect("it prints one JSON document")
}

/// Fails with code 1, one line on standard error that holds all of `parts`, and nothing on standard output.
#[track_caller]
fn fails(arguments: &[&str], parts: &[&str]) {
    let Output { status, stdout, stderr } = equipoise(arguments).output().expect("the binary runs");
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    assert_eq!((status.code(), stdout.as_str(), stderr.lines().count()), (Some(1), "", 1), "{arguments:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{arguments:?}: no `{part}` in: {stderr}");
    }
}

/// Is refused with code 2 and a word about the flag.
#[track_caller]
fn is_wrong_usage(arguments: &[&str], part: &str) {
    let Output { status, stdout, stderr } = equipoise(arguments).output().expect("the binary runs");
    assert_eq!((status.code(), stdout.len()), (Some(2), 0), "{arguments:?}");
    // Long arguments wrap its own lines.
    let words = text(&stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(part), "{arguments:?}: no `{part}` in: {words}");
}

#[test]
fn every_flag_has_a_twin_in_the_environment_and_a_word_about_it() {
    for command in ["serve", "classify", "extract", "fit", "evaluate", "import", "inspect", "gc"] {
        let help = prints(&[command, "--help"]);
        let packed: String = help.split_whitespace().collect();
        let flags = help.lines().filter_map(|line| {
            let line = line.trim_start();
            let option = if line.starts_with('-') { line.split_once("--")?.1 } else { return None };
            option.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next()
        });
        let flags: Vec<&str> = flags.filter(|flag| *flag != "help").collect();
        assert!(flags.len() > 3, "{command}: {flags:?}");
        for flag in flags {
            let twin = flag.to_uppercase().replace('-', "_");
            assert!(packed.contains(&format!("[env:EQUIPOISE_{twin}=]")), "{command}: --{flag} has no twin");
        }
    }
}

#[test]
fn wrong_usage_is_refused_before_any_work() {
    is_wrong_usage(&[], "Usage");
    is_wrong_usage(&["nonsense"], "nonsense");
    is_wrong_usage(&["classify"], "IMAGE");
    is_wrong_usage(&["classify", "a.png", "--tau", "6"], "tau is a number from 0 to 5");
    is_wrong_usage(&["classify", "a.png", "--tau", "NaN"], "tau is a number from 0 to 5");
    is_wrong_usage(&["classify", "a.png", "--top-k", "0"], "--top-k");
    is_wrong_usage(&["classify", "a.png", "--device", "tpu"], "`tpu` is not a device");
    is_wrong_usage(&["extract", "."], "--output");
    is_wrong_usage(&["import", "a.onnx", "-o", "m", "--name", "a b"], "a name has at most 64");
    is_wrong_usage(&["import", "a.onnx", "-o", "m", "--mean", "0.5"], "three numbers");
    is_wrong_usage(&["import", "a.onnx", "-o", "m", "--resize", "0"], "a size is a number of pixels");
    is_wrong_usage(&["import", "a.onnx", "-o", "m", "--interpolation", "box"], "bilinear");
    is_wrong_usage(&["import", "a.onnx", "-o", "m", "--pre-crop", "1.5"], "above 0 and at most 1");
    is_wrong_usage(&["import", "a.onnx", "-o", "m", "--std", "0,1,1"], "each of the three is above 0");
    is_wrong_usage(&["serve", "--log", "=["], "--log: ");
    is_wrong_usage(&["inspect"], "PATH");
}

#[test]
fn a_flag_wins_over_its_twin() {
    let image = icon("bell/00.png");
    let heads = |command: &mut Command| {
        let output = command.env("EQUIPOISE_HEAD", "crt").env("EQUIPOISE_JSON", "1").output().expect("the binary runs");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("EQUIPOISE_JSON asks for JSON");
        answer["images"][0]["results"][0]["head"].as_str().expect("a head").to_owned()
    };
    assert_eq!(heads(&mut equipoise(&["classify", &image])), "crt");
    assert_eq!(heads(&mut equipoise(&["classify", &image, "--head", "lws"])), "lws");
}
