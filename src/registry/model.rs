//! A loaded model, and the changes that an operator makes to it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use arc_swap::ArcSwap;

use super::{
    DerivedSpec, FeatureSetStore, FitFiles, HeadId, HeadSource, ModelState, PublishedHead, Series, StateError,
    manifest::Manifest, store::ModelStore,
};
use crate::{
    batcher::{Batcher, ScorerPool},
    dataset::{FeatureSetError, Shot},
    heads::{DeriveError, Digest, Head, HeadFile, HeadFileError, HeadKind, Settings, SettingsError, SettingsPatch},
    metrics::Metrics,
    onnx::{OnnxError, Provider, SessionOptions},
};

/// Why a look-up or a change is refused. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The models are not loaded yet.
    #[error("the models are still being loaded")]
    NotLoaded,
    /// No model of that name.
    #[error("there is no model `{name}`")]
    ModelNotFound {
        /// The name.
        name: String,
    },
    /// No head of that name.
    #[error("there is no head `{name}`")]
    HeadNotFound {
        /// The name.
        name: String,
    },
    /// The head has no such version.
    #[error("head `{name}` has no version {version}")]
    VersionNotFound {
        /// The name.
        name: String,
        /// The version.
        version: u32,
    },
    /// A setting that cannot be.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A head file that cannot be read.
    #[error(transparent)]
    HeadFile(#[from] HeadFileError),
    /// A head that cannot be derived.
    #[error(transparent)]
    Derive(#[from] DeriveError),
    /// A head of another model.
    #[error(
        "the head is for {classes} classes and {feature_dim} features, and the model has {model_classes} and {model_dim}"
    )]
    Incompatible {
        /// C of the head.
        classes: usize,
        /// D of the head.
        feature_dim: usize,
        /// C of the model.
        model_classes: usize,
        /// D of the model.
        model_dim: usize,
    },
    /// The default head is not deleted.
    #[error("head `{name}` version {version} is the default: activate another one first")]
    IsDefault {
        /// The name.
        name: String,
        /// The version.
        version: u32,
    },
    /// A base is not deleted.
    #[error("head `{dependent}` version {dependent_version} derives from head `{name}` version {version}")]
    HasDependents {
        /// The base's name.
        name: String,
        /// The base's version.
        version: u32,
        /// The derived head's name.
        dependent: String,
        /// The derived head's version.
        dependent_version: u32,
    },
    /// No feature set of that id.
    #[error("there is no feature set `{id}`")]
    FeatureSetNotFound {
        /// The id.
        id: String,
    },
    /// A feature set that a fit reads is not deleted.
    #[error("feature set `{id}` is in use by a fit")]
    FeatureSetInUse {
        /// The id.
        id: String,
    },
    /// A feature set that cannot be read, or is not for this model.
    #[error(transparent)]
    FeatureSet(FeatureSetError),
    /// The disk, or what feature sets may take of it, is full.
    #[error("there is no room for the feature set: {reason}")]
    StorageFull {
        /// The numbers.
        reason: String,
    },
    /// The sessions of the head could not be made.
    #[error("the sessions of the head could not be made: {0}")]
    Session(#[from] OnnxError),
    /// The change could not be written down.
    #[error("the change could not be written down: {0}")]
    State(#[from] StateError),
}

/// Makes heads ready to serve for one model.
#[derive(Debug)]
pub(super) struct HeadBuilder {
    pub(super) model: String,
    pub(super) num_classes: usize,
    pub(super) feature_dim: usize,
    pub(super) n_workers: usize,
    pub(super) session: SessionOptions,
    pub(super) metrics: Arc<Metrics>,
    /// Of weights that some head uses, so that equal ones are shared.
    pub(super) pools: Mutex<HashMap<Digest, Weak<ScorerPool>>>,
}

impl HeadBuilder {
    pub(super) fn of_file(
        &self,
        id: HeadId,
        file: HeadFile,
        settings: Settings,
    ) -> Result<PublishedHead, RegistryError> {
        self.build(id, HeadSource::File(file.digest.to_hex()), file.head, settings)
    }

    pub(super) fn derived(
        &self,
        id: HeadId,
        spec: DerivedSpec,
        base: &PublishedHead,
        settings: Settings,
    ) -> Result<PublishedHead, RegistryError> {
        let head = base.head.derive(spec.kind, spec.initial)?;
        self.build(id, HeadSource::Derived(spec), head, settings)
    }

    fn build(
        &self,
        id: HeadId,
        source: HeadSource,
        head: Head,
        settings: Settings,
    ) -> Result<PublishedHead, RegistryError> {
        let (classes, feature_dim) = (head.num_classes(), head.feature_dim());
        let (model_classes, model_dim) = (self.num_classes, self.feature_dim);
        if (classes, feature_dim) != (model_classes, model_dim) {
            return Err(RegistryError::Incompatible { classes, feature_dim, model_classes, model_dim });
        }
        let scorers = self.scorers(&head)?;
        let head = head.sharing(scorers.weights());
        let metrics = self.metrics.of_head(&self.model, &id.head);
        let scoring = Arc::new(head.scoring(&settings));
        Ok(PublishedHead { id, source, head: Arc::new(head), settings, scoring, scorers, metrics })
    }

    fn scorers(&self, head: &Head) -> Result<Arc<ScorerPool>, OnnxError> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| pool.strong_count() > 0);
        let digest = head.weights().digest();
        if let Some(pool) = pools.get(&digest).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        let pool = Arc::new(ScorerPool::build(Arc::clone(head.weights()), &self.session, self.n_workers)?);
        pools.insert(digest, Arc::downgrade(&pool));
        Ok(pool)
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    pub(super) labels: Vec<String>,
    pub(super) shots: Vec<Shot>,
    pub(super) provider: Provider,
    pub(super) batcher: Batcher,
    pub(super) builder: HeadBuilder,
    pub(super) state: ArcSwap<ModelState>,
    /// Held by the one who makes the next state.
    pub(super) writer: Mutex<()>,
    pub(super) store: Option<ModelStore>,
    pub(super) feature_sets: Option<Arc<FeatureSetStore>>,
    pub(super) fits: Option<FitFiles>,
}

impl Model {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.builder.model
    }

    /// The name of each class.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The shot of each class.
    pub fn shots(&self) -> &[Shot] {
        &self.shots
    }

    /// D.
    pub fn feature_dim(&self) -> usize {
        self.builder.feature_dim
    }

    /// The execution provider that is really used.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// The way in.
    pub fn batcher(&self) -> &Batcher {
        &self.batcher
    }

    /// The feature sets that were uploaded for it.
    ///
    /// # Errors
    /// [`StateError::Absent`] if it was loaded without a state directory.
    pub fn feature_sets(&self) -> Result<&Arc<FeatureSetStore>, RegistryError> {
        Ok(self.feature_sets.as_ref().ok_or(StateError::Absent)?)
    }

    /// The files of the fits of its heads.
    ///
    /// # Errors
    /// [`StateError::Absent`] if it was loaded without a state directory.
    pub fn fit_files(&self) -> Result<&FitFiles, RegistryError> {
        Ok(self.fits.as_ref().ok_or(StateError::Absent)?)
    }

    /// The state of this moment. A request takes one and keeps to it.
    pub fn state(&self) -> Arc<ModelState> {
        self.state.load_full()
    }

    /// Changes the settings of one version; the latest if none is given.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed.
    pub fn patch(
        &self,
        name: &str,
        version: Option<u32>,
        patch: SettingsPatch,
    ) -> Result<Arc<PublishedHead>, RegistryError> {
        self.change(|state| {
            let current = Arc::clone(state.head(name, version)?);
            let settings = current.settings.with(patch, current.head.kind())?;
            let scoring = Arc::new(current.head.scoring(&settings));
            let patched = Arc::new(PublishedHead { settings, scoring, ..(*current).clone() });
            for slot in state.heads.values_mut().flat_map(|series| &mut series.versions) {
                if slot.id == patched.id {
                    *slot = Arc::clone(&patched);
                }
            }
            tracing::info!(
                model = self.name(), head = name, version = patched.id.version, before = ?current.settings, after = ?settings,
                "changed the settings of head `{name}`"
            );
            Ok(patched)
        })
    }

    /// Publishes a head file as the next version of `name`. It is not activated.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed.
    pub fn publish_file(&self, name: &str, bytes: &[u8]) -> Result<Arc<PublishedHead>, RegistryError> {
        let file = HeadFile::parse(bytes)?;
        let settings = *file.head.initial_settings();
        self.publish(name, |id, _| {
            let published = self.builder.of_file(id, file, settings)?;
            if let (Some(store), HeadSource::File(digest)) = (&self.store, &published.source) {
                store.put_blob(digest, bytes)?;
            }
            Ok(published)
        })
    }

    /// Publishes a head derived from a version of another one as the next version of `name`. It is not activated.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed.
    pub fn publish_derived(
        &self,
        name: &str,
        kind: HeadKind,
        base: (&str, Option<u32>),
        patch: SettingsPatch,
    ) -> Result<Arc<PublishedHead>, RegistryError> {
        self.publish(name, |id, state| {
            let base = state.head(base.0, base.1)?;
            let initial = Settings::default_of(kind).with(patch, kind)?;
            self.builder.derived(id, DerivedSpec { kind, base: base.id.clone(), initial }, base, initial)
        })
    }

    /// Makes a version the one that answers when no head is named; the latest if no version is given.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed.
    pub fn activate(&self, name: &str, version: Option<u32>) -> Result<Arc<PublishedHead>, RegistryError> {
        self.change(|state| {
            let head = Arc::clone(state.head(name, version)?);
            tracing::info!(
                model = self.name(), head = name, version = head.id.version, before = ?state.default,
                "activated head `{name}` version {}", head.id.version
            );
            state.default = head.id.clone();
            Ok(head)
        })
    }

    /// Deletes one version of a head, or all of them.
    ///
    /// # Errors
    /// [`RegistryError::IsDefault`], [`RegistryError::HasDependents`] and others; then nothing has changed.
    pub fn delete(&self, name: &str, version: Option<u32>) -> Result<(), RegistryError> {
        self.change(|state| {
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
            if let Some(series) = state.heads.get_mut(name) {
                series.versions.retain(|head| !goes(&head.id));
            }
            tracing::info!(model = self.name(), head = name, version, "deleted head `{name}`");
            Ok(())
        })
    }

    fn publish(
        &self,
        name: &str,
        build: impl FnOnce(HeadId, &ModelState) -> Result<PublishedHead, RegistryError>,
    ) -> Result<Arc<PublishedHead>, RegistryError> {
        self.change(|state| {
            let version = state.heads.get(name).map_or(1, |series| series.next_version);
            let published = Arc::new(build(HeadId { head: name.to_owned(), version }, state)?);
            let series = state.heads.entry(name.to_owned()).or_insert_with(Series::default);
            series.next_version = version + 1;
            series.versions.push(Arc::clone(&published));
            tracing::info!(
                model = self.name(), head = name, version, kind = %published.head.kind(), source = ?published.source,
                "published head `{name}` version {version}"
            );
            Ok(published)
        })
    }

    /// Makes the next state: on the disk first, then in memory.
    fn change<T>(&self, make: impl FnOnce(&mut ModelState) -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.state.load_full();
        let mut next = ModelState::clone(&current);
        let made = make(&mut next)?;
        next.generation += 1;
        if let Some(store) = &self.store {
            store.write(&Manifest::of(self.name(), &next))?;
        }
        self.observe(Some(&current), &next);
        self.state.store(Arc::new(next));
        Ok(made)
    }

    /// Brings the gauges of the heads from one state to the next.
    pub(super) fn observe(&self, before: Option<&ModelState>, after: &ModelState) {
        let metrics = &self.builder.metrics;
        let gone = before.into_iter().flat_map(ModelState::versions);
        for head in gone.filter(|head| after.head(&head.id.head, Some(head.id.version)).is_err()) {
            metrics.remove_head_version(self.name(), &head.id.head, head.id.version, head.head.kind().as_str());
        }
        for head in after.versions() {
            metrics.set_head_version(self.name(), &head.id.head, head.id.version, head.head.kind().as_str());
        }
        for (name, series) in &after.heads {
            metrics.set_head_tau(self.name(), name, series.versions.last().and_then(|head| head.settings.tau));
        }
    }
}
