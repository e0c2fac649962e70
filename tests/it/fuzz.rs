//! The fuzzers' corpus, and mutations of it: what `fuzz/` looks for over hours, for some seconds and without its compiler.

use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a crate of its own, too")]
mod targets;

use equipoise::fit::Random;

use crate::app::root;

/// The files of these folders, in the order of their names.
fn corpus(folders: &[&str]) -> Vec<Vec<u8>> {
    let files = |folder: &&str| {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
        files.sort();
        files
    };
    let read = |path: &Path| std::fs::read(path).unwrap();
    let corpus: Vec<Vec<u8>> = folders.iter().flat_map(files).map(|path| read(&path)).collect();
    assert!(!corpus.is_empty(), "{folders:?}");
    corpus
}

/// Up to four changes: a bit, a byte, a run of bytes taken out, put in twice, or taken from another file.
fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut below = |n: usize| (random.unit() * n as f64) as usize;
    let mut bytes = seeds[below(seeds.len())].clone();
    for _ in 0..=below(4) {
        let (at, length) = (below(bytes.len() + 1), below(16));
        let end = (at + length).min(bytes.len());
        match below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << below(8),
            1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
            2 => drop(bytes.drain(at..end)),
            3 => {
                let run = bytes[at..end].to_vec();
                bytes.splice(at..at, run);
            }
            _ => {
                let other = &seeds[below(seeds.len())];
                let from = below(other.len() + 1);
                let run = other[from..(from + length).min(other.len())].to_vec();
                bytes.splice(at..end, run);
            }
        }
    }
    bytes
}

fn replay(target: fn(&[u8]), folders: &[&str], n_mutations: usize) {
    let seeds = corpus(folders);
    seeds.iter().for_each(|seed| target(seed));
    let mut random = Random::new(0, 0);
    (0..n_mutations).for_each(|_| target(&mutated(&seeds, &mut random)));
}

#[test]
fn images() {
    replay(targets::image, &["tests/data/preprocess", "tests/data/broken"], 3000);
}

#[test]
fn feature_sets() {
    replay(targets::features, &["fuzz/corpus/features"], 5000);
}

#[test]
fn head_files() {
    replay(targets::head_file, &["fuzz/corpus/head_file"], 5000);
}

#[test]
fn imported_classifiers() {
    replay(targets::onnx_import, &["tests/data/onnx"], 5000);
}

#[test]
fn bodies() {
    replay(targets::http_body, &["fuzz/corpus/http_body"], 500);
}
