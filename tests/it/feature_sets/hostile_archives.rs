//! `.npz` files whose archive lies.

use std::io::Cursor;

use equipoise::dataset::{FeatureSet, FeatureSetError};
use zip::CompressionMethod;

use super::{
    Hostile,
    archives::{good_features, good_labels, good_npz, npy, npz, patched, record, renamed, zip_of},
    check, hostile, read, variant,
};

// Offsets in a central record.
const FLAGS: usize = 8;
const METHOD: usize = 10;
const CRC: usize = 16;
const PACKED_SIZE: usize = 20;
const UNPACKED_SIZE: usize = 24;

fn stored(members: &[(&str, &[u8])]) -> Vec<u8> {
    zip_of(members, CompressionMethod::Stored)
}

/// Every file of this module that must be refused whatever the limit.
pub(super) fn cases() -> Vec<Hostile> {
    [
        cases_of_archives_without_the_arrays_or_with_too_many_are_refused(),
        cases_of_what_is_no_archive_is_refused(),
        cases_of_bytes_around_an_archive_are_refused(),
        cases_of_members_that_lie_are_refused(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn cases_of_archives_without_the_arrays_or_with_too_many_are_refused() -> Vec<Hostile> {
    let (features, labels) = (good_features(), good_labels());
    let three = stored(&[("features.npy", &features), ("labels.npy", &labels), ("featurez.npy", &features)]);
    let two_labels = stored(&[("features.npy", &features), ("labels.npy", &labels), ("labelz.npy", &labels)]);
    let others = stored(&[("features.npy", &features), ("labels.npy", &labels), ("a.npy", b""), ("b.npy", b"")]);
    let both = stored(&[("features.npy", &features), ("labels.npy", &labels), ("feats.npy", &features)]);
    vec![
        hostile("nothing in it", stored(&[]), variant!(MissingFeatures), &["neither `features` nor `feats`"]),
        hostile(
            "no features",
            stored(&[("labels.npy", &labels)]),
            variant!(MissingFeatures),
            &["neither `features` nor `feats`"],
        ),
        hostile("no labels", stored(&[("features.npy", &features)]), variant!(MissingLabels), &["`labels`"]),
        hostile(
            "another name",
            stored(&[("Features.npy", &features), ("labels.npy", &labels)]),
            variant!(MissingFeatures),
            &[],
        ),
        hostile(
            "another place",
            stored(&[("x/features.npy", &features), ("labels.npy", &labels)]),
            variant!(MissingFeatures),
            &[],
        ),
        hostile("no suffix", stored(&[("features", &features), ("labels", &labels)]), variant!(MissingFeatures), &[]),
        hostile("features twice", renamed(&three, "featurez", "features"), variant!(DuplicateNames), &["same name"]),
        hostile("labels twice", renamed(&two_labels, "labelz", "labels"), variant!(DuplicateNames), &[]),
        hostile("others twice", renamed(&others, "b.npy", "a.npy"), variant!(DuplicateNames), &[]),
        hostile("both names", both, variant!(BothNames), &["`features`", "`feats`"]),
    ]
}

#[test]
fn archives_without_the_arrays_or_with_too_many_are_refused() {
    check(cases_of_archives_without_the_arrays_or_with_too_many_are_refused());
}

fn cases_of_what_is_no_archive_is_refused() -> Vec<Hostile> {
    let good = good_npz();
    let end = good.len() - 22;
    let with_end = |offset: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[end + offset..end + offset + value.len()].copy_from_slice(value);
        bytes
    };
    vec![
        hostile("empty", vec![], variant!(Container), &["safetensors", "shorter"]),
        hostile("two bytes", b"PK".to_vec(), variant!(Container), &[]),
        hostile("magic alone", b"PK\x03\x04".to_vec(), variant!(Container), &["npz"]),
        hostile("no directory", good[..good.len() / 2].to_vec(), variant!(Container), &["npz"]),
        hostile("no end", good[..end].to_vec(), variant!(Container), &["npz"]),
        hostile("cut short by a byte", good[..good.len() - 1].to_vec(), variant!(Container), &["npz"]),
        hostile("a bare array", good_features(), variant!(Container), &["npz", "labels are needed"]),
        hostile("more members than there are", with_end(8, &[9, 0, 9, 0]), variant!(Container), &["npz"]),
        hostile("65534 members", with_end(8, &[0xfe, 0xff, 0xfe, 0xff]), variant!(Container), &["npz"]),
        hostile("a directory beyond the file", with_end(16, &[0, 0, 0, 0x7f]), variant!(Container), &["npz"]),
        hostile("on another disk", with_end(4, &[1, 0]), variant!(Container), &["npz"]),
    ]
}

fn cases_of_bytes_around_an_archive_are_refused() -> Vec<Hostile> {
    let good = good_npz();
    let end = good.len() - 22;
    let behind = |bytes: &[u8]| [&good, bytes].concat();
    // What the second one says of places is right in the whole.
    let moved = {
        let mut second = good.clone();
        for at in [end + 16, record(&good, "features.npy", true) + 42, record(&good, "labels.npy", true) + 42] {
            let place = u32::from_le_bytes(second[at..at + 4].try_into().unwrap()) + good.len() as u32;
            second[at..at + 4].copy_from_slice(&place.to_le_bytes());
        }
        behind(&second)
    };
    let commented = {
        let mut archive = behind(b"x");
        archive[end + 20] = 1;
        archive
    };
    let mut wrong_end = good[end..].to_vec();
    wrong_end[16..20].copy_from_slice(&[1, 0, 0, 0]);
    let said = &["npz", "before or behind"];
    vec![
        hostile("two archives", behind(&good), variant!(Container), said),
        hostile("two archives as one", moved, variant!(Container), said),
        hostile("a byte behind it", behind(b"x"), variant!(Container), said),
        hostile("zeros behind it", behind(&[0; 4096]), variant!(Container), said),
        hostile("a second end", behind(&good[end..]), variant!(Container), said),
        hostile("an end that lies behind it", behind(&wrong_end), variant!(Container), said),
        hostile("a comment", commented, variant!(Container), said),
        hostile(
            "bytes before the end",
            [&good[..end], b"some bytes", &good[end..]].concat(),
            variant!(Container),
            said,
        ),
    ]
}

#[test]
fn bytes_around_an_archive_are_refused() {
    check(cases_of_bytes_around_an_archive_are_refused());
}

#[test]
fn what_is_no_archive_is_refused() {
    check(cases_of_what_is_no_archive_is_refused());
}

fn cases_of_members_that_lie_are_refused() -> Vec<Hostile> {
    let good = good_npz();
    let deflated =
        zip_of(&[("features.npy", &good_features()), ("labels.npy", &good_labels())], CompressionMethod::Deflated);
    let damage = |archive: &[u8], name: &str| {
        let mut archive = archive.to_vec();
        let data = record(&archive, name, false) + 30 + name.len();
        // The last byte of the header is a newline: the data stand behind it in a stored member.
        archive[data + 40] ^= 0x55;
        archive
    };
    let flip_last = |name: &str, len: usize| {
        let mut archive = good.clone();
        let data = record(&archive, name, false) + 30 + name.len();
        archive[data + len - 5] ^= 1;
        archive
    };
    let size = |archive: &[u8], name: &str, offset, size: u32| patched(archive, name, offset, &size.to_le_bytes());
    let n_features = good_features().len() as u32;
    let features = "features.npy";
    vec![
        hostile("encrypted features", patched(&good, features, FLAGS, &[1, 0]), variant!(Encrypted), &["`features`"]),
        hostile("encrypted labels", patched(&good, "labels.npy", FLAGS, &[1, 0]), variant!(Encrypted), &["`labels`"]),
        hostile(
            "bzip2",
            patched(&good, features, METHOD, &[12, 0]),
            variant!(Compression),
            &["`features`", "stored or deflated"],
        ),
        hostile("lzma", patched(&good, "labels.npy", METHOD, &[14, 0]), variant!(Compression), &["`labels`"]),
        hostile("unknown method", patched(&good, features, METHOD, &[99, 9]), variant!(Compression), &["`features`"]),
        hostile(
            "stored called deflated",
            patched(&good, features, METHOD, &[8, 0]),
            variant!(Damaged),
            &["`features`"],
        ),
        hostile(
            "deflated called stored",
            patched(&deflated, features, METHOD, &[0, 0]),
            |error| !matches!(error, FeatureSetError::Io(_)),
            &["`features`"],
        ),
        hostile(
            "wrong checksum",
            patched(&good, features, CRC, &[1, 2, 3, 4]),
            variant!(Damaged),
            &["`features`", "checksum"],
        ),
        hostile(
            "wrong checksum of labels",
            patched(&good, "labels.npy", CRC, &[1, 2, 3, 4]),
            variant!(Damaged),
            &["`labels`", "checksum"],
        ),
        hostile(
            "a flipped bit",
            flip_last(features, n_features as usize),
            variant!(Damaged),
            &["`features`", "checksum"],
        ),
        hostile(
            "a damaged stream",
            damage(&deflated, features),
            |error| !matches!(error, FeatureSetError::Io(_)),
            &["`features`"],
        ),
        hostile(
            "no local record",
            {
                let mut archive = good.clone();
                archive[record(&good, "labels.npy", false)] = b'X';
                archive
            },
            variant!(Damaged),
            &["`labels`"],
        ),
        hostile(
            "a declared size of 4 GB",
            size(&good, features, UNPACKED_SIZE, 0xf000_0000),
            variant!(TooLarge),
            &["`features`", "1048576"],
        ),
        hostile(
            "labels of 4 GB",
            size(&good, "labels.npy", UNPACKED_SIZE, 0xf000_0000),
            variant!(TooLarge),
            &["`labels`"],
        ),
        hostile(
            "a deflated member of 4 GB",
            size(&deflated, features, UNPACKED_SIZE, 0xf000_0000),
            variant!(TooLarge),
            &["`features`"],
        ),
        hostile(
            "a byte less than there is",
            size(&deflated, features, UNPACKED_SIZE, n_features - 1),
            variant!(Short),
            &["`features`"],
        ),
        hostile(
            "a byte more than there is",
            size(&deflated, features, UNPACKED_SIZE, n_features + 1),
            variant!(TrailingBytes),
            &["`features`"],
        ),
        hostile(
            "nothing declared",
            size(&deflated, features, UNPACKED_SIZE, 0),
            |error| !matches!(error, FeatureSetError::Io(_)),
            &["`features`"],
        ),
        hostile(
            "packed into nothing",
            size(&deflated, features, PACKED_SIZE, 0),
            |error| !matches!(error, FeatureSetError::Io(_)),
            &["`features`"],
        ),
    ]
}

#[test]
fn members_that_lie_are_refused() {
    check(cases_of_members_that_lie_are_refused());
}

#[test]
fn a_bomb_is_refused_by_what_it_declares_and_held_to_it() {
    // 4 MiB of zeros packed into some kilobytes, against a limit of 1 MiB.
    let rows = 1 << 20;
    let features = npy("<f4", &format!("({rows}, 1)"), &vec![0; rows * 4]);
    let labels = npy("|u1", &format!("({rows},)"), &vec![0; rows]);
    let bomb = zip_of(&[("features.npy", &features), ("labels.npy", &labels)], CompressionMethod::Deflated);
    assert!(bomb.len() < 20_000);
    assert!(matches!(read(&bomb).unwrap_err(), FeatureSetError::TooLarge { .. }));
    // Declaring less does not help: the shape then asks for more than there is said to be.
    let modest = patched(&bomb, "labels.npy", UNPACKED_SIZE, &1000u32.to_le_bytes());
    let modest = patched(&modest, "features.npy", UNPACKED_SIZE, &1000u32.to_le_bytes());
    let error = FeatureSet::read_from(Cursor::new(&modest), Some(3), u64::MAX).unwrap_err();
    assert!(matches!(error, FeatureSetError::Short { member: "labels", found: ..1000, .. }), "{error:?}");
    // A byte below what it takes is too little, and what it takes is enough. The labels are held in four bytes each.
    let set = |limit| FeatureSet::read_from(Cursor::new(&bomb), Some(3), limit);
    let enough = rows as u64 * 8;
    assert!(matches!(set(enough - 1).unwrap_err(), FeatureSetError::TooLarge { member: "features", .. }));
    assert_eq!(set(enough).unwrap().num_zero_rows(), rows);
}

#[test]
fn data_longer_than_declared_are_refused() {
    // The shape fits what is declared, and the stream goes on.
    let long = npy("<f4", "(2, 2)", &[0; 4096]);
    let archive = zip_of(&[("features.npy", &long), ("labels.npy", &good_labels())], CompressionMethod::Deflated);
    let declared = good_features().len() as u32;
    let error = read(&patched(&archive, "features.npy", UNPACKED_SIZE, &declared.to_le_bytes())).unwrap_err();
    assert!(matches!(error, FeatureSetError::Damaged { member: "features", .. }), "{error:?}");
}

#[test]
fn other_members_are_ignored_unread() {
    let archive = stored(&[("features.npy", &good_features()), ("labels.npy", &good_labels()), ("huge.npy", &[7; 64])]);
    let reference = read(&npz(&good_features(), &good_labels())).unwrap();
    for (offset, value) in [(CRC, [9; 4]), (UNPACKED_SIZE, [0xf0; 4]), (METHOD, [99, 0, 0, 0])] {
        let value = &value[..if offset == METHOD { 2 } else { 4 }];
        assert_eq!(read(&patched(&archive, "huge.npy", offset, value)).unwrap(), reference);
    }
    assert_eq!(read(&patched(&archive, "huge.npy", FLAGS, &[1, 0])).unwrap(), reference);
}
