//! Removing what no state needs any more: old generations, and head files that none of the kept ones names.
//!
//! What they changed stays in the audit. Where several servers share the store nobody is asked to stop: what was written
//! within the last hour is left alone, so that a head file whose manifest is still to come is not taken for an old one, and
//! no server that stopped for a moment finds its generation gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use object_store::{ObjectMeta, ObjectStore};

use super::{
    AuditEntry, StateError,
    history::history_file,
    objects::{Listed, Objects},
    store::{blob, files_where, generation_of, generations_folder, io_error, is_staged, lock, manifest, manifest_path},
};

/// What is younger is left alone where others may be at work.
const GRACE: Duration = Duration::from_secs(3600);
/// Of head files that were removed a moment ago, and may have to be written again: then it is looked whether they do.
const HELD_BYTES: u64 = 1 << 28;
/// Written to learn what time it is where the store is.
const CLOCK: &str = "clock";

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

    /// Any other store that servers share. `place` is what it is called in errors; what is younger than `grace` stays.
    ///
    /// # Errors
    /// [`StateError::Io`] if its thread cannot be started.
    pub fn of_store(store: Arc<dyn ObjectStore>, place: &str, grace: Duration) -> Result<Self, StateError> {
        Ok(Self { objects: Objects::of(store, place, None)?, grace, _lock: None })
    }

    /// Removes what is not needed, of every model.
    ///
    /// # Errors
    /// [`StateError`]; then what was removed before is gone, and nothing that is needed.
    pub fn run(&self, options: GcOptions) -> Result<Vec<GcReport>, StateError> {
        let written_before = self.written_before(options)?;
        let sweep = Sweep { objects: &self.objects, options, written_before };
        self.objects.folders("models")?.into_iter().map(|model| sweep.of_model(model)).collect()
    }

    /// The time before which must have been written what may go; `None` where nobody else is at work.
    ///
    /// It is told by the clock of the store, which has told the times of all that is there: this machine may think that it is
    /// later, and would take a head file for an old one whose generation is being written.
    fn written_before(&self, options: GcOptions) -> Result<Option<DateTime<Utc>>, StateError> {
        if self.grace.is_zero() {
            return Ok(None);
        }
        let now = match options.is_dry_run {
            // Who only looks writes nothing.
            true => Utc::now(),
            false => {
                self.objects.put(CLOCK, Bytes::new())?;
                let clock = self.objects.meta(CLOCK)?.ok_or_else(|| StateError::Unreachable {
                    object: self.objects.name(CLOCK),
                    problem: "it was written and is not there".to_owned(),
                })?;
                clock.last_modified
            }
        };
        let grace = TimeDelta::from_std(self.grace).ok();
        Ok(Some(grace.and_then(|grace| now.checked_sub_signed(grace)).unwrap_or(DateTime::<Utc>::MIN_UTC)))
    }
}

/// One run.
struct Sweep<'a> {
    objects: &'a Objects,
    options: GcOptions,
    written_before: Option<DateTime<Utc>>,
}

impl Sweep<'_> {
    fn is_old(&self, modified: DateTime<Utc>) -> bool {
        self.written_before.is_none_or(|written_before| modified < written_before)
    }

    fn of_model(&self, model: String) -> Result<GcReport, StateError> {
        let folder = format!("models/{model}");
        let mut report = GcReport { model, ..GcReport::default() };
        self.remove_left_overs(&folder, &mut report)?;
        let all: BTreeMap<u64, Listed> = self
            .objects
            .list(&generations_folder(&folder))?
            .into_iter()
            .filter_map(|object| Some((generation_of(&object)?, object)))
            .collect();
        // Those that cannot be read do not count, and stay: somebody may want to see them.
        let (mut kept, mut old, mut is_all_known) = (Vec::new(), Vec::new(), true);
        for &generation in all.keys().rev() {
            if kept.len() >= self.options.keep_generations.max(1) {
                old.push(generation);
                continue;
            }
            match manifest(self.objects, &folder, generation) {
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
        let left = self.remove_generations(&folder, (&all, &old), &mut report)?;
        report.n_generations = all.len() - (old.len() - left.len());
        if !is_all_known {
            report.notes.push("no head files were removed: what a damaged generation names is not known".to_owned());
            return Ok(report);
        }
        let mut named: BTreeSet<String> =
            kept.iter().flat_map(|manifest| manifest.blobs().map(str::to_owned)).collect();
        for generation in left {
            match manifest(self.objects, &folder, generation) {
                Ok(left) => named.extend(left.iter().flat_map(|left| left.blobs()).map(str::to_owned)),
                Err(StateError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let listed = self.objects.list(&format!("{folder}/blobs"))?;
        let (kept, unnamed): (Vec<_>, Vec<_>) = listed.into_iter().partition(|object| named.contains(&object.name));
        report.n_blobs = kept.len();
        let newest = all.keys().next_back().copied().unwrap_or(0);
        self.remove_blobs(&folder, (&unnamed, newest), &mut report)?;
        // Last, as it reads all of them: what is listed is to be young where it is removed.
        for digest in &named {
            if let Err(error) = blob(self.objects, &folder, digest) {
                report.notes.push(error.to_string());
            }
        }
        Ok(report)
    }

    /// Removes head files that no generation up to `newest` names. Where others are at work, one of them may be published
    /// again meanwhile.
    fn remove_blobs(
        &self,
        folder: &str,
        (unnamed, newest): (&[Listed], u64),
        report: &mut GcReport,
    ) -> Result<(), StateError> {
        let mut removed = Vec::new();
        let swept = self.sweep_blobs(folder, (unnamed, newest), &mut removed, report);
        // Also where something went wrong: what has gone may be needed.
        swept.and(self.put_back(folder, (&removed, newest), report))
    }

    /// Removes them, and leaves in `removed` what is still to be looked for.
    fn sweep_blobs<'a>(
        &self,
        folder: &str,
        (unnamed, newest): (&'a [Listed], u64),
        removed: &mut Vec<(&'a str, Bytes)>,
        report: &mut GcReport,
    ) -> Result<(), StateError> {
        let mut n_bytes = 0;
        for object in unnamed {
            let path = format!("{folder}/blobs/{}", object.name);
            // Who publishes it writes it anew; the list is older than that.
            let is_old = |found: ObjectMeta| self.is_old(found.last_modified);
            if !self.is_old(object.modified) || !self.objects.meta(&path)?.is_some_and(is_old) {
                continue;
            }
            if self.written_before.is_some()
                && !self.options.is_dry_run
                && let Some(bytes) = self.objects.get(&path)?
            {
                n_bytes += object.bytes;
                removed.push((object.name.as_str(), bytes));
            }
            self.remove(&path, object.bytes, report)?;
            if n_bytes > HELD_BYTES {
                self.put_back(folder, (removed, newest), report)?;
                removed.clear();
                n_bytes = 0;
            }
        }
        Ok(())
    }

    /// Writes again what was removed of the head files that a generation after `newest` names.
    fn put_back(
        &self,
        folder: &str,
        (removed, newest): (&[(&str, Bytes)], u64),
        report: &mut GcReport,
    ) -> Result<(), StateError> {
        if removed.is_empty() {
            return Ok(());
        }
        for generation in newest + 1.. {
            let manifest = manifest(self.objects, folder, generation);
            if matches!(manifest, Ok(None)) {
                break;
            }
            for (digest, bytes) in removed {
                // One that cannot be read may name any of them.
                let named = manifest.as_ref().ok().and_then(Option::as_ref);
                if named.is_none_or(|manifest| manifest.blobs().any(|blob| blob == *digest)) {
                    let path = format!("{folder}/blobs/{digest}");
                    self.objects.put(&path, bytes.clone())?;
                    report
                        .notes
                        .push(format!("{} was published meanwhile, and written again", self.objects.name(&path)));
                }
            }
            match manifest {
                Ok(_) | Err(StateError::Damaged { .. } | StateError::Newer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes manifests, the oldest first, once what they changed is kept; gives those that stay.
    fn remove_generations(
        &self,
        folder: &str,
        (listed, old): (&BTreeMap<u64, Listed>, &[u64]),
        report: &mut GcReport,
    ) -> Result<Vec<u64>, StateError> {
        let is_old = |generation: &&u64| listed.get(generation).is_none_or(|object| self.is_old(object.modified));
        let n_going = old.iter().take_while(is_old).count();
        let (going, left) = old.split_at(n_going);
        let (mut entries, mut removed): (Vec<AuditEntry>, Vec<u64>) = (Vec::new(), Vec::new());
        for &generation in going {
            match manifest(self.objects, folder, generation) {
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
        if !entries.is_empty() && !self.options.is_dry_run {
            let (name, bytes) = history_file(&entries)
                .map_err(|error| StateError::Io { path: "history".into(), source: std::io::Error::other(error) })?;
            // One of this name is the same, for its digest is in it, or half of that.
            self.objects.put(&format!("{folder}/history/{name}"), bytes.into())?;
        }
        for generation in removed {
            let bytes = listed.get(&generation).map_or(0, |object| object.bytes);
            self.remove(&manifest_path(folder, generation), bytes, report)?;
        }
        Ok(left.to_vec())
    }

    /// Removes the files of writers that were ended in the middle. In a bucket there are none.
    fn remove_left_overs(&self, folder: &str, report: &mut GcReport) -> Result<(), StateError> {
        if !self.objects.is_local() {
            return Ok(());
        }
        for path in files_where(Path::new(&self.objects.name(folder)), is_staged) {
            // Its writer may have come to an end meanwhile.
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            if !self.is_old(metadata.modified().map_err(io_error(&path))?.into()) {
                continue;
            }
            if !self.options.is_dry_run {
                std::fs::remove_file(&path).map_err(io_error(&path))?;
            }
            report.removed.push(path.display().to_string());
            report.bytes += metadata.len();
        }
        Ok(())
    }

    fn remove(&self, path: &str, bytes: u64, report: &mut GcReport) -> Result<(), StateError> {
        if !self.options.is_dry_run {
            self.objects.delete(path)?;
        }
        report.removed.push(self.objects.name(path));
        report.bytes += bytes;
        Ok(())
    }
}
