//! Feature sets in both formats: what is read, and every way in which a file can lie.

pub(crate) mod archives;
mod arrays;
mod hostile_archives;
mod hostile_arrays;
mod hostile_tensors;
mod mapped;
mod round_trip;

use std::io::Cursor;

use equipoise::dataset::{Expected, FeatureSet, FeatureSetError};

pub(super) const ENOUGH: u64 = 1 << 20;

pub(super) fn read(bytes: &[u8]) -> Result<FeatureSet, FeatureSetError> {
    FeatureSet::read_from(Cursor::new(bytes), Some(3), ENOUGH)
}

/// One file that must be refused, and what the message must name.
pub(super) struct Hostile {
    what: String,
    bytes: Vec<u8>,
    variant: fn(&FeatureSetError) -> bool,
    names: Vec<&'static str>,
}

pub(super) fn hostile(
    what: impl Into<String>,
    bytes: Vec<u8>,
    variant: fn(&FeatureSetError) -> bool,
    names: &[&'static str],
) -> Hostile {
    Hostile { what: what.into(), bytes, variant, names: names.to_vec() }
}

/// `variant!(Short)` tells whether an error is of that variant.
macro_rules! variant {
    ($variant:ident) => {
        |error| matches!(error, equipoise::dataset::FeatureSetError::$variant { .. })
    };
}
pub(super) use variant;

/// What each file that must be refused is, and its bytes.
pub(crate) fn hostile_files() -> Vec<(String, Vec<u8>)> {
    let cases = [hostile_archives::cases(), hostile_arrays::cases(), hostile_tensors::cases()];
    cases.into_iter().flatten().map(|Hostile { what, bytes, .. }| (what, bytes)).collect()
}

#[track_caller]
pub(super) fn check(cases: Vec<Hostile>) {
    for Hostile { what, bytes, variant, names } in cases {
        let error = read(&bytes).err().unwrap_or_else(|| panic!("{what}: it was read"));
        assert!(variant(&error), "{what}: another variant: {error:?}");
        let message = error.to_string();
        for name in names {
            assert!(message.contains(name), "{what}: `{message}` does not name `{name}`");
        }
        assert!(message.len() < 400, "{what}: {} bytes of message", message.len());
        refused_in_every_way(&what, &bytes, &message);
    }
}

/// Reading it from its path and converting it say the same of it, and leave nothing behind.
#[track_caller]
fn refused_in_every_way(what: &str, bytes: &[u8], message: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile");
    std::fs::write(&path, bytes).unwrap();
    if !message.contains("the limit is 1048576") {
        assert_eq!(FeatureSet::read(&path, Some(3), ENOUGH).unwrap_err().to_string(), message, "{what}: read");
    }
    std::fs::remove_file(&path).unwrap();
    let expected = Expected { num_classes: Some(3), feature_dim: None, max_bytes: ENOUGH };
    let error = FeatureSet::convert(Cursor::new(bytes), &expected, &path).unwrap_err();
    assert_eq!(error.to_string(), message, "{what}: converted");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{what}: something is left");
}
