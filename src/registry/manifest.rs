//! The state of a model as it is written down.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{HeadId, HeadSource, ModelState};
use crate::heads::Settings;

/// The value of `format`; a manifest of another one is refused.
pub(super) const FORMAT: &str = "equipoise-manifest/1";

/// A state without what can be made again: heads by their source, and their settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: String,
    pub(super) model: String,
    pub(super) generation: u64,
    pub(super) default: HeadId,
    pub(super) declared_default: String,
    pub(super) heads: BTreeMap<String, ManifestSeries>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestSeries {
    pub(super) declared: Option<String>,
    pub(super) next_version: u32,
    pub(super) versions: Vec<ManifestVersion>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestVersion {
    pub(super) version: u32,
    pub(super) source: HeadSource,
    pub(super) settings: Settings,
}

impl Manifest {
    pub(super) fn of(model: &str, state: &ModelState) -> Self {
        let heads = state.heads.iter().map(|(name, series)| {
            let version = |head: &std::sync::Arc<super::PublishedHead>| ManifestVersion {
                version: head.id.version,
                source: head.source.clone(),
                settings: head.settings,
            };
            let series = ManifestSeries {
                declared: series.declared.clone(),
                next_version: series.next_version,
                versions: series.versions.iter().map(version).collect(),
            };
            (name.clone(), series)
        });
        Self {
            format: FORMAT.to_owned(),
            model: model.to_owned(),
            generation: state.generation,
            default: state.default.clone(),
            declared_default: state.declared_default.clone(),
            heads: heads.collect(),
        }
    }
}
