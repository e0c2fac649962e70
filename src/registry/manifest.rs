//! The state of a model as it is written down.
//!
//! ```json
//! {"format": "equipoise-manifest/3", "sha256": "of the bytes of `manifest`", "manifest": {"generation": 42, "parent": 41, ...}}
//! ```
//!
//! Format 2 was the same with less in `manifest`, and format 1 the inner object alone, without a digest and without its
//! circumstances. Both are read for ever. Whatever is added to the inner object takes a new number.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{AuditEntry, Author, Change, HeadId, HeadSource, ModelState, edit::rfc3339};
use crate::heads::{Digest, Settings};

const FAMILY: &str = "equipoise-manifest/";
const FORMAT_1: &str = "equipoise-manifest/1";
const FORMAT_2: &str = "equipoise-manifest/2";
/// The one that is written, and its number.
const FORMAT_3: &str = "equipoise-manifest/3";
const NEWEST: u32 = 3;

/// A state without what can be made again: heads by their source, and their settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) model: String,
    pub(super) generation: u64,
    /// The generation that was changed; none before the first, and in format 1.
    pub(super) parent: Option<u64>,
    /// Random: two writers never write the same bytes.
    pub(super) id: Option<String>,
    pub(super) author: Option<Author>,
    #[serde(with = "rfc3339")]
    pub(super) time: Option<DateTime<Utc>>,
    pub(super) change: Option<Change>,
    pub(super) default: HeadId,
    pub(super) declared_default: String,
    /// What a rollback goes back to, the last one first to be taken.
    pub(super) previous_defaults: Vec<PreviousDefault>,
    pub(super) heads: BTreeMap<String, ManifestSeries>,
    /// What its heads were made for. Earlier states do not say it.
    #[serde(default)]
    pub(super) made_for: Option<ModelDigests>,
}

/// What the heads of a model are made for, and is no part of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelDigests {
    /// The SHA-256 of the names of the classes, one a line, in hexadecimal.
    pub labels: String,
    /// That of the backbone's file, without weights that lie beside it.
    pub backbone: String,
}

/// A version that was the default, and how it was served then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviousDefault {
    /// The last generation at which it was.
    pub generation: u64,
    /// The head.
    pub head: String,
    /// Its version.
    pub version: u32,
    /// Its settings of then.
    pub settings: Settings,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestSeries {
    pub(super) declared: Option<String>,
    /// The version that this declaration made. Earlier states do not say it.
    #[serde(default)]
    pub(super) declared_version: Option<u32>,
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

/// What every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Format1 {
    #[serde(rename = "format")]
    _format: String,
    model: String,
    generation: u64,
    default: HeadId,
    declared_default: String,
    heads: BTreeMap<String, ManifestSeries>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<'a> {
    #[serde(rename = "format")]
    _format: String,
    sha256: String,
    #[serde(borrow)]
    manifest: &'a RawValue,
}

/// Why bytes are no manifest that can be used.
#[derive(Debug, PartialEq)]
pub(super) enum ManifestError {
    /// A later version of equipoise wrote it.
    Newer { format: String },
    /// It is not what was written.
    Damaged { problem: String },
}

impl Manifest {
    /// The manifest of a state; `circumstances` are the parent, the author and the change that made it.
    pub(super) fn of(model: &str, state: &ModelState, circumstances: (Option<u64>, &Author, Change)) -> Self {
        let heads = state.heads.iter().map(|(name, series)| {
            let version = |head: &std::sync::Arc<super::PublishedHead>| ManifestVersion {
                version: head.id.version,
                source: head.source.clone(),
                settings: head.settings,
            };
            let series = ManifestSeries {
                declared: series.declared.clone(),
                declared_version: series.declared_version,
                next_version: series.next_version,
                versions: series.versions.iter().map(version).collect(),
            };
            (name.clone(), series)
        });
        let (parent, author, change) = circumstances;
        Self {
            model: model.to_owned(),
            generation: state.generation,
            parent,
            id: Some(random_id()),
            author: Some(author.clone()),
            time: state.time,
            change: Some(change),
            default: state.default.clone(),
            declared_default: state.declared_default.clone(),
            previous_defaults: state.previous_defaults.clone(),
            heads: heads.collect(),
            made_for: state.made_for.clone(),
        }
    }

    /// The bytes that are written.
    pub(super) fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let inner = serde_json::to_string_pretty(self)?;
        let digest = Digest::of(inner.as_bytes()).to_hex();
        Ok(format!("{{\n\"format\": \"{FORMAT_3}\",\n\"sha256\": \"{digest}\",\n\"manifest\": {inner}\n}}\n")
            .into_bytes())
    }

    /// Reads what was written as this generation, in any format so far.
    pub(super) fn from_bytes(bytes: &[u8], generation: u64) -> Result<Self, ManifestError> {
        let damaged = |problem: String| ManifestError::Damaged { problem };
        let json = |error: serde_json::Error| damaged(error.to_string());
        let AnyFormat { format } = serde_json::from_slice(bytes).map_err(json)?;
        let manifest = match format.as_str() {
            FORMAT_2 | FORMAT_3 => {
                let Sealed { sha256, manifest, .. } = serde_json::from_slice(bytes).map_err(json)?;
                let found = Digest::of(manifest.get().as_bytes()).to_hex();
                if found != sha256 {
                    return Err(damaged(format!("its content has the SHA-256 {found}, and it says {sha256}")));
                }
                // It is what was written: who goes on without it loses what it says.
                serde_json::from_str(manifest.get()).map_err(|_| ManifestError::Newer { format })?
            }
            FORMAT_1 => {
                let read: Format1 = serde_json::from_slice(bytes).map_err(json)?;
                Self {
                    model: read.model,
                    generation: read.generation,
                    parent: None,
                    id: None,
                    author: None,
                    time: None,
                    change: None,
                    default: read.default,
                    declared_default: read.declared_default,
                    previous_defaults: Vec::new(),
                    heads: read.heads,
                    made_for: None,
                }
            }
            other => {
                let number = other.strip_prefix(FAMILY).and_then(|number| number.parse::<u32>().ok());
                return Err(match number {
                    Some(number) if number > NEWEST => ManifestError::Newer { format },
                    _ => damaged(format!("its format is `{other}`")),
                });
            }
        };
        match manifest.generation == generation {
            true => Ok(manifest),
            false => Err(damaged(format!("it says that it is generation {}", manifest.generation))),
        }
    }

    /// Gives no version again that one of the generations after it gave, up to `newest`, which are not to be served. Of one
    /// that is not among `later`, for it cannot be read or is gone, it is not known which: a change gives a head at most one.
    pub(super) fn pass_over(&mut self, later: &[Self], newest: u64) {
        for (name, series) in later.iter().flat_map(|later| &later.heads) {
            let next_version = &mut self.heads.entry(name.clone()).or_default().next_version;
            *next_version = series.next_version.max(*next_version);
        }
        let n_unknown = newest.saturating_sub(self.generation).saturating_sub(later.len() as u64);
        for series in self.heads.values_mut() {
            series.next_version = series.next_version.saturating_add(u32::try_from(n_unknown).unwrap_or(u32::MAX));
        }
    }

    /// The head files that it names, by their SHA-256.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &str> {
        self.heads.values().flat_map(|series| &series.versions).filter_map(|version| match &version.source {
            HeadSource::File(digest) => Some(digest.as_str()),
            HeadSource::Derived(_) => None,
        })
    }

    /// The version that the declaration of a head in the model directory made, unless it was deleted.
    pub(super) fn declared(&self, name: &str) -> Option<HeadId> {
        let ManifestSeries { declared, declared_version, versions, .. } = self.heads.get(name)?;
        declared.as_ref()?;
        // Where it does not stand, the latest is the best guess.
        let version = declared_version.or(versions.last().map(|last| last.version))?;
        let is_there = versions.iter().any(|found| found.version == version);
        is_there.then(|| HeadId { head: name.to_owned(), version })
    }

    /// Its default, and how that was served.
    pub(super) fn as_previous_default(&self) -> Option<PreviousDefault> {
        let HeadId { head, version } = self.default.clone();
        let settings = self.heads.get(&head)?.versions.iter().find(|found| found.version == version)?.settings;
        Some(PreviousDefault { generation: self.generation, head, version, settings })
    }

    /// What the audit tells of it.
    pub(super) fn audit_entry(&self) -> AuditEntry {
        AuditEntry {
            model: self.model.clone(),
            generation: Some(self.generation),
            parent: self.parent,
            author: self.author.clone(),
            time: self.time,
            change: self.change.clone(),
        }
    }
}

fn random_id() -> String {
    let mut random = [0; 8];
    // Without randomness there is the time.
    if getrandom::fill(&mut random).is_err() {
        random = Utc::now().timestamp_nanos_opt().unwrap_or_default().to_le_bytes();
    }
    format!("{:016x}", u64::from_le_bytes(random))
}
