//! `equipoise serve`: what it refuses before it starts.

use super::{equipoise, fails, is_wrong_usage, path, text};

#[test]
fn an_admin_api_in_the_open_is_refused_with_a_way_out() {
    let state = tempfile::tempdir().unwrap();
    let state = path(state.path());
    for flags in [
        &["--listen", "0.0.0.0:0"][..],
        &["--listen", "[::]:0"],
        &["--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0"],
        &["--listen", "0.0.0.0:0", "--allow-insecure-admin=false"],
    ] {
        let arguments = [&["serve", "--state-dir", &state][..], flags].concat();
        for way in ["without TLS", "--tls-cert", "--admin-listen 127.0.0.1:8001", "--allow-insecure-admin"] {
            is_wrong_usage(&arguments, way);
        }
        let output = equipoise(&arguments).output().unwrap();
        assert_eq!(text(&output.stderr).lines().count(), 1);
    }
}

#[test]
fn options_that_say_nothing_by_themselves_are_wrong_usage() {
    is_wrong_usage(&["serve", "--tls-cert", "a.pem"], "`--tls-cert` needs `--tls-key` beside it");
    is_wrong_usage(&["serve", "--tls-key", "a.pem"], "`--tls-key` needs `--tls-cert` beside it");
    is_wrong_usage(&["serve", "--rate-limit-burst", "4"], "needs `--rate-limit-images-per-second` beside it");
    is_wrong_usage(&["serve", "--rate-limit-burst", "0"], "--rate-limit-burst");
    for value in ["0", "-1", "NaN", "inf"] {
        let flag = format!("--rate-limit-images-per-second={value}");
        is_wrong_usage(&["serve", &flag], "must be a number above 0");
    }
    is_wrong_usage(&["serve", "--require-auth=perhaps"], "--require-auth");
    is_wrong_usage(&["serve", "--max-body-bytes", "4294967296"], "raise `--max-bodies-bytes` to that");
}

#[cfg(unix)]
#[test]
fn an_admin_token_that_nobody_can_send_is_refused() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let state = tempfile::tempdir().unwrap();
    let state = path(state.path());
    for token in ["pässword".as_bytes(), b"p\xe4ssword"] {
        let mut command = equipoise(&["serve", "--state-dir", &state, "--listen", "127.0.0.1:0"]);
        let output = command.env("EQUIPOISE_ADMIN_TOKEN", OsStr::from_bytes(token)).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
        assert!(stderr.contains("EQUIPOISE_ADMIN_TOKEN") && !stderr.contains("ssword"), "{stderr}");
    }
}

#[test]
fn files_that_are_not_there_are_named() {
    let state = tempfile::tempdir().unwrap();
    let state = path(state.path());
    let serve = ["serve", "--state-dir", &state, "--log", "off", "--listen", "127.0.0.1:0"];
    fails(&[&serve[..], &["--tokens-file", "no-tokens.toml"]].concat(), &["no-tokens.toml"]);
    fails(&[&serve[..], &["--tls-cert", "no-cert.pem", "--tls-key", "no-key.pem"]].concat(), &["no-cert.pem"]);
}
