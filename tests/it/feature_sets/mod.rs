//! Feature sets in both formats: what is read, and every way in which a file can lie.

mod archives;
mod arrays;
mod hostile_archives;
mod hostile_arrays;
mod hostile_tensors;
mod round_trip;

use std::io::Cursor;

use equipoise::dataset::{FeatureSet, FeatureSetError};

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
    }
}
