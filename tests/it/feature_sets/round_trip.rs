//! What is written is read back, whatever the format; and no bytes are a panic.

use std::{collections::BTreeMap, io::Cursor};

use equipoise::{
    dataset::{FeatureSet, NpzWriter, write_npz},
    heads::{TensorView, write_safetensors},
};
use ndarray::Array2;
use proptest::prelude::*;

use super::{
    ENOUGH,
    archives::{f32_bytes, good_npz, i64_bytes, npy_with_header, npz, tensors},
    read,
};
use crate::seeded;

pub(super) fn npz_of(set: &FeatureSet) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    write_npz(&mut file, set.features(), set.labels()).unwrap();
    file.into_inner()
}

pub(super) fn safetensors_of(set: &FeatureSet) -> Vec<u8> {
    let labels: Vec<i64> = set.labels().iter().map(|&label| label.into()).collect();
    let features = set.features();
    let tensors = BTreeMap::from([
        ("features".to_owned(), TensorView::F32(features.as_slice().unwrap(), features.shape().to_vec())),
        ("labels".to_owned(), TensorView::I64(&labels, vec![labels.len()])),
    ]);
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &BTreeMap::new(), &tensors).unwrap();
    bytes
}

pub(super) fn sets() -> impl Strategy<Value = FeatureSet> {
    (1usize..20, 1usize..20).prop_flat_map(|(rows, columns)| {
        let bits = prop::collection::vec(any::<u32>(), rows * columns);
        (bits, prop::collection::vec(0u32..5, rows)).prop_map(move |(bits, labels)| {
            let finite = |bits: u32| if f32::from_bits(bits).is_finite() { f32::from_bits(bits) } else { -0.0 };
            let values = bits.into_iter().map(finite).collect();
            FeatureSet::new(Array2::from_shape_vec((rows, columns), values).unwrap(), labels, 5).unwrap()
        })
    })
}

proptest! {
    #![proptest_config(seeded(96))]

    #[test]
    fn a_written_set_is_read_back_bit_for_bit_from_either_format(set in sets()) {
        let bits = |set: &FeatureSet| set.features().iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for bytes in [npz_of(&set), safetensors_of(&set)] {
            let read = FeatureSet::read_from(Cursor::new(&bytes), Some(5), ENOUGH).unwrap();
            prop_assert_eq!(bits(&read), bits(&set));
            prop_assert_eq!(read.labels(), set.labels());
            prop_assert_eq!(read.digest(), set.digest());
        }
        prop_assert_eq!(npz_of(&set), npz_of(&set));
    }

    #[test]
    fn column_major_is_the_same_set(set in sets()) {
        let (rows, columns) = set.features().dim();
        let by_column: Vec<f32> = set.features().t().iter().copied().collect();
        let header = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': ({rows}, {columns}), }}");
        let labels: Vec<i64> = set.labels().iter().map(|&label| label.into()).collect();
        let labels = npy_with_header([1, 0], &format!("{{'descr': '<i8', 'fortran_order': True, 'shape': ({rows},), }}"), &i64_bytes(&labels));
        let bytes = npz(&npy_with_header([1, 0], &header, &f32_bytes(&by_column)), &labels);
        prop_assert_eq!(FeatureSet::read_from(Cursor::new(&bytes), Some(5), ENOUGH).unwrap(), set);
    }

    #[test]
    fn arbitrary_bytes_are_no_panic(magic in 0usize..3, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let magic: &[u8] = [&b""[..], b"PK\x03\x04", b"PK\x05\x06"][magic];
        prop_assert!(read(&[magic, &bytes].concat()).is_err());
    }

    #[test]
    fn arbitrary_headers_are_no_panic(header in "[{}()\\[\\]',: a-z0-9<]{0,60}") {
        let labels = super::archives::good_labels();
        prop_assert!(read(&npz(&npy_with_header([1, 0], &header, &[0; 16]), &labels)).is_err());
    }
}

proptest! {
    #![proptest_config(seeded(1500))]

    #[test]
    fn a_mutated_file_is_read_or_refused(
        which in 0usize..2,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let tensor_file = tensors(&[
            ("features", "F32", "[2,2]", &f32_bytes(&[1.0, 2.0, 0.0, -4.5])),
            ("labels", "I64", "[2]", &i64_bytes(&[2, 0])),
        ]);
        let mut bytes = [good_npz(), tensor_file][which].clone();
        for (index, byte) in edits {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(set) = read(&bytes) {
            prop_assert!(set.features().iter().all(|value| value.is_finite()));
            prop_assert!(set.labels().iter().all(|&label| label < 3));
        }
    }
}

#[test]
fn more_than_a_block_is_read_right() {
    // 3 blocks and a bit, of both arrays, deflated or not, in either order.
    let (rows, columns) = (25_001, 2);
    let features = Array2::from_shape_fn((rows, columns), |(row, column)| row as f32 - 0.5 * column as f32);
    let labels: Vec<u32> = (0..rows as u32).map(|row| row % 7).collect();
    let set = FeatureSet::new(features, labels, 7).unwrap();
    for bytes in [npz_of(&set), safetensors_of(&set)] {
        assert_eq!(FeatureSet::read_from(Cursor::new(&bytes), Some(7), ENOUGH).unwrap(), set);
    }
    let by_column: Vec<f32> = set.features().t().iter().copied().collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': ({rows}, {columns}), }}");
    let labels: Vec<i64> = set.labels().iter().map(|&label| label.into()).collect();
    let labels = super::archives::npy("<i8", &format!("({rows},)"), &i64_bytes(&labels));
    let features = npy_with_header([1, 0], &header, &f32_bytes(&by_column));
    let members: [(&str, &[u8]); 2] = [("features.npy", &features), ("labels.npy", &labels)];
    let bytes = super::archives::zip_of(&members, zip::CompressionMethod::Deflated);
    assert_eq!(FeatureSet::read_from(Cursor::new(&bytes), Some(7), ENOUGH).unwrap(), set);
}

#[test]
fn the_writer_refuses_what_was_not_promised() {
    let writer = || NpzWriter::new(Cursor::new(Vec::new()), 1, 2).unwrap();
    let message = |error: std::io::Error| error.to_string();
    assert!(message(writer().write_row(&[1.0]).unwrap_err()).contains("1 values, and should have 2"));
    assert!(message(writer().finish(&[0]).unwrap_err()).contains("0 rows and 1 labels"));
    let mut full = writer();
    full.write_row(&[1.0, 2.0]).unwrap();
    assert!(message(full.write_row(&[1.0, 2.0]).unwrap_err()).contains("more than 1 rows"));
    assert!(message(full.finish(&[]).unwrap_err()).contains("1 rows and 0 labels"));
    let endless = NpzWriter::new(Cursor::new(Vec::new()), usize::MAX, 2).unwrap_err();
    assert!(message(endless).contains("beyond 64 bits"));
}
