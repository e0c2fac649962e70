//! Safetensors files that lie.

use super::{
    Hostile,
    archives::{f32_bytes, i64_bytes, tensor_file, tensors},
    check, hostile, variant,
};

/// Every file of this module that must be refused whatever the limit.
pub(super) fn cases() -> Vec<Hostile> {
    [cases_of_what_is_no_container_is_refused(), cases_of_tensors_that_cannot_be_are_refused()]
        .into_iter()
        .flatten()
        .collect()
}

fn cases_of_what_is_no_container_is_refused() -> Vec<Hostile> {
    let labels = r#""labels":{"dtype":"I64","shape":[2],"data_offsets":[16,32]}"#;
    let with_features = |entry: &str| tensor_file(&format!("{{\"features\":{entry},{labels}}}"), &[0; 32]);
    let good = with_features(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}"#);
    assert!(super::read(&good).is_ok());
    vec![
        hostile("seven bytes", vec![0; 7], variant!(Container), &["safetensors", "shorter"]),
        hostile("the largest length", vec![255; 8], variant!(Container), &["18446744073709551615"]),
        hostile(
            "a length beyond the file",
            100u64.to_le_bytes().to_vec(),
            variant!(Container),
            &["100 bytes", "has 8"],
        ),
        hostile(
            "a header of 2 MiB",
            tensor_file(&" ".repeat(2 << 20), &[]),
            variant!(Container),
            &["2097152", "1048576"],
        ),
        hostile("no text", tensor_file("\u{1}", &[]), variant!(Container), &["its header"]),
        hostile("no JSON", tensor_file("{", &[]), variant!(Container), &["its header"]),
        hostile("a list", tensor_file("[]", &[]), variant!(Container), &["an object of tensors"]),
        hostile("two objects", tensor_file("{}{}", &[]), variant!(Container), &["its header"]),
        hostile("deep nesting", tensor_file(&"[".repeat(9999), &[]), variant!(Container), &["its header"]),
        hostile(
            "deep metadata",
            tensor_file(&format!("{{\"__metadata__\":{}", "[".repeat(9999)), &[]),
            variant!(Container),
            &["its header"],
        ),
        hostile("a tensor that is a number", with_features("1"), variant!(Container), &["its header"]),
        hostile(
            "no offsets",
            with_features(r#"{"dtype":"F32","shape":[2,2]}"#),
            variant!(Container),
            &["data_offsets"],
        ),
        hostile(
            "unknown type",
            with_features(r#"{"dtype":"F31","shape":[2,2],"data_offsets":[0,16]}"#),
            variant!(Container),
            &["F31"],
        ),
        hostile(
            "negative shape",
            with_features(r#"{"dtype":"F32","shape":[-2,2],"data_offsets":[0,16]}"#),
            variant!(Container),
            &[],
        ),
        hostile(
            "fractional shape",
            with_features(r#"{"dtype":"F32","shape":[2.0,2],"data_offsets":[0,16]}"#),
            variant!(Container),
            &[],
        ),
        hostile(
            "backwards",
            with_features(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[16,0]}"#),
            variant!(Container),
            &[],
        ),
        hostile(
            "overlap",
            with_features(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]}"#),
            variant!(Container),
            &["`features`"],
        ),
        hostile(
            "a hole",
            with_features(r#"{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}"#),
            variant!(Container),
            &["`labels`", "begin at 8"],
        ),
        hostile(
            "a larger shape",
            with_features(r#"{"dtype":"F32","shape":[2,3],"data_offsets":[0,16]}"#),
            variant!(Container),
            &["`features`", "16 bytes", "[2, 3]"],
        ),
        hostile(
            "an overflowing shape",
            with_features(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}"#),
            variant!(Container),
            &["`features`"],
        ),
        hostile(
            "an offset beyond 64 bits",
            with_features(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,18446744073709551616]}"#),
            variant!(Container),
            &[],
        ),
        hostile(
            "an offset beyond the file",
            with_features(r#"{"dtype":"F32","shape":[2,2],"data_offsets":[0,9223372036854775807]}"#),
            variant!(Container),
            &["`features`"],
        ),
        hostile("bytes after the data", [&good[..], b"!"].concat(), variant!(Container), &["32 bytes", "33"]),
        hostile("a byte short", good[..good.len() - 1].to_vec(), variant!(Container), &["32 bytes", "31"]),
    ]
}

#[test]
fn what_is_no_container_is_refused() {
    check(cases_of_what_is_no_container_is_refused());
}

fn cases_of_tensors_that_cannot_be_are_refused() -> Vec<Hostile> {
    let features = f32_bytes(&[1.0, 2.0, 0.0, -4.5]);
    let labels = i64_bytes(&[2, 0]);
    let ok_labels = ("labels", "I64", "[2]", labels.as_slice());
    let ok_features = ("features", "F32", "[2,2]", features.as_slice());
    let nan = f32_bytes(&[0.0, 0.0, f32::NAN, 0.0]);
    let (high, negative) = (i64_bytes(&[0, 3]), i64_bytes(&[-7, 0]));
    let shared = tensor_file(
        r#"{"features":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"features":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"labels":{"dtype":"I64","shape":[2],"data_offsets":[16,32]}}"#,
        &[0; 32],
    );
    vec![
        hostile(
            "nothing in it",
            tensor_file("{}", &[]),
            variant!(MissingFeatures),
            &["neither `features` nor `feats`"],
        ),
        hostile("no labels", tensors(&[ok_features]), variant!(MissingLabels), &["`labels`"]),
        hostile("no features", tensors(&[ok_labels]), variant!(MissingFeatures), &["neither `features` nor `feats`"]),
        hostile(
            "both names",
            tensors(&[ok_features, ok_labels, ("feats", "F32", "[2,2]", &features)]),
            variant!(BothNames),
            &[],
        ),
        hostile(
            "features twice",
            tensors(&[ok_features, ok_labels, ok_features]),
            variant!(DuplicateMember),
            &["`features`"],
        ),
        hostile("features twice in one place", shared, variant!(DuplicateMember), &["`features`"]),
        hostile(
            "labels twice",
            tensors(&[ok_labels, ok_features, ok_labels]),
            variant!(DuplicateMember),
            &["`labels`"],
        ),
        hostile(
            "boolean features",
            tensors(&[("features", "BOOL", "[2,2]", &[0; 4]), ok_labels]),
            variant!(ElementType),
            &["`features`", "BOOL"],
        ),
        hostile(
            "integer features",
            tensors(&[("features", "I32", "[2,2]", &features), ok_labels]),
            variant!(ElementType),
            &["`features`", "I32"],
        ),
        hostile(
            "bfloat16 features",
            tensors(&[("features", "BF16", "[2,2]", &[0; 8]), ok_labels]),
            variant!(ElementType),
            &["BF16"],
        ),
        hostile(
            "float labels",
            tensors(&[ok_features, ("labels", "F64", "[2]", &labels)]),
            variant!(ElementType),
            &["`labels`", "integers"],
        ),
        hostile(
            "boolean labels",
            tensors(&[ok_features, ("labels", "BOOL", "[2]", &[0, 0])]),
            variant!(ElementType),
            &["`labels`"],
        ),
        hostile(
            "flat features",
            tensors(&[("features", "F32", "[4]", &features), ok_labels]),
            variant!(Dimensions),
            &["two dimensions"],
        ),
        hostile(
            "labels in a column",
            tensors(&[ok_features, ("labels", "I64", "[2,1]", &labels)]),
            variant!(Dimensions),
            &["one dimension"],
        ),
        hostile(
            "fewer rows",
            tensors(&[("features", "F32", "[1,4]", &features), ok_labels]),
            variant!(LengthMismatch),
            &["1 rows"],
        ),
        hostile("no columns", tensors(&[("features", "F32", "[2,0]", &[]), ok_labels]), variant!(Empty), &["[2, 0]"]),
        hostile("NaN", tensors(&[("features", "F32", "[2,2]", &nan), ok_labels]), variant!(NotFinite), &["row 1"]),
        hostile(
            "a class too many",
            tensors(&[ok_features, ("labels", "I64", "[2]", &high)]),
            variant!(LabelOutOfRange),
            &["row 1", "is 3"],
        ),
        hostile(
            "negative",
            tensors(&[ok_features, ("labels", "I64", "[2]", &negative)]),
            variant!(LabelOutOfRange),
            &["row 0", "is -7"],
        ),
        hostile(
            "too large",
            tensors(&[("features", "F32", "[2,262144]", &vec![0; 2 << 20]), ok_labels]),
            variant!(TooLarge),
            &["`features`"],
        ),
    ]
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    check(cases_of_tensors_that_cannot_be_are_refused());
}
