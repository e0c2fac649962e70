//! Removing what no state needs any more: old generations, and head files that none of the kept ones names.
//!
//! What they changed stays in the audit. Where several servers share the store nobody is asked to stop: what was written
//! within the last hour is left alone, so that a head file whose manifest is still to come is not taken for an old one, and
//! no server that stopped for a moment finds its generation gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
    time::Duration,
};

use super::{
    AuditEntry, StateError,
    history::history_file,
    objects::{Listed, Objects},
    store::{blob, generation_of, generations_folder, lock, manifest, manifest_path},
};

/// What is younger is left alone where others may be at work.
const GRACE: Duration = Duration::from_secs(3600);

/// What is to be removed.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// The newest generations of each model that are kept.
    pub keep_generations: usize,
    /// Only say what would be.
    pub is_dry_run: bool,
}

/// What was removed of one model, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// The model.
    pub model: String,
    /// Files that were removed, as they are named to a person.
    pub removed: Vec<String>,
    /// The bytes of these.
    pub bytes: u64,
    /// Generations that are kept.
    pub n_generations: usize,
    /// Head files that are kept.
    pub n_blobs: usize,
    /// Why something was left that might go, and files that are damaged.
    pub notes: Vec<String>,
}

/// A state directory, or a store that servers share, to be cleaned up.
#[derive(Debug)]
pub struct Gc {
    objects: Objects,
    grace: Duration,
    _lock: Option<File>,
}

impl Gc {
    /// A state directory. Unless it is only looked at, no server may have it.
    ///
    /// # Errors
    /// [`StateError::Locked`]; [`StateError::Io`], also if there is no such folder.
    pub fn of_directory(path: &Path, options: GcOptions) -> Result<Self, StateError> {
        // A folder that is not there is a wrong name, and not to be made.
        std::fs::metadata(path).map_err(|source| StateError::Io { path: path.to_owned(), source })?;
        let lock = if options.is_dry_run { None } else { Some(lock(path)?) };
        Ok(Self { objects: Objects::in_folder(path)?, grace: Duration::ZERO, _lock: lock })
    }

    /// A store that servers share; they may go on meanwhile. `client_options` are for the client of a cloud.
    ///
    /// # Errors
    /// [`StateError::Url`], [`StateError::Io`].
    pub fn of_url(url: &str, client_options: &[(String, String)]) -> Result<Self, StateError> {
        Ok(Self { objects: Objects::at_url(url, client_options)?, grace: GRACE, _lock: None })
    }

    /// Removes what is not needed, of every model.
    ///
    /// # Errors
    /// [`StateError`]; then what was removed before is gone, and nothing that is needed.
    pub fn run(&self, options: GcOptions) -> Result<Vec<GcReport>, StateError> {
        self.objects.folders("models")?.into_iter().map(|model| self.of_model(model, options)).collect()
    }

    fn is_old(&self, object: &Listed) -> bool {
        let age = chrono::Utc::now().signed_duration_since(object.modified);
        self.grace.is_zero() || age.to_std().is_ok_and(|age| age > self.grace)
    }

    fn of_model(&self, model: String, options: GcOptions) -> Result<GcReport, StateError> {
        let folder = format!("models/{model}");
        let mut report = GcReport { model, ..GcReport::default() };
        let all: BTreeMap<u64, Listed> = self
            .objects
            .list(&generations_folder(&folder))?
            .into_iter()
            .filter_map(|object| Some((generation_of(&object)?, object)))
            .collect();
        // Those that cannot be read do not count, and stay: somebody may want to see them.
        let (mut kept, mut old, mut is_all_known) = (Vec::new(), Vec::new(), true);
        for &generation in all.keys().rev() {
            if kept.len() >= options.keep_generations.max(1) {
                old.push(generation);
                continue;
            }
            match manifest(&self.objects, &folder, generation) {
                Ok(Some(manifest)) => kept.push(manifest),
                Ok(None) => {}
                Err(error @ (StateError::Damaged { .. } | StateError::Newer { .. })) => {
                    report.notes.push(error.to_string());
                    is_all_known = false;
                }
                Err(error) => return Err(error),
            }
        }
        old.reverse();
        let left = self.remove_generations(&folder, (&all, &old), options, &mut report)?;
        report.n_generations = all.len() - (old.len() - left.len());
        if !is_all_known {
            report.notes.push("no head files were removed: what a damaged generation names is not known".to_owned());
            return Ok(report);
        }
        let mut named: BTreeSet<String> =
            kept.iter().flat_map(|manifest| manifest.blobs().map(str::to_owned)).collect();
        for generation in left {
            match manifest(&self.objects, &folder, generation) {
                Ok(left) => named.extend(left.iter().flat_map(|left| left.blobs()).map(str::to_owned)),
                Err(StateError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for object in self.objects.list(&format!("{folder}/blobs"))? {
            if named.contains(&object.name) {
                report.n_blobs += 1;
                if let Err(error) = blob(&self.objects, &folder, &object.name) {
                    report.notes.push(error.to_string());
                }
                named.remove(&object.name);
            } else if self.is_old(&object) {
                self.remove(&format!("{folder}/blobs/{}", object.name), object.bytes, options, &mut report)?;
            }
        }
        let missing = named.iter().map(|digest| self.objects.name(&format!("{folder}/blobs/{digest}")));
        report.notes.extend(missing.map(|name| format!("{name} is damaged: it is missing")));
        Ok(report)
    }

    /// Removes manifests, the oldest first, once what they changed is kept; gives those that stay.
    fn remove_generations(
        &self,
        folder: &str,
        (listed, old): (&BTreeMap<u64, Listed>, &[u64]),
        options: GcOptions,
        report: &mut GcReport,
    ) -> Result<Vec<u64>, StateError> {
        let is_old = |generation: &&u64| listed.get(generation).is_none_or(|object| self.is_old(object));
        let n_going = old.iter().take_while(is_old).count();
        let (going, left) = old.split_at(n_going);
        let (mut entries, mut removed): (Vec<AuditEntry>, Vec<u64>) = (Vec::new(), Vec::new());
        for &generation in going {
            match manifest(&self.objects, folder, generation) {
                Ok(Some(manifest)) => {
                    entries.push(manifest.audit_entry());
                    removed.push(generation);
                }
                Ok(None) => {}
                Err(error @ (StateError::Damaged { .. } | StateError::Newer { .. })) => {
                    report.notes.push(format!("{error}; it was left where it is"));
                }
                Err(error) => return Err(error),
            }
        }
        if !entries.is_empty() && !options.is_dry_run {
            let (name, bytes) = history_file(&entries)
                .map_err(|error| StateError::Io { path: "history".into(), source: std::io::Error::other(error) })?;
            // One of this name is the same: its digest is in it.
            self.objects.create(&format!("{folder}/history/{name}"), bytes.into())?;
        }
        for generation in removed {
            let bytes = listed.get(&generation).map_or(0, |object| object.bytes);
            self.remove(&manifest_path(folder, generation), bytes, options, report)?;
        }
        Ok(left.to_vec())
    }

    fn remove(&self, path: &str, bytes: u64, options: GcOptions, report: &mut GcReport) -> Result<(), StateError> {
        if !options.is_dry_run {
            self.objects.delete(path)?;
        }
        report.removed.push(self.objects.name(path));
        report.bytes += bytes;
        Ok(())
    }
}
