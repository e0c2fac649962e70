//! What is loaded: models, their heads, and the settings these are served with.
//!
//! A reader takes one [`ModelState`] for a request and sees nothing else of it: an answer never mixes two states. A writer
//! makes a new state from the current one, writes it down, and only then swaps it in.
//!
//! ```text
//! directory, backbone, load     a model directory, and the sessions of its backbone
//! start, declare, restore       which state it starts with: the newest that is whole, and what the directory adds to it
//! state, builder                heads that are ready to serve
//! model, changes, edit          how one state becomes the next; who asked for it
//! replica                       how it follows a store that other servers change too
//! store, objects, manifest      where and how it is written down
//! history, gc                   who changed what; what may be removed
//! feature_sets, fit_files       what else there is in the state directory
//! ```

mod backbone;
mod builder;
mod changes;
mod declare;
mod directory;
mod edit;
mod error;
mod feature_sets;
mod fit_files;
mod gc;
mod history;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod load;
mod manifest;
mod model;
mod objects;
mod replica;
mod restore;
mod start;
mod state;
mod store;
mod tuning;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

pub(crate) use backbone::classifier_head_file;
pub(crate) use directory::read_labels;
pub use directory::{DirectoryError, HeadDeclaration, HeadOrigin, ModelDirectory};
pub use edit::{AuditEntry, Author, Change, Edit, IfMatch};
pub use error::{RegistryError, StateError};
pub use feature_sets::{FeatureSetInUse, FeatureSetQuota, FeatureSetStore, FeatureSetUpload, Kept, StoredSet};
pub use fit_files::FitFiles;
pub use gc::{Gc, GcOptions, GcReport};
pub use history::{AuditCursor, AuditPage, audit};
pub use load::{LoadError, LoadOptions, load_model, load_model_with};
pub use manifest::{ModelDigests, PreviousDefault};
pub use model::{Changed, Model};
pub use replica::Poller;
pub use state::{DerivedSpec, HeadId, HeadSource, ModelState, PublishedHead, Series};
pub use store::StateDir;
pub use tuning::{Measured, MeasuredAlone, Plan, Settled, Tuning, tune};

/// Whether `name` is a name of a model or a head: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
pub fn is_valid_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    matches!(bytes.len(), 1..=64)
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// Reads `NAME` or `NAME@VERSION`; `None` if the name does not fit its pattern or the version is not a number.
pub fn parse_head_reference(reference: &str) -> Option<(&str, Option<u32>)> {
    let (name, version) = match reference.split_once('@') {
        None => (reference, None),
        Some((name, version)) if version.bytes().all(|byte| byte.is_ascii_digit()) => {
            (name, Some(version.parse().ok()?))
        }
        Some(_) => return None,
    };
    is_valid_name(name).then_some((name, version))
}

/// The models of the process. Empty until all are loaded, then fixed; what changes is inside of each.
#[derive(Debug, Default)]
pub struct Registry {
    loaded: OnceLock<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    default: Arc<Model>,
    by_name: BTreeMap<String, Arc<Model>>,
}

impl Registry {
    /// Takes the models, the default one first. Only the first call counts.
    pub fn fill(&self, models: Vec<Arc<Model>>) {
        if let Some(default) = models.first().cloned() {
            let by_name = models.into_iter().map(|model| (model.name().to_owned(), model)).collect();
            // A second call would be a mistake of the caller's; what serves stays.
            let _ = self.loaded.set(Loaded { default, by_name });
        }
    }

    /// Whether the models are loaded.
    pub fn is_loaded(&self) -> bool {
        self.loaded.get().is_some()
    }

    /// Every model, by name; nothing until all are loaded.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.loaded.get().into_iter().flat_map(|loaded| loaded.by_name.values())
    }

    /// The model of that name, or the default one.
    ///
    /// # Errors
    /// [`RegistryError::NotLoaded`] while loading, [`RegistryError::ModelNotFound`] if there is none of that name.
    pub fn model(&self, name: Option<&str>) -> Result<&Arc<Model>, RegistryError> {
        let loaded = self.loaded.get().ok_or(RegistryError::NotLoaded)?;
        match name {
            None => Ok(&loaded.default),
            Some(name) => {
                let not_found = || RegistryError::ModelNotFound { name: name.to_owned() };
                loaded.by_name.get(name).ok_or_else(not_found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_digits_and_three_marks() {
        let long = "a".repeat(64);
        for name in ["a", "Z9", "tau-0.7_x", long.as_str()] {
            assert!(is_valid_name(name), "{name}");
        }
        let too_long = "a".repeat(65);
        for name in ["", ".", "-a", "_a", "a/b", "a b", "ä", "a@1", too_long.as_str()] {
            assert!(!is_valid_name(name), "{name}");
        }
    }

    #[test]
    fn a_reference_may_name_a_version() {
        assert_eq!(parse_head_reference("crt"), Some(("crt", None)));
        assert_eq!(parse_head_reference("crt@12"), Some(("crt", Some(12))));
        for reference in ["", "@1", "crt@", "crt@x", "crt@-1", "crt@+1", "crt@1@2", "crt@99999999999"] {
            assert_eq!(parse_head_reference(reference), None, "{reference}");
        }
    }
}
