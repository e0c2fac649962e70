//! Which state a server starts with: the newest that is whole.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Author, LoadError, ModelDirectory, ModelState, StateError,
    builder::HeadBuilder,
    declare::declare,
    edit::now,
    load::DeclaredFile,
    manifest::Manifest,
    restore::{Sources, restore},
    store::{ModelStore, manifest_path},
};

/// Older generations that are looked at when a server starts.
const CHECKED: usize = 1000;
/// Servers that start at once find each other's first generation.
const TRIES: u32 = 32;

/// What is needed to find it.
pub(super) struct Start<'a> {
    pub(super) directory: &'a ModelDirectory,
    pub(super) files: &'a BTreeMap<String, DeclaredFile>,
    pub(super) builder: &'a HeadBuilder,
    pub(super) store: Option<&'a ModelStore>,
}

/// What was found.
pub(super) struct Started {
    pub(super) state: ModelState,
    /// The highest generation that is known to be taken.
    pub(super) highest: u64,
    /// Files that are not what they were, or not there.
    pub(super) n_damaged: i64,
}

/// The files that are damaged, each said once.
#[derive(Default)]
struct Damage(BTreeSet<String>);

impl Damage {
    fn found(&mut self, model: &str, what: &StateError) {
        if self.0.insert(what.to_string()) {
            tracing::error!(model, "{what}");
        }
    }
}

/// Whether an error is of one file, so that an older generation may be whole.
fn is_damage(error: &StateError, store: &ModelStore) -> bool {
    match error {
        StateError::Damaged { .. } => true,
        // A folder that several servers share may be a network's: it may come back.
        StateError::Io { .. } => !store.is_shared,
        _ => false,
    }
}

impl Start<'_> {
    /// Finds it, adds what is new in the model directory, and writes that down.
    ///
    /// # Errors
    /// [`LoadError`]: the model directory, a generation of a later version of equipoise, or no generation that is whole.
    pub(super) fn run(&self) -> Result<Started, LoadError> {
        let Some(store) = self.store else {
            let (mut manifest, _) = declare(self.directory, self.files, None)?;
            manifest.generation = 1;
            let state = restore(&manifest, self.builder, &Sources::at_start(self.files, None))?;
            return Ok(Started { state, highest: 1, n_damaged: 0 });
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
        let sources = Sources::at_start(self.files, Some(store));
        let mut first_damage = None;
        let mut found = None;
        for &generation in generations.iter().rev() {
            let attempt = store.manifest(generation).map_err(LoadError::from).and_then(|manifest| {
                let Some(mut manifest) = manifest else { return Ok(None) };
                self.complete(store, &mut manifest)?;
                let (next, change) = declare(self.directory, self.files, Some(&manifest))?;
                let state = restore(&next, self.builder, &sources)?;
                Ok(Some((manifest, next, change, state)))
            });
            match attempt {
                Ok(None) => {}
                Ok(Some(whole)) => {
                    found = Some(whole);
                    break;
                }
                Err(LoadError::State(error)) if is_damage(&error, store) => {
                    damage.found(model, &error);
                    first_damage.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        let (previous, next, change, mut state) = match (found, first_damage) {
            (Some((previous, next, change, state)), _) => (Some(previous), next, change, state),
            // Whoever began anew would lose all that was published.
            (None, Some(error)) => return Err(error.into()),
            (None, None) => {
                let (next, change) = declare(self.directory, self.files, None)?;
                let state = restore(&next, self.builder, &sources)?;
                (None, next, change, state)
            }
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
        // Alone, a server goes on after what is damaged. With others it waits until that is whole again or removed: what it
        // cannot read, they may have promised.
        let mut highest = if store.is_shared { served } else { newest };
        if let Some(previous) = previous.as_ref().filter(|_| !store.is_shared) {
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
            if !store.create(&Manifest::of(model, &state, (parent, &Author::server(), change)))? {
                return Ok(None);
            }
        }
        if !store.is_shared {
            check_older(store, model, &generations, previous.as_ref(), damage)?;
        }
        Ok(Some(Started { state, highest, n_damaged: i64::try_from(damage.0.len()).unwrap_or(i64::MAX) }))
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

    /// Writes again what the store lost of the files that the model directory has.
    fn mend(&self, store: &ModelStore, manifest: &Manifest, damage: &mut Damage) -> Result<(), LoadError> {
        for file in self.files.values() {
            let digest = file.parsed.digest.to_hex();
            if manifest.blobs().any(|blob| blob == digest)
                && let Err(error) = store.stored_blob(&digest)
                && is_damage(&error, store)
            {
                damage.found(&self.directory.name, &error);
                store.put_blob(&digest, &file.bytes()?, false)?;
                tracing::warn!(model = self.directory.name, digest, "wrote it again: the model directory has the file");
            }
        }
        Ok(())
    }
}

/// Looks at what is not served: older generations, the files that they name, and whether one is missing between them.
fn check_older(
    store: &ModelStore,
    model: &str,
    generations: &[u64],
    served: Option<&Manifest>,
    damage: &mut Damage,
) -> Result<(), StateError> {
    let (Some(served), Some(&oldest)) = (served, generations.first()) else { return Ok(()) };
    let mut looked_at = BTreeSet::new();
    let mut expected = served.generation;
    for _ in 0..CHECKED {
        match store.manifest(expected) {
            Ok(Some(manifest)) => {
                for digest in manifest.blobs().filter(|digest| looked_at.insert((*digest).to_owned())) {
                    match store.stored_blob(digest) {
                        Err(error) if is_damage(&error, store) => damage.found(model, &error),
                        Err(error) => return Err(error),
                        Ok(_) => {}
                    }
                }
                // Format 1 counted without gaps.
                expected = manifest.parent.unwrap_or(expected.saturating_sub(1));
            }
            Ok(None) => {
                let path = store.objects.name(&manifest_path(&store.folder, expected)).into();
                damage.found(model, &StateError::Damaged { path, problem: "it is missing".to_owned() });
                expected = expected.saturating_sub(1);
            }
            Err(error) if is_damage(&error, store) => {
                damage.found(model, &error);
                expected = expected.saturating_sub(1);
            }
            // Of a later version: it says nothing of this one.
            Err(StateError::Newer { .. }) => expected = expected.saturating_sub(1),
            Err(error) => return Err(error),
        }
        if expected < oldest {
            break;
        }
    }
    Ok(())
}
