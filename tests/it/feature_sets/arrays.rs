//! Arrays that are right, in every form that is taken.

use equipoise::dataset::{FeatureSet, FeatureSetError, MAX_CLASSES};
use ndarray::array;
use zip::CompressionMethod;

use super::{
    ENOUGH,
    archives::{
        f32_bytes, good_features, good_labels, good_npz, i64_bytes, npy, npy_with_header, npz, tensors, zip_of,
        zip64_of,
    },
    read,
};

fn good() -> FeatureSet {
    FeatureSet::new(array![[1.0, 2.0], [0.0, -4.5]], vec![2, 0], 3).unwrap()
}

#[track_caller]
fn check(what: &str, bytes: &[u8]) {
    let set = read(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(set, good(), "{what}");
    assert_eq!(set.digest(), good().digest(), "{what}");
}

#[test]
fn every_float_type_and_order_is_read_right() {
    let values = [1.0f64, 2.0, 0.0, -4.5];
    // 1, 2, 0 and −4.5 in float16.
    let halves = [0x3c00u16, 0x4000, 0x0000, 0xc480];
    let cases: [(&str, Vec<u8>); 6] = [
        ("<f4", values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect()),
        (">f4", values.iter().flat_map(|&x| (x as f32).to_be_bytes()).collect()),
        ("<f8", values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        (">f8", values.iter().flat_map(|x| x.to_be_bytes()).collect()),
        ("<f2", halves.iter().flat_map(|x| x.to_le_bytes()).collect()),
        (">f2", halves.iter().flat_map(|x| x.to_be_bytes()).collect()),
    ];
    for (descr, data) in &cases {
        check(descr, &npz(&npy(descr, "(2, 2)", data), &good_labels()));
    }
    for (dtype, data) in [("F32", &cases[0].1), ("F64", &cases[2].1), ("F16", &cases[4].1)] {
        check(dtype, &tensors(&[("features", dtype, "[2,2]", data), ("labels", "I64", "[2]", &i64_bytes(&[2, 0]))]));
    }
}

#[test]
fn every_integer_type_and_order_is_read_right() {
    for (signed, letter) in [(true, 'i'), (false, 'u')] {
        for size in [1, 2, 4, 8] {
            let little: Vec<u8> = [2i64, 0].iter().flat_map(|x| x.to_le_bytes()[..size].to_vec()).collect();
            let big: Vec<u8> = [2i64, 0].iter().flat_map(|x| x.to_be_bytes()[8 - size..].to_vec()).collect();
            for (order, data) in [('<', &little), ('>', &big), ('|', &little)] {
                if order != '|' || size == 1 {
                    let descr = format!("{order}{letter}{size}");
                    check(&descr, &npz(&good_features(), &npy(&descr, "(2,)", data)));
                }
            }
            let dtype = format!("{}{}", if signed { 'I' } else { 'U' }, size * 8);
            let features = f32_bytes(&[1.0, 2.0, 0.0, -4.5]);
            check(&dtype, &tensors(&[("labels", &dtype, "[2]", &little), ("feats", "F32", "[2,2]", &features)]));
        }
    }
}

#[test]
fn column_major_arrays_and_every_version_and_spacing_are_read_right() {
    let by_column = f32_bytes(&[1.0, 0.0, 2.0, -4.5]);
    let header = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }";
    let spaced = format!("{header}{}\n", " ".repeat(70_000));
    let compact = r#"{"shape":(2,2),"fortran_order":True,"descr":"<f4"}"#;
    for version in [[1, 0], [2, 0], [3, 0]] {
        check(&format!("version {version:?}"), &npz(&npy_with_header(version, header, &by_column), &good_labels()));
        check("compact", &npz(&npy_with_header(version, compact, &by_column), &good_labels()));
    }
    let too_long = read(&npz(&npy_with_header([2, 0], &spaced, &by_column), &good_labels())).unwrap_err();
    assert!(matches!(too_long, FeatureSetError::NpyHeader { byte: 8, .. }), "{too_long:?}");
}

#[test]
fn members_may_be_deflated_be_in_any_order_and_have_company() {
    let (features, labels) = (good_features(), good_labels());
    check("deflated", &zip_of(&[("features.npy", &features), ("labels.npy", &labels)], CompressionMethod::Deflated));
    check("feats", &zip_of(&[("labels.npy", &labels), ("feats.npy", &features)], CompressionMethod::Stored));
    check("64-bit sizes", &zip64_of(&[("features.npy", &features), ("labels.npy", &labels)]));
    let company: [(&str, &[u8]); 4] =
        [("names.npy", b"no array"), ("labels.npy", &labels), ("dir/features.npy", b""), ("features.npy", &features)];
    check("company", &zip_of(&company, CompressionMethod::Stored));
    let tensors = tensors(&[
        ("a", "BF16", "[1]", &[0, 0]),
        ("features", "F32", "[2,2]", &f32_bytes(&[1.0, 2.0, 0.0, -4.5])),
        ("labels", "I64", "[2]", &i64_bytes(&[2, 0])),
    ]);
    check("company of tensors", &tensors);
}

#[test]
fn a_header_whose_length_begins_like_an_archive_is_that_of_safetensors() {
    // 0x4b50 bytes of header: the file begins with `PK`.
    let entries = r#""features":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"labels":{"dtype":"I64","shape":[2],"data_offsets":[16,32]}}"#;
    let padding = 0x4b50 - entries.len() - 1;
    let header = format!("{{{}{entries}", " ".repeat(padding));
    let data = [f32_bytes(&[1.0, 2.0, 0.0, -4.5]), i64_bytes(&[2, 0])].concat();
    let bytes = super::archives::tensor_file(&header, &data);
    assert!(bytes.starts_with(b"PK"));
    check("PK", &bytes);
}

#[test]
fn zero_rows_are_accepted_and_counted() {
    let set = FeatureSet::new(array![[0.0, -0.0], [1.0, 0.0], [0.0, 0.0]], vec![0, 1, 1], 4).unwrap();
    assert_eq!((set.num_zero_rows(), set.class_counts()), (2, vec![1, 2, 0, 0]));
}

#[test]
fn without_a_number_of_classes_the_largest_label_makes_it() {
    let bytes = good_npz();
    let set = FeatureSet::read_from(std::io::Cursor::new(&bytes), None, ENOUGH).unwrap();
    assert_eq!(set.num_classes(), 3);
    let labels = npy("<i8", "(2,)", &i64_bytes(&[0, MAX_CLASSES as i64]));
    let bytes = npz(&good_features(), &labels);
    let error = FeatureSet::read_from(std::io::Cursor::new(&bytes), None, ENOUGH).unwrap_err();
    assert!(matches!(error, FeatureSetError::LabelOutOfRange { row: 1, .. }), "{error:?}");
    assert!(error.to_string().ends_with("is 16777216, and a label is from 0 to 16777215"), "{error}");
}

#[test]
fn a_file_is_read_from_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("set.npz");
    std::fs::write(&path, good_npz()).unwrap();
    assert_eq!(FeatureSet::read(&path, Some(3), ENOUGH).unwrap(), good());
    let error = FeatureSet::read(&directory.path().join("none.npz"), Some(3), ENOUGH).unwrap_err();
    assert!(matches!(error, FeatureSetError::Io(_)), "{error:?}");
    let error = FeatureSet::read(directory.path(), Some(3), ENOUGH).unwrap_err();
    assert!(matches!(error, FeatureSetError::Io(_)), "{error:?}");
}

#[test]
fn what_is_put_together_in_memory_is_checked_too() {
    let features = || array![[1.0, 2.0], [0.0, -4.5]];
    let error = FeatureSet::new(features(), vec![2], 3).unwrap_err();
    assert!(matches!(error, FeatureSetError::LengthMismatch { rows: 2, labels: 1 }), "{error:?}");
    let error = FeatureSet::new(features(), vec![0, 3], 3).unwrap_err();
    assert!(matches!(error, FeatureSetError::LabelOutOfRange { row: 1, label: 3, num_classes: Some(3) }), "{error:?}");
    assert!(FeatureSet::new(features(), vec![0, 0], 0).unwrap_err().to_string().contains("0 classes"));
    let error = FeatureSet::new(array![[1.0, 2.0], [0.0, f32::NAN]], vec![2, 0], 3).unwrap_err();
    assert!(matches!(error, FeatureSetError::NotFinite { row: 1, column: 1 }), "{error:?}");
    let error = FeatureSet::new(ndarray::Array2::zeros((2, 0)), vec![2, 0], 3).unwrap_err();
    assert!(matches!(error, FeatureSetError::Empty { rows: 2, feature_dim: 0 }), "{error:?}");
    // Column-major memory is the same set.
    let turned = array![[1.0, 0.0], [2.0, -4.5]].reversed_axes();
    assert_eq!(FeatureSet::new(turned, vec![2, 0], 3).unwrap(), good());
}

#[test]
fn the_digest_is_of_the_content_and_of_nothing_else() {
    let digest = |rows: ndarray::Array2<f32>, labels: &[u32], classes| {
        FeatureSet::new(rows, labels.to_vec(), classes).unwrap().digest()
    };
    let base = digest(array![[1.0, 2.0], [3.0, 4.0]], &[0, 1], 2);
    assert_eq!(base, digest(array![[1.0, 2.0], [3.0, 4.0]], &[0, 1], 9));
    assert_ne!(base, digest(array![[1.0, 2.0], [3.0, 5.0]], &[0, 1], 2));
    assert_ne!(base, digest(array![[1.0, 2.0], [3.0, 4.0]], &[1, 0], 2));
    assert_ne!(digest(array![[1.0], [2.0]], &[0, 0], 1), digest(array![[1.0, 2.0]], &[0], 1));
}
