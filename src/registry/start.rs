//! Which state a server starts with: the newest that is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{
    Author, Change, LoadError, ModelDigests, ModelDirectory, ModelState, RegistryError, StateError,
    builder::HeadBuilder,
    declare::declare,
    edit::now,
    load::DeclaredFile,
    manifest::Manifest,
    restore::{Sources, restore},
    store::{ModelStore, manifest_path},
};

/// Generations that are looked at when a server starts.
const CHECKED: usize = 1000;
/// Servers that start at once find each other's first generation.
const TRIES: u32 = 32;

/// What is needed to find it.
pub(super) struct Start<'a> {
    pub(super) directory: &'a ModelDirectory,
    pub(super) files: &'a BTreeMap<String, DeclaredFile>,
    pub(super) builder: &'a HeadBuilder,
    /// Of the directory, if they are to be written down.
    pub(super) digests: Option<ModelDigests>,
    pub(super) store: Option<&'a ModelStore>,
}

/// What was found.
pub(super) struct Started {
    pub(super) state: ModelState,
    /// The highest generation that is known to be taken.
    pub(super) highest: u64,
    /// The id of its manifest.
    pub(super) id: Option<String>,
    /// Files that are not what they were, or not there.
    pub(super) damaged: BTreeSet<PathBuf>,
}

/// The files that are damaged, each said once.
#[derive(Default)]
struct Damage(BTreeSet<PathBuf>);

impl Damage {
    fn found(&mut self, model: &str, what: &StateError) {
        if let StateError::Damaged { path, .. } | StateError::Io { path, .. } = what
            && self.0.insert(path.clone())
        {
            tracing::error!(model, "{what}");
        }
    }

    /// What was read; `None` if it is damaged. Any other error tells nothing of what was written: it may be gone the next
    /// time, and who went on without what cannot be read would lose it.
    fn or_damaged<T>(&mut self, model: &str, read: Result<T, StateError>) -> Result<Option<T>, StateError> {
        match read {
            Err(error @ StateError::Damaged { .. }) => {
                self.found(model, &error);
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// The same of what is not served, and keeps nobody from starting: also what cannot be read is damaged.
    fn or_unreadable<T>(&mut self, model: &str, read: Result<T, StateError>) -> Result<Option<T>, StateError> {
        match read {
            Err(error @ StateError::Io { .. }) => {
                self.found(model, &error);
                Ok(None)
            }
            read => self.or_damaged(model, read),
        }
    }
}

/// A generation, and what the model directory makes of it.
struct Found {
    previous: Option<Manifest>,
    next: Manifest,
    /// What is new in it.
    change: Option<Change>,
    state: ModelState,
}

impl Start<'_> {
    /// Finds it, adds what is new in the model directory, and writes that down.
    ///
    /// # Errors
    /// [`LoadError`]: the model directory, a generation of a later version of equipoise, or no generation that is whole.
    pub(super) fn run(&self) -> Result<Started, LoadError> {
        let Some(store) = self.store else {
            let Found { mut state, .. } = self.found(None, &Sources::at_start(self.files, None))?;
            state.generation = 1;
            return Ok(Started { state, highest: 1, id: None, damaged: BTreeSet::new() });
        };
        let mut damage = Damage::default();
        for _ in 0..TRIES {
            if let Some(started) = self.try_run(store, &mut damage)? {
                return Ok(started);
            }
        }
        Err(StateError::Unreachable {
            object: store.objects.name(&store.folder),
            problem: format!("other servers were faster {TRIES} times"),
        }
        .into())
    }

    /// `None` if another server was faster.
    fn try_run(&self, store: &ModelStore, damage: &mut Damage) -> Result<Option<Started>, LoadError> {
        let model = self.directory.name.as_str();
        let generations = store.generations()?;
        let newest = generations.last().copied().unwrap_or(0);
        store.check_not_lost(newest)?;
        let sources = Sources::at_start(self.files, Some(store));
        let Found { previous, next, change, mut state } = match self.newest_whole(store, &generations, damage)? {
            Some(found) => found,
            None => self.found(None, &sources)?,
        };
        let served = previous.as_ref().map_or(0, |previous| previous.generation);
        if served < newest {
            tracing::error!(
                model,
                served,
                newest,
                "generation {newest} of model `{model}` is damaged or has damaged files: serving generation {served}"
            );
        }
        let mut id = previous.as_ref().and_then(|previous| previous.id.clone());
        // Alone, a server goes on after what is damaged. With others it waits until that is whole again or removed: what it
        // cannot read, they may have promised.
        let mut highest = if store.is_shared { served } else { newest };
        if let Some(previous) = &previous {
            self.compare(previous, store);
            self.mend(store, previous, damage)?;
        }
        if let Some(change) = change {
            if store.is_shared && served < newest {
                return Err(StateError::Damaged {
                    path: store.objects.name(&manifest_path(&store.folder, newest)).into(),
                    problem: "and the model directory has new heads, which cannot be added to it".to_owned(),
                }
                .into());
            }
            let is_named =
                |digest| previous.as_ref().is_some_and(|previous| previous.blobs().any(|blob| blob == digest));
            for (digest, file) in &sources.files {
                store.put_blob(digest, &file.bytes()?, is_named(digest))?;
            }
            highest += 1;
            state.generation = highest;
            state.time = Some(next.time.map_or_else(now, |time| time.max(now())));
            let parent = previous.as_ref().map(|previous| previous.generation);
            let manifest = Manifest::of(model, &state, (parent, &Author::server(), change));
            if !store.create(&manifest)? {
                return Ok(None);
            }
            if store.is_shared {
                // What was written for it may have been taken for old until it was there.
                self.mend(store, &manifest, damage)?;
            }
            id = manifest.id;
        }
        if !store.is_shared {
            check_all(store, model, &generations, damage)?;
        }
        store.remember(state.generation, true);
        Ok(Some(Started { state, highest, id, damaged: std::mem::take(&mut damage.0) }))
    }

    /// The newest generation that is whole; `None` if there is none at all.
    fn newest_whole(
        &self,
        store: &ModelStore,
        generations: &[u64],
        damage: &mut Damage,
    ) -> Result<Option<Found>, LoadError> {
        let sources = Sources::at_start(self.files, Some(store));
        let newest = generations.last().copied().unwrap_or(0);
        let (mut first_damage, mut passed_over) = (None, Vec::new());
        for &generation in generations.iter().rev() {
            let read = store.manifest(generation);
            let known = read.as_ref().ok().cloned().flatten();
            let attempt = read.map_err(LoadError::from).and_then(|manifest| {
                let Some(mut manifest) = manifest else { return Ok(None) };
                self.complete(store, &mut manifest)?;
                manifest.pass_over(&passed_over, newest);
                self.found(Some(manifest), &sources).map(Some)
            });
            match attempt {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(LoadError::State(error @ StateError::Damaged { .. })) => {
                    damage.found(&self.directory.name, &error);
                    first_damage.get_or_insert(error);
                    passed_over.extend(known);
                }
                Err(error) => return Err(error),
            }
        }
        // Whoever began anew would lose all that was published.
        first_damage.map_or(Ok(None), |error| Err(error.into()))
    }

    /// What the model directory makes of a generation, or of none.
    fn found(&self, previous: Option<Manifest>, sources: &Sources<'_>) -> Result<Found, LoadError> {
        let (mut next, change) = declare(self.directory, self.files, previous.as_ref())?;
        next.made_for.clone_from(&self.digests);
        let is_old = |head: &str, version: u32| {
            let series = previous.as_ref().and_then(|previous| previous.heads.get(head));
            series.is_some_and(|series| series.versions.iter().any(|found| found.version == version))
        };
        let state = restore(&next, self.builder, sources).map_err(|error| match (error, sources.store) {
            (LoadError::Head { head, version, source: source @ RegistryError::Incompatible { .. } }, Some(store))
                if is_old(&head, version) =>
            {
                let (state, anew) = (store.objects.name(&store.folder), store.how_to_begin_anew());
                LoadError::OfAnother { head, version, state, anew, source: Box::new(source) }
            }
            (error, _) => error,
        })?;
        Ok(Found { previous, next, change, state })
    }

    /// Says that heads were published for other classes, or for another backbone: it cannot be told from them.
    fn compare(&self, previous: &Manifest, store: &ModelStore) {
        let (Some(then), Some(now)) = (&previous.made_for, &self.digests) else { return };
        let changed = match (then.labels == now.labels, then.backbone == now.backbone) {
            (true, true) => return,
            (false, true) => "classes",
            (true, false) => "backbone",
            (false, false) => "classes and the backbone",
        };
        let (model, state) = (self.directory.name.as_str(), store.objects.name(&store.folder));
        tracing::warn!(
            model,
            state,
            "the {changed} of model `{model}` have changed since its state was written: heads that were published before \
             are served as if they were made for these. If they were not, give the model another name in model.toml, or \
             {}. The next change of the model ends this warning",
            store.how_to_begin_anew()
        );
    }

    /// Fills in what format 1 did not write down: the defaults before the present one.
    fn complete(&self, store: &ModelStore, manifest: &mut Manifest) -> Result<(), StateError> {
        if manifest.id.is_some() {
            return Ok(());
        }
        let mut earlier: Option<Manifest> = None;
        for generation in store.generations()?.into_iter().filter(|&generation| generation <= manifest.generation) {
            let Ok(Some(next)) = store.manifest(generation) else { continue };
            if let Some(earlier) = earlier.filter(|earlier| earlier.default != next.default) {
                manifest.previous_defaults.extend(earlier.as_previous_default());
            }
            earlier = Some(next);
        }
        Ok(())
    }

    /// Writes again what the store lost of the files that the model directory has, or of which this server has a copy.
    fn mend(&self, store: &ModelStore, manifest: &Manifest, damage: &mut Damage) -> Result<(), LoadError> {
        let model = self.directory.name.as_str();
        for digest in manifest.blobs().collect::<BTreeSet<_>>() {
            let file = self.files.values().find(|file| file.parsed.digest.to_hex() == digest);
            let found = match (store.is_shared, file) {
                // To read all of a bucket would take long. Of what is here the length tells most.
                (true, _) => store.blob(digest).and_then(|bytes| store.find_blob(digest, bytes.len())),
                (false, Some(_)) => store.stored_blob(digest).map(drop),
                // It has just been read.
                (false, None) => continue,
            };
            if damage.or_damaged(model, found)?.is_none() {
                let bytes = match file {
                    Some(file) => file.bytes()?,
                    None => store.blob(digest)?.into(),
                };
                match store.put_blob(digest, &bytes, false) {
                    Ok(_) => tracing::warn!(
                        model,
                        digest,
                        "wrote it again: the model directory has the file, or this server a copy"
                    ),
                    // This server serves all the same.
                    Err(error) if store.is_shared => {
                        tracing::warn!(model, digest, %error, "it cannot be written again: {error}");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// Looks at what is not served too: the newest generations, the files that they name, and whether one is missing between them.
fn check_all(store: &ModelStore, model: &str, generations: &[u64], damage: &mut Damage) -> Result<(), StateError> {
    let mut looked_at = BTreeSet::new();
    // Missing only if there is one before them that is whole: a clean-up removes the oldest, and leaves what is damaged.
    let mut missing: Vec<u64> = Vec::new();
    for (index, &generation) in generations.iter().enumerate().rev().take(CHECKED) {
        let manifest = match store.manifest(generation) {
            // Of a later version: it says nothing of this one.
            Err(StateError::Newer { .. }) => None,
            read => damage.or_unreadable(model, read)?.flatten(),
        };
        if let Some(manifest) = &manifest {
            for generation in missing.drain(..) {
                let path = store.objects.name(&manifest_path(&store.folder, generation)).into();
                damage.found(model, &StateError::Damaged { path, problem: "it is missing".to_owned() });
            }
            for digest in manifest.blobs().filter(|digest| looked_at.insert((*digest).to_owned())) {
                damage.or_unreadable(model, store.stored_blob(digest))?;
            }
        }
        let Some(below) = index.checked_sub(1).and_then(|index| generations.get(index)) else { break };
        // Format 1 counted without gaps, which is the best guess too of what cannot be read.
        let parent = manifest.and_then(|manifest| manifest.parent).unwrap_or(generation.saturating_sub(1));
        missing.extend((below + 1..=parent).rev().take(CHECKED));
    }
    Ok(())
}
