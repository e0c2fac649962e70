//! From a manifest to a state that serves.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    HeadId, HeadSource, LoadError, ModelState, PublishedHead, RegistryError, Series,
    builder::HeadBuilder,
    load::DeclaredFile,
    manifest::{Manifest, ManifestSeries, ManifestVersion},
    store::ModelStore,
};
use crate::heads::HeadFile;

/// Where the heads of a manifest are taken from.
#[derive(Default)]
pub(super) struct Sources<'a> {
    /// What is served already.
    pub(super) current: Option<&'a ModelState>,
    /// The head files of the model directory, by their SHA-256.
    pub(super) files: HashMap<String, &'a DeclaredFile>,
    /// Everything else.
    pub(super) store: Option<&'a ModelStore>,
}

impl<'a> Sources<'a> {
    /// The model directory, and what the state remembers.
    pub(super) fn at_start(files: &'a BTreeMap<String, DeclaredFile>, store: Option<&'a ModelStore>) -> Self {
        let files = files.values().map(|file| (file.parsed.digest.to_hex(), file)).collect();
        Self { current: None, files, store }
    }

    /// The same version of a head, if it is served. Versions never change, so it is the same but for its settings.
    fn served(&self, id: &HeadId, version: &ManifestVersion) -> Option<Arc<PublishedHead>> {
        let head = self.current?.head(&id.head, Some(id.version)).ok()?;
        if head.source != version.source {
            return None;
        }
        if head.settings == version.settings {
            return Some(Arc::clone(head));
        }
        let scoring = Arc::new(head.head.scoring(&version.settings));
        Some(Arc::new(PublishedHead { settings: version.settings, scoring, ..(**head).clone() }))
    }
}

/// Builds every head of a manifest that is not there already.
pub(super) fn restore(
    manifest: &Manifest,
    builder: &HeadBuilder,
    sources: &Sources<'_>,
) -> Result<ModelState, LoadError> {
    let mut state = ModelState {
        generation: manifest.generation,
        time: manifest.time,
        default: manifest.default.clone(),
        declared_default: manifest.declared_default.clone(),
        previous_defaults: manifest.previous_defaults.clone(),
        heads: manifest
            .heads
            .iter()
            .map(|(name, series)| {
                let ManifestSeries { declared, declared_version, next_version, .. } = series.clone();
                (name.clone(), Series { declared, declared_version, next_version, versions: Vec::new() })
            })
            .collect(),
        made_for: manifest.made_for.clone(),
    };
    let mut waiting: Vec<(HeadId, &ManifestVersion)> = manifest
        .heads
        .iter()
        .flat_map(|(head, series)| {
            series.versions.iter().map(|version| (HeadId { head: head.clone(), version: version.version }, version))
        })
        .collect();
    while !waiting.is_empty() {
        let n_before = waiting.len();
        let mut still_waiting = Vec::new();
        for (id, version) in waiting {
            let Some(built) = build_one(&id, version, &state, builder, sources)? else {
                still_waiting.push((id, version));
                continue;
            };
            if let Some(series) = state.heads.get_mut(&id.head) {
                series.versions.push(built);
                series.versions.sort_by_key(|head: &Arc<PublishedHead>| head.id.version);
            }
        }
        if let (true, Some((id, _))) = (still_waiting.len() == n_before, still_waiting.first()) {
            return Err(LoadError::Circle { head: id.head.clone() });
        }
        waiting = still_waiting;
    }
    if let Err(source) = state.default_head() {
        let HeadId { head, version } = manifest.default.clone();
        return Err(LoadError::Head { head, version, source });
    }
    Ok(state)
}

/// One version; `None` while its base is not there.
fn build_one(
    id: &HeadId,
    version: &ManifestVersion,
    state: &ModelState,
    builder: &HeadBuilder,
    sources: &Sources<'_>,
) -> Result<Option<Arc<PublishedHead>>, LoadError> {
    if let Some(served) = sources.served(id, version) {
        return Ok(Some(served));
    }
    let failed = |source: RegistryError| LoadError::Head { head: id.head.clone(), version: id.version, source };
    let built = match &version.source {
        HeadSource::File(digest) => {
            let file = match (sources.files.get(digest), sources.store) {
                (Some(file), _) => file.parsed.clone(),
                (None, store) => {
                    let store = store.ok_or(super::StateError::Absent)?;
                    HeadFile::parse(&store.blob(digest)?).map_err(|error| failed(error.into()))?
                }
            };
            builder.of_file(id.clone(), file, version.settings)
        }
        HeadSource::Derived(spec) => match state.head(&spec.base.head, Some(spec.base.version)) {
            Ok(base) => builder.derived(id.clone(), spec.clone(), base, version.settings),
            Err(_) => return Ok(None),
        },
    };
    built.map(|built| Some(Arc::new(built))).map_err(failed)
}
