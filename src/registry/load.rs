//! From a model directory, and what the state directory remembers of it, to a model that serves.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;

use super::{
    DerivedSpec, DirectoryError, FeatureSetQuota, HeadId, HeadOrigin, HeadSource, Model, ModelDirectory, ModelState,
    PublishedHead, RegistryError, Series, StateDir, StateError,
    backbone::{BackboneSource, load_backbones, warm_up},
    manifest::{self, Manifest, ManifestSeries, ManifestVersion},
    model::HeadBuilder,
    store::ModelStore,
};
use crate::{
    batcher::{Backbone, BatchLimits, Batcher, DecodePool, Rebuild},
    dataset::Shot,
    heads::{HeadFile, HeadFileError, Settings},
    metrics::Metrics,
    onnx::{CutError, OnnxError, SessionOptions},
    preprocess::{DecodeLimits, PreprocessConfigError, Preprocessor},
};

/// What a model is loaded with.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Device and threads of a session.
    pub session: SessionOptions,
    /// Sessions of the backbone, each on its own thread.
    pub n_sessions: usize,
    /// The bounds of the queue and the batches.
    pub limits: BatchLimits,
    /// The bounds of an image.
    pub decode_limits: DecodeLimits,
    /// The threads that decode.
    pub decode_pool: DecodePool,
    /// Where the model counts.
    pub metrics: Arc<Metrics>,
    /// Where its heads and settings survive a restart; `None` for a model that is thrown away.
    pub state_dir: Option<StateDir>,
    /// The bounds of the feature sets of all models.
    pub feature_sets: Arc<FeatureSetQuota>,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model directory is wrong.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `[preprocess]` is wrong.
    #[error("{path}: [preprocess]: {source}", path = path.display())]
    Preprocess {
        /// `model.toml`.
        path: PathBuf,
        /// The key and the reason.
        source: PreprocessConfigError,
    },
    /// `[preprocess]` gives tensors of another size than the backbone takes.
    #[error(
        "[preprocess] gives images of {height} x {width}, and the backbone takes {expected_height} x {expected_width}"
    )]
    ImageSize {
        /// Rows that `[preprocess]` gives.
        height: usize,
        /// Columns that it gives.
        width: usize,
        /// Rows that the backbone takes.
        expected_height: usize,
        /// Columns that it takes.
        expected_width: usize,
    },
    /// The backbone cannot be loaded.
    #[error("{path}: {source}", path = path.display())]
    Backbone {
        /// The ONNX file.
        path: PathBuf,
        /// Why.
        source: OnnxError,
    },
    /// The backbone's file is not the one that was loaded.
    #[error("{path}: it has changed since it was loaded, and only a restart takes another backbone", path = path.display())]
    BackboneChanged {
        /// The ONNX file.
        path: PathBuf,
    },
    /// The file is no backbone that fits the heads, and no classifier that can be cut either.
    #[error("{path}: it gives {found_dim} features and the heads take {feature_dim}; nor can it be cut as a whole classifier: {source}", path = path.display())]
    Cut {
        /// The ONNX file.
        path: PathBuf,
        /// D of the heads; 0 if only the file itself can say.
        feature_dim: usize,
        /// What the file gives.
        found_dim: usize,
        /// Why it cannot be cut.
        source: Box<CutError>,
    },
    /// A head file is wrong.
    #[error("{path}: {source}", path = path.display())]
    HeadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: HeadFileError,
    },
    /// A head cannot be served by this model.
    #[error("head `{head}` version {version}: {source}")]
    Head {
        /// The head.
        head: String,
        /// Its version.
        version: u32,
        /// Why.
        source: RegistryError,
    },
    /// Heads that derive from each other in a circle.
    #[error("head `{head}` derives from itself")]
    Circle {
        /// One of them.
        head: String,
    },
    /// The state directory is wrong.
    #[error(transparent)]
    State(#[from] StateError),
    /// A thread cannot be started.
    #[error("a worker thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// Loads a model: reads it, builds and warms its sessions, and restores what the state directory remembers.
///
/// # Errors
/// [`LoadError`] names the file.
pub fn load_model(directory: &ModelDirectory, options: &LoadOptions) -> Result<Model, LoadError> {
    load_model_with(directory, options, |backbone| backbone)
}

/// Like [`load_model`], with something put around each backbone: what a test holds, counts or lets fail.
///
/// # Errors
/// As [`load_model`].
pub fn load_model_with(
    directory: &ModelDirectory,
    options: &LoadOptions,
    wrap: impl Fn(Box<dyn Backbone>) -> Box<dyn Backbone> + Send + Sync + 'static,
) -> Result<Model, LoadError> {
    let mut files = read_head_files(directory)?;
    let backbones = load_backbones(directory, &mut files, options)?;
    let preprocessor = Preprocessor::new(directory.preprocess.clone(), options.decode_limits.clone())
        .map_err(|source| LoadError::Preprocess { path: directory.path.join("model.toml"), source })?;
    let (feature_dim, provider) = (backbones.feature_dim, backbones.provider);
    let source = BackboneSource::new(directory, (backbones.is_cut, provider), &preprocessor, options)?;
    let sessions: Vec<_> = warm_up(directory, backbones, &preprocessor, options)?.into_iter().map(&wrap).collect();
    let rebuild: Rebuild = Arc::new(move || Ok(wrap(Box::new(source.make()?))));

    let store = options.state_dir.as_ref().map(|dir| dir.model(&directory.name)).transpose()?;
    let previous = match &store {
        Some(store) => store.latest()?,
        None => None,
    };
    let shape = (directory.labels.len(), feature_dim);
    let feature_sets = store.as_ref().map(|store| {
        store.feature_sets(shape, &options.feature_sets, options.metrics.of_feature_sets(&directory.name))
    });
    let feature_sets = feature_sets.transpose()?.map(Arc::new);
    let fits = store.as_ref().map(ModelStore::fits).transpose()?;
    let manifest = declare(directory, &files, previous.as_ref())?;
    let builder = HeadBuilder {
        model: directory.name.clone(),
        num_classes: directory.labels.len(),
        feature_dim,
        n_workers: sessions.len(),
        // Where the backbone really runs, so that its features need not leave the device.
        session: SessionOptions { device: provider.into(), ..options.session.clone() },
        metrics: Arc::clone(&options.metrics),
        pools: Mutex::new(HashMap::new()),
    };
    let state = restore(&manifest, &builder, &files, store.as_ref())?;
    if let Some(store) = store.as_ref().filter(|_| previous.as_ref() != Some(&manifest)) {
        for file in files.values() {
            store.put_blob(&file.parsed.digest.to_hex(), &file.bytes)?;
        }
        store.write(&manifest)?;
    }

    let model_metrics = options.metrics.of_model(&directory.name);
    let decode_pool = options.decode_pool.clone();
    let batcher = Batcher::start(sessions, rebuild, preprocessor, decode_pool, options.limits, model_metrics)
        .map_err(LoadError::Thread)?;
    let shots = match &directory.train_counts {
        Some(counts) => counts.iter().map(|&count| Shot::of(count)).collect(),
        None => vec![Shot::Unknown; directory.labels.len()],
    };
    options.metrics.set_model(&directory.name, provider.as_str());
    let model = Model {
        labels: directory.labels.clone(),
        shots,
        provider,
        batcher,
        builder,
        state: ArcSwap::from_pointee(state),
        writer: Mutex::new(()),
        store,
        feature_sets,
        fits,
    };
    model.observe(None, &model.state());
    Ok(model)
}

/// A head file of the directory, or one made of a classifier's last layer.
pub(super) struct DeclaredFile {
    pub(super) bytes: Vec<u8>,
    pub(super) parsed: HeadFile,
}

fn read_head_files(directory: &ModelDirectory) -> Result<BTreeMap<String, DeclaredFile>, LoadError> {
    let mut files = BTreeMap::new();
    for (name, declaration) in &directory.heads {
        if let HeadOrigin::File(path) = &declaration.origin {
            let bytes = std::fs::read(path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
            let parsed =
                HeadFile::parse(&bytes).map_err(|source| LoadError::HeadFile { path: path.clone(), source })?;
            files.insert(name.clone(), DeclaredFile { bytes, parsed });
        }
    }
    Ok(files)
}

/// What is to be served: what was served before, and as a new version each head whose declaration is new.
fn declare(
    directory: &ModelDirectory,
    files: &BTreeMap<String, DeclaredFile>,
    previous: Option<&Manifest>,
) -> Result<Manifest, LoadError> {
    let mut manifest = previous.cloned().unwrap_or_else(|| Manifest {
        format: manifest::FORMAT.to_owned(),
        model: directory.name.clone(),
        generation: 0,
        default: HeadId { head: directory.default_head.clone(), version: 0 },
        declared_default: String::new(),
        heads: BTreeMap::new(),
    });
    let mut declarations: HashMap<&str, String> = HashMap::new();
    // A base comes before what derives from it; whatever is left after a round without progress derives from itself.
    let mut waiting: Vec<&String> = directory.heads.keys().collect();
    while !waiting.is_empty() {
        let n_before = waiting.len();
        let mut failed = None;
        waiting.retain(|name| match declare_one(directory, name, files, &mut declarations, &mut manifest) {
            Ok(done) => !done,
            Err(error) => {
                failed.get_or_insert(error);
                true
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if let (true, Some(head)) = (waiting.len() == n_before, waiting.first()) {
            return Err(LoadError::Circle { head: (*head).clone() });
        }
    }
    if manifest.declared_default != directory.default_head {
        manifest.declared_default.clone_from(&directory.default_head);
        manifest.default = latest(&manifest, &directory.default_head);
    }
    if previous != Some(&manifest) {
        manifest.generation += 1;
    }
    Ok(manifest)
}

/// Declares one head in `manifest`; `false` if its base has not been declared yet.
fn declare_one<'a>(
    directory: &'a ModelDirectory,
    name: &'a str,
    files: &BTreeMap<String, DeclaredFile>,
    declarations: &mut HashMap<&'a str, String>,
    manifest: &mut Manifest,
) -> Result<bool, LoadError> {
    let Some(declaration) = directory.heads.get(name) else { return Ok(true) };
    let wanted = &declaration.settings;
    let head_error = |source: RegistryError| LoadError::Head { head: name.to_owned(), version: 1, source };
    let (source, declared, settings) = match &declaration.origin {
        HeadOrigin::Derived { kind, base } => {
            let Some(of_base) = declarations.get(base.as_str()) else { return Ok(false) };
            let declared = format!("{kind} of {base} ({of_base}) {wanted:?}");
            let initial = Settings::default_of(*kind).with(*wanted, *kind).map_err(|error| head_error(error.into()))?;
            let spec = DerivedSpec { kind: *kind, base: latest(manifest, base), initial };
            (HeadSource::Derived(spec), declared, initial)
        }
        HeadOrigin::File(_) | HeadOrigin::Classifier => {
            let Some(file) = files.get(name) else { return Ok(true) };
            let digest = file.parsed.digest.to_hex();
            let head = &file.parsed.head;
            let settings =
                head.initial_settings().with(*wanted, head.kind()).map_err(|error| head_error(error.into()))?;
            (HeadSource::File(digest.clone()), format!("file {digest} {wanted:?}"), settings)
        }
    };
    declarations.insert(name, declared.clone());
    let was_latest = manifest.default == latest(manifest, name);
    let series = manifest.heads.entry(name.to_owned()).or_insert_with(|| ManifestSeries {
        declared: None,
        next_version: 1,
        versions: Vec::new(),
    });
    if series.declared.as_ref() != Some(&declared) {
        series.declared = Some(declared);
        series.versions.push(ManifestVersion { version: series.next_version, source, settings });
        series.next_version += 1;
        // Whoever changes the file of the default head wants the new one to answer.
        if was_latest {
            manifest.default = latest(manifest, name);
        }
    }
    Ok(true)
}

fn latest(manifest: &Manifest, name: &str) -> HeadId {
    let version = manifest.heads.get(name).and_then(|series| series.versions.last()).map_or(0, |last| last.version);
    HeadId { head: name.to_owned(), version }
}

/// Builds every head of a manifest.
fn restore(
    manifest: &Manifest,
    builder: &HeadBuilder,
    files: &BTreeMap<String, DeclaredFile>,
    store: Option<&ModelStore>,
) -> Result<ModelState, LoadError> {
    let by_digest: HashMap<String, &DeclaredFile> =
        files.values().map(|file| (file.parsed.digest.to_hex(), file)).collect();
    let mut state = ModelState {
        generation: manifest.generation,
        default: manifest.default.clone(),
        declared_default: manifest.declared_default.clone(),
        heads: manifest
            .heads
            .iter()
            .map(|(name, series)| {
                let (declared, next_version) = (series.declared.clone(), series.next_version);
                (name.clone(), Series { declared, next_version, versions: Vec::new() })
            })
            .collect(),
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
            let failed = |source: RegistryError| LoadError::Head { head: id.head.clone(), version: id.version, source };
            let built = match &version.source {
                HeadSource::File(digest) => {
                    let stored;
                    let bytes = match (by_digest.get(digest), store) {
                        (Some(file), _) => &file.bytes,
                        (None, Some(store)) => {
                            stored = store.blob(digest)?;
                            &stored
                        }
                        (None, None) => continue,
                    };
                    let file = HeadFile::parse(bytes).map_err(|error| failed(error.into()))?;
                    builder.of_file(id.clone(), file, version.settings)
                }
                HeadSource::Derived(spec) => match state.head(&spec.base.head, Some(spec.base.version)) {
                    Ok(base) => builder.derived(id.clone(), spec.clone(), base, version.settings),
                    Err(_) => {
                        still_waiting.push((id, version));
                        continue;
                    }
                },
            };
            let built = built.map_err(failed)?;
            if let Some(series) = state.heads.get_mut(&id.head) {
                series.versions.push(Arc::new(built));
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
