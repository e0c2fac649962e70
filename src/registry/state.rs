//! One state of a model: immutable, and complete.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{ModelDigests, PreviousDefault, RegistryError};
use crate::{
    batcher::ScorerPool,
    heads::{Head, HeadKind, Scoring, Settings},
    metrics::HeadMetrics,
};

/// A head and one of its versions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadId {
    /// The head's name.
    pub head: String,
    /// From 1.
    pub version: u32,
}

/// How a head is derived from another version of a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DerivedSpec {
    /// The kind of the new head.
    pub kind: HeadKind,
    /// The version that it shares its weights with.
    pub base: HeadId,
    /// The settings that it starts from.
    pub initial: Settings,
}

/// Where a version comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadSource {
    /// A head file, by the SHA-256 of its bytes in hexadecimal.
    File(String),
    /// Another head.
    Derived(DerivedSpec),
}

/// A version of a head, ready to serve.
#[derive(Clone, Debug)]
pub struct PublishedHead {
    /// Its name and version.
    pub id: HeadId,
    /// Where it comes from.
    pub source: HeadSource,
    /// The head.
    pub head: Arc<Head>,
    /// What it is served with.
    pub settings: Settings,
    /// What follows from these settings.
    pub scoring: Arc<Scoring>,
    /// The sessions of its matrix product.
    pub scorers: Arc<ScorerPool>,
    /// Its counters.
    pub metrics: HeadMetrics,
}

/// The versions of a head.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The digest of what the model directory declared when it was last looked at. A declaration that differs from it
    /// becomes the next version; one that does not is left alone, also if its version was deleted.
    pub declared: Option<String>,
    /// The version that this declaration made. It may have been deleted.
    pub declared_version: Option<u32>,
    /// The version that the next one gets. Versions are never given twice.
    pub next_version: u32,
    /// In ascending order.
    pub versions: Vec<Arc<PublishedHead>>,
}

/// One state of a model.
#[derive(Clone, Debug)]
pub struct ModelState {
    /// Grows from state to state, from 1.
    pub generation: u64,
    /// When it was made; not known of one that an earlier version of equipoise wrote down.
    pub time: Option<chrono::DateTime<chrono::Utc>>,
    /// The version that answers when no head is named.
    pub default: HeadId,
    /// The default that the model directory declared when it was last looked at.
    pub declared_default: String,
    /// What a rollback goes back to: the last one first.
    pub previous_defaults: Vec<PreviousDefault>,
    /// The heads by name.
    pub heads: BTreeMap<String, Series>,
    /// What they are made for; not known of a model without a state directory.
    pub made_for: Option<ModelDigests>,
}

impl ModelState {
    /// The version of that number, or the latest.
    ///
    /// # Errors
    /// [`RegistryError::HeadNotFound`] or [`RegistryError::VersionNotFound`].
    pub fn head(&self, name: &str, version: Option<u32>) -> Result<&Arc<PublishedHead>, RegistryError> {
        let not_found = || RegistryError::HeadNotFound { name: name.to_owned() };
        let versions = &self.heads.get(name).ok_or_else(not_found)?.versions;
        let latest = versions.last().ok_or_else(not_found)?;
        match version {
            None => Ok(latest),
            Some(version) => versions
                .iter()
                .find(|head| head.id.version == version)
                .ok_or_else(|| RegistryError::VersionNotFound { name: name.to_owned(), version }),
        }
    }

    /// The version that answers when no head is named.
    ///
    /// # Errors
    /// None in a state that was put together by this crate: the default is never deleted.
    pub fn default_head(&self) -> Result<&Arc<PublishedHead>, RegistryError> {
        self.head(&self.default.head, Some(self.default.version))
    }

    /// Every head that has a version, with its versions in ascending order.
    pub fn series(&self) -> impl Iterator<Item = (&str, &[Arc<PublishedHead>])> {
        self.heads
            .iter()
            .filter(|(_, series)| !series.versions.is_empty())
            .map(|(name, series)| (name.as_str(), series.versions.as_slice()))
    }

    /// Every version of every head.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<PublishedHead>> {
        self.heads.values().flat_map(|series| &series.versions)
    }
}
