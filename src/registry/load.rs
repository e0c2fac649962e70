//! From a model directory, and what the state directory remembers of it, to a model that serves.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use super::{
    DirectoryError, FeatureSetQuota, HeadOrigin, Model, ModelDigests, ModelDirectory, RegistryError, StateDir,
    StateError,
    backbone::{BackboneSource, load_backbones, warm_up},
    builder::HeadBuilder,
    model::Writer,
    replica::Replica,
    start::{Start, Started},
    store::ModelStore,
    tuning::Tuning,
};
use crate::{
    batcher::{Backbone, Backbones, BatchLimits, Batcher, DecodePool, Occupancy, Rebuild},
    dataset::Shot,
    files::{FileUnreadable, read},
    heads::{Digest, HeadFile, HeadFileError},
    metrics::Metrics,
    onnx::{CutError, OnnxError, SessionOptions},
    preprocess::{DecodeLimits, PreprocessConfigError, Preprocessor},
    sync::{Mutex, Snapshot},
};

/// What a model is loaded with.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Device and threads of a session.
    pub session: SessionOptions,
    /// Sessions of the backbone, each on its own thread.
    pub n_sessions: usize,
    /// Threads for an image while no other is worked on. More than a session has: another session with so many; CPU alone.
    pub lone_threads: usize,
    /// Of the cores, by all models of the server.
    pub occupancy: Occupancy,
    /// The bounds of the queue and the batches.
    pub limits: BatchLimits,
    /// The bounds of an image.
    pub decode_limits: DecodeLimits,
    /// The threads that decode; without them the workers do.
    pub decode_pool: Option<DecodePool>,
    /// Where the model counts.
    pub metrics: Arc<Metrics>,
    /// Where its heads and settings survive a restart; `None` for a model that is thrown away.
    pub state_dir: Option<StateDir>,
    /// The bounds of the feature sets of all models.
    pub feature_sets: Arc<FeatureSetQuota>,
    /// What the plan of sessions, threads and batches was chosen from, if it was measured.
    pub tuning: Option<Arc<Tuning>>,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model directory is wrong.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileUnreadable),
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
    /// A head file is not the one that was read a moment ago.
    #[error("{path}: it was changed while the server was starting", path = path.display())]
    HeadFileChanged {
        /// The file.
        path: PathBuf,
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
    /// A head of the state that cannot be served by what the model directory is now.
    #[error(
        "head `{head}` version {version} in {state}: {source}. If the model directory has become another model, give it \
         another name in model.toml, or {anew}: then it starts without what was published"
    )]
    OfAnother {
        /// The head.
        head: String,
        /// Its version.
        version: u32,
        /// The folder of the state.
        state: String,
        /// How to begin without it.
        anew: String,
        /// Why.
        source: Box<RegistryError>,
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
    let session = SessionOptions {
        cuda: directory.cuda,
        max_batch_size: options.limits.max_batch_size,
        ..options.session.clone()
    };
    let options = &LoadOptions { session, ..options.clone() };
    let mut files = read_head_files(directory)?;
    let preprocessor = preprocessor_of(directory, options)?;
    let backbones = load_backbones(directory, &mut files, options, preprocessor.output_size())?;
    let (feature_dim, provider) = (backbones.feature_dim, backbones.provider);
    let digests = backbones.digest.map(|backbone| ModelDigests {
        labels: Digest::of(directory.labels.join("\n").as_bytes()).to_hex(),
        backbone: backbone.to_hex(),
    });
    let source = BackboneSource::new(directory, (backbones.is_cut, provider), &preprocessor, options)?;
    let lone_threads = if backbones.lone.is_some() { options.lone_threads } else { options.session.threads };
    let warm = warm_up(directory, backbones, &preprocessor, options)?;
    let each = warm.each.into_iter().map(&wrap).collect();
    let backbones = Backbones { each, lone: warm.lone.map(&wrap), ..warm };
    let rebuild: Rebuild = Arc::new(move || Ok(wrap(Box::new(source.make()?))));

    let store = options.state_dir.as_ref().map(|dir| dir.model(&directory.name)).transpose()?;
    let shape = (directory.labels.len(), feature_dim);
    let feature_sets = store.as_ref().map(|store| {
        store.feature_sets(shape, &options.feature_sets, options.metrics.of_feature_sets(&directory.name))
    });
    let feature_sets = feature_sets.transpose()?.map(Arc::new);
    let fits = store.as_ref().map(ModelStore::fits).transpose()?;
    let builder = HeadBuilder {
        model: directory.name.clone(),
        num_classes: directory.labels.len(),
        feature_dim,
        n_workers: backbones.each.len(),
        // Where the backbone really runs, so that its features need not leave the device.
        session: SessionOptions { device: provider.into(), ..options.session.clone() },
        metrics: Arc::clone(&options.metrics),
        pools: HashMap::new().into(),
    };
    let Started { state, highest, id, damaged } =
        Start { directory, files: &files, builder: &builder, digests, store: store.as_ref() }.run()?;
    let replica = Replica::new(options.metrics.of_state(&directory.name), damaged);

    let model_metrics = options.metrics.of_model(&directory.name);
    let decode_pool = options.decode_pool.clone();
    let batcher = Batcher::start(backbones, rebuild, preprocessor, decode_pool, options.limits, model_metrics)
        .map_err(LoadError::Thread)?;
    let shots = match &directory.train_counts {
        Some(counts) => counts.iter().map(|&count| Shot::of(count)).collect(),
        None => vec![Shot::Unknown; directory.labels.len()],
    };
    options.metrics.set_model(&directory.name, provider.as_str());
    let model = Model {
        labels: directory.labels.clone(),
        shots,
        train_counts: directory.train_counts.clone(),
        provider,
        threads: options.session.threads,
        lone_threads,
        tuning: options.tuning.clone(),
        batcher,
        builder,
        state: Snapshot::new(state),
        writer: Mutex::new(Writer { highest, id }),
        replica,
        store,
        feature_sets,
        fits,
    };
    model.observe(None, &model.state());
    Ok(model)
}

/// A head file of the directory, or one made of a classifier's last layer.
pub(super) struct DeclaredFile {
    pub(super) source: FileSource,
    pub(super) parsed: HeadFile,
}

pub(super) fn preprocessor_of(directory: &ModelDirectory, options: &LoadOptions) -> Result<Preprocessor, LoadError> {
    Preprocessor::new(directory.preprocess.clone(), options.decode_limits.clone())
        .map_err(|source| LoadError::Preprocess { path: directory.path.join("model.toml"), source })
}

/// Where the bytes of a head file are.
pub(super) enum FileSource {
    /// On the disk.
    Directory(PathBuf),
    /// Here alone.
    Made(Vec<u8>),
}

impl DeclaredFile {
    /// The bytes that were parsed, for the store.
    ///
    /// Why are those on the disk read once more, and not kept? All of them together would be held while sessions are
    /// built, and leave holes of their size between what stays.
    pub(super) fn bytes(&self) -> Result<Cow<'_, [u8]>, LoadError> {
        match &self.source {
            FileSource::Made(bytes) => Ok(bytes.into()),
            FileSource::Directory(path) => {
                let bytes = read(path)?;
                match Digest::of(&bytes) == self.parsed.digest {
                    true => Ok(bytes.into()),
                    false => Err(LoadError::HeadFileChanged { path: path.clone() }),
                }
            }
        }
    }
}

pub(super) fn read_head_files(directory: &ModelDirectory) -> Result<BTreeMap<String, DeclaredFile>, LoadError> {
    let mut files = BTreeMap::new();
    for (name, declaration) in &directory.heads {
        if let HeadOrigin::File(path) = &declaration.origin {
            let bytes = read(path)?;
            let parsed =
                HeadFile::parse(&bytes).map_err(|source| LoadError::HeadFile { path: path.clone(), source })?;
            files.insert(name.clone(), DeclaredFile { source: FileSource::Directory(path.clone()), parsed });
        }
    }
    Ok(files)
}
