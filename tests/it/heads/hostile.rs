//! Head files that lie: each way by itself, and what the message names.

use equipoise::heads::{HeadFile, HeadFileError, TensorView};
use proptest::prelude::*;

use super::files::{Metadata, file, metadata};
use crate::seeded;

const LINEAR: [(&str, &str); 3] = [("kind", "joint"), ("classes", "2"), ("feature_dim", "3")];
const WEIGHT: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

fn weight() -> (&'static str, TensorView<'static>) {
    ("weight", TensorView::F32(&WEIGHT, vec![2, 3]))
}

fn with(pairs: &[(&str, &str)]) -> Metadata {
    let mut words = metadata(&LINEAR);
    words.extend(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    words
}

fn without(key: &str) -> Metadata {
    let mut words = metadata(&LINEAR);
    words.remove(key);
    words
}

/// A container with this header as it stands, and `n_bytes` of zeros.
fn raw(header: &str, n_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + n_bytes, 0);
    bytes
}

#[track_caller]
fn check(bytes: &[u8], variant: fn(&HeadFileError) -> bool, names: &[&str]) {
    let error = HeadFile::parse(bytes).expect_err("a hostile file was read");
    assert!(variant(&error), "another variant: {error:?}");
    let message = error.to_string();
    for name in names {
        assert!(message.contains(name), "`{message}` does not name `{name}`");
    }
    assert!(message.len() < 400, "{} bytes of message", message.len());
}

macro_rules! variant {
    ($variant:ident) => {
        |error| matches!(error, HeadFileError::$variant { .. })
    };
}

#[test]
fn what_is_no_container_is_refused() {
    let valid = file(&metadata(&LINEAR), &[weight()]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("seven bytes", vec![1; 7]),
        ("no header behind the length", 40u64.to_le_bytes().to_vec()),
        ("the largest length", u64::MAX.to_le_bytes().to_vec()),
        ("a huge header", [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat()),
        ("a header above the limit", (100_000_001u64).to_le_bytes().to_vec()),
        ("a header that is no text", [&2u64.to_le_bytes()[..], b"\xff\xfe"].concat()),
        ("a header that is no JSON", raw("{", 0)),
        ("a header that is a list", raw("[]", 0)),
        ("deep nesting", raw(&"[".repeat(100_000), 0)),
        ("metadata that are no strings", raw(r#"{"__metadata__":{"classes":2}}"#, 0)),
        ("a negative shape", raw(r#"{"weight":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4)),
        ("an unknown dtype", raw(r#"{"weight":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4)),
        ("an object", raw(r#"{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"pickle":1}}"#, 3)),
        ("offsets beyond the file", raw(r#"{"weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4)),
        ("offsets backwards", raw(r#"{"weight":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4)),
        ("offsets that do not fit the shape", raw(r#"{"weight":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8)),
        (
            "tensors that overlap",
            raw(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                12,
            ),
        ),
        (
            "a hole",
            raw(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#,
                12,
            ),
        ),
        (
            "a shape whose product overflows",
            raw(r#"{"weight":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
        ),
        ("bytes after the data", [&valid[..], b"!"].concat()),
        ("one byte short", valid[..valid.len() - 1].to_vec()),
    ];
    for (what, bytes) in cases {
        let error = HeadFile::parse(&bytes).expect_err(what);
        assert!(matches!(error, HeadFileError::Container { .. }), "{what}: {error:?}");
        assert!(error.to_string().starts_with("not a readable safetensors file: "), "{what}: {error}");
    }
}

#[test]
fn metadata_that_cannot_be_are_named() {
    let linear = |words: &Metadata| file(words, &[weight()]);
    check(&linear(&Metadata::new()), variant!(Format), &["`format`", "equipoise-head/1", "``"]);
    check(&linear(&with(&[("format", "equipoise-head/2")])), variant!(Format), &["equipoise-head/2"]);
    check(&linear(&with(&[("format", &"x".repeat(1 << 20))])), variant!(Format), &["xxx…"]);
    check(&linear(&without("kind")), variant!(MissingKey), &["`kind`"]);
    check(&linear(&without("classes")), variant!(MissingKey), &["`classes`"]);
    check(&linear(&without("feature_dim")), variant!(MissingKey), &["`feature_dim`"]);
    check(&linear(&with(&[("kind", "softmax")])), variant!(Value), &["`kind`", "`softmax`", "tau_norm"]);
    check(&linear(&with(&[("kind", "Joint")])), variant!(Value), &["`Joint`"]);
    check(&linear(&with(&[("kind", &"ß".repeat(1 << 20))])), variant!(Value), &["ß…"]);
    for classes in ["0", "-2", "2.0", "two", "", " 2", "18446744073709551616"] {
        check(&linear(&with(&[("classes", classes)])), variant!(Value), &["`classes`", "an integer above 0", classes]);
    }
    check(&linear(&with(&[("train_prior", "balanced")])), variant!(Value), &["`train_prior`", "uniform"]);
    for (kind, transform) in [("joint", "l2n"), ("crt", "cl2n"), ("tau_norm", "foo"), ("joint", "")] {
        let bytes = linear(&with(&[("kind", kind), ("transform", transform)]));
        check(&bytes, variant!(Value), &["`transform`", &format!("`{transform}`"), "none for a head of kind", kind]);
    }
    let tau_norm = |key, value| linear(&with(&[("kind", "tau_norm"), (key, value)]));
    check(&tau_norm("bias", "zero"), variant!(Value), &["`bias`", "drop, keep, scale"]);
    check(&tau_norm("tau", "much"), variant!(Value), &["`tau`", "`much`", "a number"]);
    for tau in ["NaN", "inf", "-0.1", "5.1"] {
        check(&tau_norm("tau", tau), |error| matches!(error, HeadFileError::Settings(_)), &["`tau`", "0 to 5"]);
    }
    let ncm = |words: &[(&str, &str)]| {
        file(&with(&[&[("kind", "ncm")], words].concat()), &[("centroids", TensorView::F32(&WEIGHT, vec![2, 3]))])
    };
    check(&ncm(&[]), variant!(MissingKey), &["`metric`"]);
    check(&ncm(&[("metric", "cos")]), variant!(Value), &["`metric`", "cosine"]);
    check(&ncm(&[("metric", "l2"), ("transform", "un")]), variant!(Value), &["`transform`", "cl2n"]);
    check(&ncm(&[("metric", "l2"), ("transform", "cl2n")]), variant!(MissingTensor), &["`mean`", "ncm"]);
}

#[test]
fn tensors_that_cannot_be_are_named() {
    let words = metadata(&LINEAR);
    let linear = |name, tensor| file(&words, &[weight(), (name, tensor)]);
    check(&file(&words, &[]), variant!(MissingTensor), &["`weight`", "joint"]);
    check(&file(&with(&[("kind", "lws")]), &[weight()]), variant!(MissingTensor), &["`scale`", "lws"]);
    check(&file(&with(&[("kind", "ncm"), ("metric", "l2")]), &[]), variant!(MissingTensor), &["`centroids`", "ncm"]);

    for name in ["scale", "centroids", "mean", "momentum", "zeta"] {
        let bytes = linear(name, TensorView::F32(&[1.0; 2], vec![2]));
        check(&bytes, variant!(UnexpectedTensor), &[&format!("`{name}`"), "joint"]);
    }
    let two = file(&words, &[weight(), ("b2", TensorView::I64(&[], vec![0])), ("a1", TensorView::I64(&[], vec![0]))]);
    check(&two, variant!(UnexpectedTensor), &["`a1`"]);
    let long = "n".repeat(10_000);
    check(&linear(&long, TensorView::F32(&[], vec![0])), variant!(UnexpectedTensor), &["nnn…"]);

    let weight_of = |tensor| file(&words, &[("weight", tensor)]);
    check(&weight_of(TensorView::I64(&[1; 6], vec![2, 3])), variant!(Dtype), &["`weight`", "float32", "I64"]);
    check(&linear("bias", TensorView::I64(&[1; 2], vec![2])), variant!(Dtype), &["`bias`", "float32"]);
    check(
        &linear("train_counts", TensorView::F32(&[1.0; 2], vec![2])),
        variant!(Dtype),
        &["`train_counts`", "int64", "F32"],
    );

    for shape in [vec![3, 2], vec![6], vec![2, 3, 1]] {
        let found = format!("{shape:?}");
        check(&weight_of(TensorView::F32(&WEIGHT, shape)), variant!(Shape), &["`weight`", &found, "[2, 3]"]);
    }
    check(&weight_of(TensorView::F32(&[], vec![0, 3])), variant!(Shape), &["[0, 3]"]);
    check(&linear("bias", TensorView::F32(&[1.0; 3], vec![3])), variant!(Shape), &["`bias`", "[3]", "[2]"]);
    check(&linear("train_counts", TensorView::I64(&[1; 3], vec![3])), variant!(Shape), &["`train_counts`", "[3]"]);
    let huge = usize::MAX.to_string();
    let huge = file(&with(&[("classes", &huge), ("feature_dim", &huge)]), &[weight()]);
    check(&huge, variant!(Shape), &["`weight`", "[2, 3]"]);

    for (index, value) in [(0, f32::NAN), (4, f32::INFINITY), (5, f32::NEG_INFINITY)] {
        let mut values = WEIGHT;
        values[index] = value;
        let bytes = file(&words, &[("weight", TensorView::F32(&values, vec![2, 3]))]);
        check(&bytes, variant!(NotFinite), &["`weight`", &format!("index {index}")]);
    }
    check(&linear("bias", TensorView::F32(&[1.0, f32::NAN], vec![2])), variant!(NotFinite), &["`bias`", "index 1"]);
    check(&linear("train_counts", TensorView::I64(&[3, -1], vec![2])), variant!(TrainCounts), &["class 1", "negative"]);
    check(&linear("train_counts", TensorView::I64(&[0, 0], vec![2])), variant!(TrainCounts), &["0 for every class"]);
}

fn valid() -> Vec<u8> {
    file(
        &with(&[("kind", "tau_norm"), ("tau", "0.5")]),
        &[weight(), ("bias", TensorView::F32(&[1.0; 2], vec![2])), ("train_counts", TensorView::I64(&[1; 2], vec![2]))],
    )
}

proptest! {
    #![proptest_config(seeded(512))]

    #[test]
    fn arbitrary_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(HeadFile::parse(&bytes).is_err());
    }

    #[test]
    fn arbitrary_headers_are_no_panic(header in "[{}\\[\\]\":,0-9a-zA-Z_ -]{0,80}", n_bytes in 0usize..16) {
        prop_assert!(HeadFile::parse(&raw(&header, n_bytes)).is_err());
    }

    #[test]
    fn a_mutated_file_is_read_or_refused(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in 0usize..600) {
        let mut bytes = valid();
        for (index, byte) in edits {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(bytes.len().max(cut) - if cut < 20 { cut } else { 0 });
        if let Ok(file) = HeadFile::parse(&bytes) {
            prop_assert!(file.head.weights().matrix().iter().all(|value| value.is_finite()));
        }
    }
}
