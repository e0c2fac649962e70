//! What the source must look like: who may know what, and how long a file may be.

use std::path::{Path, PathBuf};

use crate::app::root;

const MAX_LINES: usize = 450;

/// A crate, and the files or folders that may name it.
const MAY_NAME: [(&str, &[&str]); 14] = [
    ("axum", &["src/http/", "src/server/"]),
    ("hyper", &["src/http/", "src/server/"]),
    ("hyper_util", &["src/http/", "src/server/"]),
    ("tokio_rustls", &["src/server/"]),
    ("multer", &["src/http/"]),
    ("ort", &["src/onnx/"]),
    ("prost", &["src/onnx/"]),
    ("image", &["src/preprocess/"]),
    ("gif", &["src/preprocess/"]),
    ("tiff", &["src/preprocess/"]),
    ("zune_jpeg", &["src/preprocess/"]),
    ("prometheus", &["src/metrics/"]),
    ("object_store", &["src/registry/"]),
    ("clap", &["src/cli/", "src/config/", "src/main.rs"]),
];

/// The mathematics, and what it does not know of: it reads no clock, and does no IO but that of feature set files.
const MATHEMATICS: [&str; 4] = ["src/dataset/", "src/heads/", "src/evaluate.rs", "src/fit/"];
const UNKNOWN_TO_MATHEMATICS: [&str; 8] =
    ["tokio", "axum", "ort", "hyper", "image", "prometheus", "Instant", "SystemTime"];

/// Where the wall clock may be read: for what people read, and never for how long something takes or which of two came first.
/// It may jump; `Instant` does not.
const WALL_CLOCK: [&str; 5] = [
    "src/jobs/job.rs",          // when a fit was queued, began and ended
    "src/registry/backbone.rs", // whether a file is still the one that was loaded
    "src/registry/edit.rs",     // when a change was made
    "src/registry/gc.rs",       // what would go, for one who only looks
    "src/registry/manifest.rs", // for want of randomness
];

fn sources_in(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file: its path from the repository, and its lines without comments.
fn sources() -> Vec<(String, Vec<String>)> {
    let mut paths = Vec::new();
    sources_in(&root().join("src"), &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
        let text = std::fs::read_to_string(path).unwrap();
        let code = |line: &str| match line.trim_start().starts_with("//") {
            true => String::new(),
            false => line.to_owned(),
        };
        (name, text.lines().map(code).collect())
    };
    paths.into_iter().map(read).collect()
}

/// Whether a line names the crate or type `word`: as a path's beginning, in a `use`, or on its own.
fn names(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        let (before, after) = (&line[..start], &line[start + word.len()..]);
        // A segment inside of a path is a module of our own.
        let begins = !before.ends_with(is_part) && !before.ends_with("::") && !before.ends_with('"');
        begins && after.starts_with("::")
    })
}

fn is_in(file: &str, places: &[&str]) -> bool {
    places.iter().any(|place| file == *place || place.ends_with('/') && file.starts_with(place))
}

#[track_caller]
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

fn lines_where(wrong: impl Fn(&str, &[String], usize) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (file, lines) in sources() {
        for (index, line) in lines.iter().enumerate().filter(|(index, _)| wrong(&file, &lines, *index)) {
            found.push(format!("{file}:{}: {}", index + 1, line.trim()));
        }
    }
    found
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    for (name, places) in MAY_NAME {
        assert_none(name, &lines_where(|file, lines, index| !is_in(file, places) && names(&lines[index], name)));
    }
    // The rule would see something.
    assert!(sources().iter().any(|(_, lines)| lines.iter().any(|line| names(line, "axum"))));
}

#[test]
fn the_mathematics_knows_of_no_runtime_and_no_clock() {
    for word in UNKNOWN_TO_MATHEMATICS {
        let is_word = |line: &str| {
            let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            names(line, word) || word.starts_with(char::is_uppercase) && words.any(|found| found == word)
        };
        assert_none(word, &lines_where(|file, lines, index| is_in(file, &MATHEMATICS) && is_word(&lines[index])));
    }
}

#[test]
fn the_wall_clock_is_read_only_to_be_written_down() {
    let reads = |line: &str| ["SystemTime", "Utc::now", "Local::now"].iter().any(|word| line.contains(word));
    assert_none("a wall clock", &lines_where(|file, lines, index| !is_in(file, &WALL_CLOCK) && reads(&lines[index])));
    // What no longer needs it is not to have it.
    for place in WALL_CLOCK {
        assert!(sources().iter().any(|(file, lines)| file == place && lines.iter().any(|line| reads(line))), "{place}");
    }
}

#[test]
fn heads_know_nothing_of_how_they_are_fitted() {
    assert_none(
        "fit in heads",
        &lines_where(|file, lines, index| {
            is_in(file, &["src/heads/"])
                && (lines[index].contains("crate::fit") || lines[index].contains("crate::{fit"))
        }),
    );
}

#[test]
fn no_file_is_long() {
    let long = sources().into_iter().filter(|(_, lines)| lines.len() > MAX_LINES);
    assert_none("too long", &long.map(|(file, lines)| format!("{file}: {} lines", lines.len())).collect::<Vec<_>>());
}

#[test]
fn features_switch_whole_modules_and_nothing_inside_of_them() {
    assert_none(
        "cfg(feature)",
        &lines_where(|file, lines, index| {
            let switches = lines[index].contains("cfg(feature") || lines[index].contains("cfg!(feature");
            let next =
                lines[index + 1..].iter().map(|line| line.trim()).find(|line| !line.starts_with("#[")).unwrap_or("");
            let is_module = (next.starts_with("mod ") || next.starts_with("pub mod ")) && next.ends_with(';');
            switches && file != "src/lib.rs" && !is_module
        }),
    );
}

#[test]
fn the_environment_is_read_in_the_configuration() {
    assert_none(
        "env::var",
        &lines_where(|file, lines, index| {
            let allowed = match file {
                file if file.starts_with("src/config/") => true,
                "src/onnx/library.rs" => lines[index].contains("ORT_DYLIB_PATH"),
                _ => false,
            };
            lines[index].contains("env::var") && !allowed
        }),
    );
}
