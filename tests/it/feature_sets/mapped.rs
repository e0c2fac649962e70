//! Sets that are mapped: what is converted is the same set, and every damage to it is found.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
};

use equipoise::dataset::{Expected, FEATURES_FORMAT, FeatureSet, FeatureSetError};
use ndarray::array;
use proptest::prelude::*;

use super::{
    ENOUGH,
    archives::{f32_bytes, good_npz, i64_bytes, npy_with_header, npz, tensor_file, tensors, zip_of},
    round_trip::{npz_of, safetensors_of, sets},
};
use crate::seeded;

fn expected(num_classes: Option<usize>) -> Expected {
    Expected { num_classes, feature_dim: None, max_bytes: ENOUGH }
}

/// Converts into `folder`, which then holds the converted file and nothing else.
#[track_caller]
fn convert(folder: &Path, bytes: &[u8], expected: &Expected) -> (PathBuf, FeatureSet) {
    let path = folder.join("set.safetensors");
    let set = FeatureSet::convert(Cursor::new(bytes), expected, &path).unwrap();
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
    (path, set)
}

/// The same array, column by column.
fn npz_by_column(set: &FeatureSet) -> Vec<u8> {
    let (rows, columns) = set.features().dim();
    let by_column: Vec<f32> = set.features().t().iter().copied().collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': ({rows}, {columns}), }}");
    let labels: Vec<i64> = set.labels().iter().map(|&label| label.into()).collect();
    let labels = super::archives::npy("<i8", &format!("({rows},)"), &i64_bytes(&labels));
    npz(&npy_with_header([1, 0], &header, &f32_bytes(&by_column)), &labels)
}

proptest! {
    #![proptest_config(seeded(48))]

    #[test]
    fn a_converted_set_is_the_same_bit_for_bit_whatever_it_came_in(set in sets()) {
        let bits = |set: &FeatureSet| set.features().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let mut files = Vec::new();
        for bytes in [npz_of(&set), safetensors_of(&set), npz_by_column(&set)] {
            let folder = tempfile::tempdir().unwrap();
            let (path, converted) = convert(folder.path(), &bytes, &expected(Some(5)));
            let again = FeatureSet::map(&path, Some(5)).unwrap();
            let of_itself = FeatureSet::map(&path, None).unwrap();
            let read = FeatureSet::read_from(std::fs::File::open(&path).unwrap(), Some(5), ENOUGH).unwrap();
            for other in [&converted, &again, &of_itself, &read] {
                prop_assert_eq!(bits(other), bits(&set));
                prop_assert_eq!(other.labels(), set.labels());
                prop_assert_eq!(other.digest(), set.digest());
                prop_assert_eq!(other.num_zero_rows(), set.num_zero_rows());
                prop_assert_eq!(other.num_classes(), 5);
            }
            files.push(std::fs::read(&path).unwrap());
        }
        prop_assert_eq!(&files[0], &files[1]);
        prop_assert_eq!(&files[0], &files[2]);
    }
}

#[test]
fn more_than_a_block_is_converted_right_in_either_order() {
    let (rows, columns) = (30_001, 3);
    let features = ndarray::Array2::from_shape_fn((rows, columns), |(row, column)| (row * 3 + column) as f32);
    let labels = (0..rows as u32).map(|row| row % 7).collect();
    let set = FeatureSet::new(features, labels, 7).unwrap();
    for bytes in [npz_of(&set), npz_by_column(&set), safetensors_of(&set)] {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(convert(folder.path(), &bytes, &expected(Some(7))).1, set);
    }
}

#[test]
fn a_converted_file_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (path, set) = convert(folder.path(), &good_npz(), &expected(Some(9)));
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let entry = |key: &str| metadata[key].as_str();
    assert_eq!((entry("format"), entry("classes"), entry("zero_rows")), (FEATURES_FORMAT, "9", "0"));
    assert_eq!(entry("digest"), set.digest().to_hex());
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("features").unwrap().data(), f32_bytes(&[1.0, 2.0, 0.0, -4.5]));
    assert_eq!(tensors.tensor("labels").unwrap().data(), [2, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn without_a_number_of_classes_the_largest_label_makes_it_and_the_file_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, set) = convert(folder.path(), &good_npz(), &expected(None));
    assert_eq!(set.num_classes(), 3);
    let (path_of_9, _) = convert(tempfile::tempdir().unwrap().path(), &good_npz(), &expected(Some(9)));
    assert!(!path_of_9.exists());
    assert_eq!(FeatureSet::map(&path, None).unwrap().num_classes(), 3);
    assert_eq!(FeatureSet::map(&path, Some(4)).unwrap().num_classes(), 4);
    let error = FeatureSet::map(&path, Some(2)).unwrap_err();
    assert!(matches!(error, FeatureSetError::LabelOutOfRange { row: 0, label: 2, .. }), "{error:?}");
}

#[test]
fn another_number_of_columns_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = Expected { feature_dim: Some(3), ..expected(Some(3)) };
    let error =
        FeatureSet::convert(Cursor::new(good_npz()), &wanted, &folder.path().join("set.safetensors")).unwrap_err();
    assert!(matches!(error, FeatureSetError::FeatureDim { found: 2, expected: 3 }), "{error:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn every_flipped_bit_and_every_missing_byte_of_a_converted_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (path, set) = convert(folder.path(), &good_npz(), &expected(Some(3)));
    drop(set);
    let good = std::fs::read(&path).unwrap();
    let data_start = 8 + usize::try_from(u64::from_le_bytes(good[..8].try_into().unwrap())).unwrap();
    let damaged = folder.path().join("damaged");
    for at in data_start..good.len() {
        for bit in [1, 0x80] {
            let mut bytes = good.clone();
            bytes[at] ^= bit;
            std::fs::write(&damaged, &bytes).unwrap();
            FeatureSet::map(&damaged, Some(3)).unwrap_err();
            FeatureSet::read(&damaged, None, ENOUGH).unwrap_err();
        }
    }
    for length in 0..good.len() {
        std::fs::write(&damaged, &good[..length]).unwrap();
        FeatureSet::map(&damaged, Some(3)).unwrap_err();
    }
    // The digest itself.
    let hex = good.windows(9).position(|window| window == b"\"digest\":").unwrap() + 10;
    let mut bytes = good.clone();
    bytes[hex] = if bytes[hex] == b'0' { b'1' } else { b'0' };
    std::fs::write(&damaged, &bytes).unwrap();
    let error = FeatureSet::map(&damaged, Some(3)).unwrap_err();
    assert!(matches!(error, FeatureSetError::Digest { .. }), "{error:?}");
    assert!(error.to_string().contains("SHA-256"));
}

#[test]
fn a_number_of_classes_that_cannot_be_is_refused_unless_the_caller_knows_better() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = convert(folder.path(), &good_npz(), &expected(Some(3)));
    let good = std::fs::read(&path).unwrap();
    let data_start = 8 + usize::try_from(u64::from_le_bytes(good[..8].try_into().unwrap())).unwrap();
    let text = String::from_utf8(good[8..data_start].to_vec()).unwrap();
    for classes in ["0", "16777217", "99999999999", "18446744073709551615", "18446744073709551616", "many"] {
        let header = text.replacen("\"classes\":\"3\"", &format!("\"classes\":\"{classes}\""), 1);
        let spaces = header.len() - text.len();
        std::fs::write(&path, tensor_file(&header[..header.len() - spaces], &good[data_start..])).unwrap();
        let error = FeatureSet::read(&path, None, ENOUGH).unwrap_err();
        assert!(matches!(error, FeatureSetError::Classes { .. }), "{classes}: {error:?}");
        assert!(
            error.to_string().contains(&format!("`{classes}` classes, which must be from 1 to 16777216")),
            "{error}"
        );
        assert_eq!(FeatureSet::read(&path, Some(3), ENOUGH).unwrap().num_classes(), 3);
    }
}

#[test]
fn what_cannot_be_mapped_is_refused_by_map_and_read_by_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set");
    let good = FeatureSet::new(array![[1.0, 2.0], [0.0, -4.5]], vec![2, 0], 3).unwrap();
    let values = [1.0f64, 2.0, 0.0, -4.5];
    let doubles: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (features, labels) = (f32_bytes(&values.map(|value| value as f32)), i64_bytes(&[2, 0]));
    // The data begin `padding` bytes beyond a multiple of four.
    let file = |padding: usize, labels: (&str, &[u8])| {
        let end = 16 + labels.1.len();
        let text = format!(
            r#"{{"features":{{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}},"labels":{{"dtype":"{}","shape":[2],"data_offsets":[16,{end}]}}}}"#,
            labels.0
        );
        let spaces = " ".repeat((4 - text.len() % 4) % 4 + padding);
        tensor_file(&format!("{text}{spaces}"), &[&features, labels.1].concat())
    };
    let cases = [
        ("npz", good_npz(), Some("no safetensors")),
        (
            "float64",
            tensors(&[("features", "F64", "[2,2]", &doubles), ("labels", "I64", "[2]", &labels)]),
            Some("float32"),
        ),
        ("unaligned", file(1, ("I64", &labels)), Some("multiple of four")),
        ("unaligned by two", file(2, ("I64", &labels)), Some("multiple of four")),
        ("aligned", file(0, ("I64", &labels)), None),
        ("labels in one byte", file(0, ("U8", &[2, 0])), None),
        ("labels that are mapped too", file(0, ("U32", &[2, 0, 0, 0, 0, 0, 0, 0])), None),
    ];
    for (what, bytes, reason) in cases {
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(FeatureSet::read(&path, Some(3), ENOUGH).unwrap(), good, "{what}");
        match reason {
            None => assert_eq!(FeatureSet::map(&path, Some(3)).unwrap(), good, "{what}"),
            Some(reason) => {
                let error = FeatureSet::map(&path, Some(3)).unwrap_err();
                assert!(matches!(error, FeatureSetError::NotMappable { .. }), "{what}: {error:?}");
                assert!(error.to_string().contains(reason), "{what}: {error}");
            }
        }
    }
}

#[test]
fn a_limit_bounds_what_is_held_and_not_what_is_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = convert(folder.path(), &good_npz(), &expected(Some(3)));
    assert_eq!(FeatureSet::read(&path, Some(3), 0).unwrap().num_rows(), 2);
    // The same with labels that are held, in four bytes each.
    let bytes = std::fs::read(&path).unwrap();
    let start = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let text = String::from_utf8(bytes[8..start].to_vec()).unwrap();
    let text = text.replace("\"U32\"", "\"I64\"").replace("[0,8]", "[0,16]").replace("[8,24]", "[16,32]");
    let text = format!("{text}{}", " ".repeat((4 - text.len() % 4) % 4));
    std::fs::write(&path, tensor_file(&text, &[i64_bytes(&[2, 0]), bytes[start + 8..].to_vec()].concat())).unwrap();
    assert_eq!(FeatureSet::read(&path, Some(3), 8).unwrap().num_rows(), 2);
    assert!(matches!(FeatureSet::read(&path, Some(3), 7).unwrap_err(), FeatureSetError::TooLarge { .. }));
}

#[test]
fn a_clone_shares_the_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (_, set) = convert(folder.path(), &good_npz(), &expected(Some(3)));
    let clone = set.clone();
    assert!(std::ptr::eq(set.labels(), clone.labels()));
    drop(set);
    assert_eq!(clone.features(), array![[1.0, 2.0], [0.0, -4.5]]);
}

#[test]
fn there_are_hundreds_of_hostile_files() {
    let files = super::hostile_files();
    assert!(files.len() >= 180, "{}", files.len());
}

#[test]
fn an_archive_of_very_many_members_is_refused_by_their_number() {
    // One member more than is taken.
    let names: Vec<String> = (0..10_001).map(|index| format!("{index}.npy")).collect();
    let members: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let many = zip_of(&members, zip::CompressionMethod::Stored);
    let error = super::read(&many).unwrap_err();
    assert!(error.to_string().contains("10001 members, and the limit is 10000"), "{error}");
    // As many as that are read, also if they are not ours.
    let error = super::read(&zip_of(&members[1..], zip::CompressionMethod::Stored)).unwrap_err();
    assert!(matches!(error, FeatureSetError::MissingFeatures), "{error:?}");
}
