//! The changes that an operator makes to a model.

use std::sync::Arc;

use super::{
    Change, Changed, DerivedSpec, Edit, HeadId, HeadSource, Model, ModelState, PreviousDefault, PublishedHead,
    RegistryError, Series,
};
use crate::heads::{HeadFile, HeadKind, Settings, SettingsPatch};

/// How far back a model can be rolled.
const PREVIOUS_DEFAULTS_KEPT: usize = 64;

impl Model {
    /// Changes the settings of one version; the latest if none is given.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed.
    pub fn patch(
        &self,
        edit: &Edit,
        name: &str,
        version: Option<u32>,
        patch: SettingsPatch,
    ) -> Result<Changed<Arc<PublishedHead>>, RegistryError> {
        self.change(edit, |state| {
            let current = Arc::clone(state.head(name, version)?);
            let after = current.settings.with(patch, current.head.kind())?;
            let patched = state.set_settings(&current, after);
            let change =
                Change::Patched { head: name.to_owned(), version: current.id.version, before: current.settings, after };
            Ok((patched, change))
        })
    }

    /// Publishes a head file as the next version of `name`. It is not activated.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed.
    pub fn publish_file(
        &self,
        edit: &Edit,
        name: &str,
        bytes: &[u8],
    ) -> Result<Changed<Arc<PublishedHead>>, RegistryError> {
        let file = HeadFile::parse(bytes)?;
        let settings = *file.head.initial_settings();
        // Its sessions are built once, however often the change is tried.
        let built = self.builder.of_file(HeadId { head: name.to_owned(), version: 0 }, file, settings)?;
        let mut is_new = false;
        let published = self.publish(edit, name, |id, state| {
            // One that was there because a state names it may be gone if the change is tried again on the next state.
            if let (false, Some(store), HeadSource::File(digest)) = (is_new, &self.store, &built.source) {
                is_new = store.put_blob(digest, bytes, state.versions().any(|head| head.source == built.source))?;
            }
            Ok(PublishedHead { id, ..built.clone() })
        })?;
        if let (Some(store), HeadSource::File(digest)) = (&self.store, &built.source)
            && store.is_shared
            && let Err(error) = store.keep_blob(digest, bytes)
        {
            // The change has been made.
            tracing::warn!(model = self.name(), digest, %error, "it is not known whether the store has a head file: {error}");
        }
        Ok(published)
    }

    /// Publishes a head derived from a version of another one as the next version of `name`. It is not activated.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed.
    pub fn publish_derived(
        &self,
        edit: &Edit,
        name: &str,
        kind: HeadKind,
        base: (&str, Option<u32>),
        patch: SettingsPatch,
    ) -> Result<Changed<Arc<PublishedHead>>, RegistryError> {
        self.publish(edit, name, |id, state| {
            let base = state.head(base.0, base.1)?;
            let initial = Settings::default_of(kind).with(patch, kind)?;
            self.builder.derived(id, DerivedSpec { kind, base: base.id.clone(), initial }, base, initial)
        })
    }

    fn publish(
        &self,
        edit: &Edit,
        name: &str,
        mut build: impl FnMut(HeadId, &ModelState) -> Result<PublishedHead, RegistryError>,
    ) -> Result<Changed<Arc<PublishedHead>>, RegistryError> {
        self.change(edit, |state| {
            let version = state.heads.get(name).map_or(1, |series| series.next_version);
            let published = Arc::new(build(HeadId { head: name.to_owned(), version }, state)?);
            let series = state.heads.entry(name.to_owned()).or_insert_with(Series::default);
            series.next_version = version + 1;
            series.versions.push(Arc::clone(&published));
            let digest = match &published.source {
                HeadSource::File(digest) => Some(digest.clone()),
                HeadSource::Derived(_) => None,
            };
            let change = Change::Published { head: name.to_owned(), version, head_kind: published.head.kind(), digest };
            Ok((published, change))
        })
    }

    /// Makes a version the one that answers when no head is named; the latest if no version is given.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed.
    pub fn activate(
        &self,
        edit: &Edit,
        name: &str,
        version: Option<u32>,
    ) -> Result<Changed<Arc<PublishedHead>>, RegistryError> {
        self.change(edit, |state| {
            let head = Arc::clone(state.head(name, version)?);
            let before = state.default.clone();
            if before != head.id {
                state.remember_default();
                state.default = head.id.clone();
            }
            let change = Change::Activated { before, after: head.id.clone() };
            Ok((head, change))
        })
    }

    /// Makes the version the default that was it before the present one, with the settings that it had then. Once more goes
    /// one further back. Versions that were deleted are passed over.
    ///
    /// # Errors
    /// [`RegistryError::NoPreviousDefault`] and others; then nothing has changed.
    pub fn roll_back(&self, edit: &Edit) -> Result<Changed<Arc<PublishedHead>>, RegistryError> {
        self.change(edit, |state| {
            let before = state.default.clone();
            let (earlier, head) = loop {
                let earlier = state.previous_defaults.pop().ok_or(RegistryError::NoPreviousDefault)?;
                if let Ok(head) = state.head(&earlier.head, Some(earlier.version))
                    // Passing over a deleted one may lead to where we are.
                    && head.id != before
                {
                    let head = Arc::clone(head);
                    break (earlier, head);
                }
            };
            let settings = earlier.settings;
            let restored = state.set_settings(&head, settings);
            state.default = restored.id.clone();
            let after = restored.id.clone();
            let change = Change::RolledBack { to_generation: earlier.generation, before, after, settings };
            Ok((restored, change))
        })
    }

    /// Deletes one version of a head, or all of them. Their files stay until old generations are removed.
    ///
    /// # Errors
    /// [`RegistryError::IsDefault`], [`RegistryError::HasDependents`] and others; then nothing has changed.
    pub fn delete(&self, edit: &Edit, name: &str, version: Option<u32>) -> Result<Changed<()>, RegistryError> {
        self.change(edit, |state| {
            state.head(name, version)?;
            let goes = |id: &HeadId| id.head == name && version.is_none_or(|version| id.version == version);
            if goes(&state.default) {
                return Err(RegistryError::IsDefault { name: name.to_owned(), version: state.default.version });
            }
            for dependent in state.versions().filter(|head| !goes(&head.id)) {
                if let HeadSource::Derived(DerivedSpec { base, .. }) = &dependent.source
                    && goes(base)
                {
                    return Err(RegistryError::HasDependents {
                        name: name.to_owned(),
                        version: base.version,
                        dependent: dependent.id.head.clone(),
                        dependent_version: dependent.id.version,
                    });
                }
            }
            let mut versions = Vec::new();
            if let Some(series) = state.heads.get_mut(name) {
                versions = series.versions.iter().filter(|head| goes(&head.id)).map(|head| head.id.version).collect();
                series.versions.retain(|head| !goes(&head.id));
            }
            Ok(((), Change::Deleted { head: name.to_owned(), versions }))
        })
    }
}

impl ModelState {
    /// Serves a version with other settings.
    pub(super) fn set_settings(&mut self, head: &PublishedHead, settings: Settings) -> Arc<PublishedHead> {
        let scoring = Arc::new(head.head.scoring(&settings));
        let set = Arc::new(PublishedHead { settings, scoring, ..head.clone() });
        for slot in self.heads.values_mut().flat_map(|series| &mut series.versions) {
            if slot.id == set.id {
                *slot = Arc::clone(&set);
            }
        }
        set
    }

    /// Keeps the present default, and how it is served, as one to go back to.
    fn remember_default(&mut self) {
        let Ok(head) = self.default_head() else { return };
        let (HeadId { head, version }, settings) = (head.id.clone(), head.settings);
        let n_too_many = (self.previous_defaults.len() + 1).saturating_sub(PREVIOUS_DEFAULTS_KEPT);
        self.previous_defaults.drain(..n_too_many);
        self.previous_defaults.push(PreviousDefault { generation: self.generation, head, version, settings });
    }
}
