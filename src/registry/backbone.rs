//! The sessions of a backbone, also of one that has to be cut off a whole classifier first.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;

use super::{
    HeadOrigin, LoadError, LoadOptions, ModelDirectory,
    load::{DeclaredFile, FileSource},
};
use crate::{
    batcher::{Backbone, Backbones},
    files::{FileUnreadable, read},
    heads::{Digest, FORMAT, HeadFile, HeadKind, TensorView, write_safetensors},
    onnx::{self, CutClassifier, OnnxError, SessionOptions, cut_classifier, sizes_to_warm},
    preprocess::Preprocessor,
};

/// The sessions of a backbone, and what they told of it.
pub(super) struct LoadedBackbones {
    pub(super) sessions: Vec<onnx::Backbone>,
    /// The one with more threads, for an image while no other is worked on.
    pub(super) lone: Option<onnx::Backbone>,
    pub(super) feature_dim: usize,
    pub(super) provider: onnx::Provider,
    /// Whether they are what was left of a classifier.
    pub(super) is_cut: bool,
    /// Of the file, if it is to be written down.
    pub(super) digest: Option<Digest>,
}

/// The backbone, or what is left of a whole classifier once its last layer is cut off and put among the head files.
pub(super) fn load_backbones(
    directory: &ModelDirectory,
    files: &mut BTreeMap<String, DeclaredFile>,
    options: &LoadOptions,
    image_size: Option<(usize, usize)>,
) -> Result<LoadedBackbones, LoadError> {
    let path = &directory.backbone;
    let failed = |source: OnnxError| LoadError::Backbone { path: path.clone(), source };
    let from_classifier: Vec<&String> = directory
        .heads
        .iter()
        .filter(|(_, head)| head.origin == HeadOrigin::Classifier)
        .map(|(name, _)| name)
        .collect();
    let heads_dim = files.values().next().map(|file| file.parsed.head.feature_dim());

    let file = Bytes::from(read(path)?);
    let digest = options.state_dir.is_some().then(|| Digest::of(&file));
    let mut first = onnx::Backbone::load(&file, path.parent(), &options.session).map_err(failed)?;
    let fits = heads_dim.is_none_or(|dim| dim == first.feature_dim());
    let mut cut = None;
    if !from_classifier.is_empty() || !fits {
        let made = cut_of(path, file.clone(), heads_dim.unwrap_or_default(), first.feature_dim())?;
        first = onnx::Backbone::load(&made.backbone, path.parent(), &options.session).map_err(failed)?;
        for name in from_classifier {
            let bytes = classifier_head_file(&made, directory.train_counts.as_deref());
            let parsed =
                HeadFile::parse(&bytes).map_err(|source| LoadError::HeadFile { path: path.clone(), source })?;
            files.insert(name.clone(), DeclaredFile { source: FileSource::Made(bytes), parsed });
        }
        cut = Some(made);
    }
    let (feature_dim, provider) = (first.feature_dim(), first.provider());
    let model = cut.as_ref().map_or(&*file, |cut| &cut.backbone);
    let image_size = first.image_size(image_size);
    let mut of_each = vec![options.session.clone(); options.n_sessions.max(1)];
    if let (Some(lone), Some(of_one)) = (lone_options(options, provider, image_size), of_each.first_mut()) {
        // They hardly ever run at the same time.
        of_one.shares_arena = lone.shares_arena;
        of_each.push(lone);
    }
    let mut sessions = first.replicate(model, path.parent(), &of_each, image_size).map_err(failed)?;
    let lone = match image_size {
        Some(size) if sessions.len() > options.n_sessions.max(1) => agreeing(&mut sessions, size),
        _ => None,
    };
    Ok(LoadedBackbones { sessions, lone, feature_dim, provider, is_cut: cut.is_some(), digest })
}

/// The options of the session for lone images, if there is to be one. It is run and compared before it serves, for which the size
/// of the images must be known.
fn lone_options(
    options: &LoadOptions,
    provider: onnx::Provider,
    image_size: Option<(usize, usize)>,
) -> Option<SessionOptions> {
    let threads = options.lone_threads;
    if threads <= options.session.threads || provider != onnx::Provider::Cpu {
        return None;
    }
    if image_size.is_none() {
        tracing::warn!("the size of the tensors depends on the image, and lone images have no threads of their own");
        return None;
    }
    Some(SessionOptions { threads, spinning: true, shares_arena: true, ..options.session.clone() })
}

/// Takes off the last session, and gives it back if its features are the first one's to the last bit: what an image is answered
/// must not depend on what else there is to do.
fn agreeing(sessions: &mut Vec<onnx::Backbone>, (height, width): (usize, usize)) -> Option<onnx::Backbone> {
    let mut lone = sessions.pop()?;
    let agrees = lone.agrees_with(sessions.first_mut()?, height, width);
    if !matches!(agrees, Ok(true)) {
        tracing::warn!(?agrees, "with more threads the backbone gives other features, and lone images go without");
        return None;
    }
    Some(lone)
}

/// The classifier in `path`, cut in two. The widths are what the heads ask for and what the file gives.
fn cut_of(path: &Path, file: Bytes, feature_dim: usize, found_dim: usize) -> Result<CutClassifier, LoadError> {
    let error = |source| LoadError::Cut { path: path.to_owned(), feature_dim, found_dim, source: Box::new(source) };
    cut_classifier(file, path.parent()).map_err(error)
}

/// The head file of a classifier's last layer: the same layer gives the same bytes.
pub(crate) fn classifier_head_file(cut: &CutClassifier, train_counts: Option<&[u64]>) -> Vec<u8> {
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("kind", HeadKind::Joint.to_string()),
        ("classes", cut.num_classes.to_string()),
        ("feature_dim", cut.feature_dim.to_string()),
        ("transform", "none".to_owned()),
        ("train_prior", "joint".to_owned()),
        ("method", "last layer of a classifier".to_owned()),
    ];
    let counts: Option<Vec<i64>> =
        train_counts.map(|counts| counts.iter().map(|&count| i64::try_from(count).unwrap_or(i64::MAX)).collect());
    let mut tensors = BTreeMap::new();
    tensors.insert("weight".to_owned(), TensorView::F32(&cut.weight, vec![cut.num_classes, cut.feature_dim]));
    if let Some(bias) = &cut.bias {
        tensors.insert("bias".to_owned(), TensorView::F32(bias, vec![cut.num_classes]));
    }
    if let Some(counts) = &counts {
        tensors.insert("train_counts".to_owned(), TensorView::I64(counts, vec![counts.len()]));
    }
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut bytes = Vec::new();
    // Writing to a vector does not fail.
    let _ = write_safetensors(&mut bytes, &metadata, &tensors);
    bytes
}

/// Runs every session once at each batch size, and hands them on.
pub(super) fn warm_up(
    directory: &ModelDirectory,
    backbones: LoadedBackbones,
    preprocessor: &Preprocessor,
    options: &LoadOptions,
) -> Result<Backbones, LoadError> {
    let given = preprocessor.output_size();
    let image_size = backbones.sessions.first().and_then(|session| session.image_size(given));
    let mut each: Vec<Box<dyn Backbone>> = Vec::with_capacity(backbones.sessions.len());
    for mut session in backbones.sessions {
        if let (Some((height, width)), (Some(expected_height), Some(expected_width))) = (given, session.input_size())
            && (height, width) != (expected_height, expected_width)
        {
            return Err(LoadError::ImageSize { height, width, expected_height, expected_width });
        }
        warm_up_session(&mut session, given, options.session.max_batch_size)
            .map_err(|source| LoadError::Backbone { path: directory.backbone.clone(), source })?;
        each.push(Box::new(session));
    }
    // It has run already, when it was compared, and is given nothing but single images.
    let lone = backbones.lone.map(|lone| -> Box<dyn Backbone> { Box::new(lone) });
    Ok(Backbones { each, lone, image_size, occupancy: options.occupancy.clone() })
}

/// Runs a session once at each batch size that is to be warmed, if it is known of which size the images are.
fn warm_up_session(
    session: &mut onnx::Backbone,
    given: Option<(usize, usize)>,
    max_batch_size: usize,
) -> Result<(), OnnxError> {
    let batch_sizes = sizes_to_warm(max_batch_size);
    session.image_size(given).map_or(Ok(()), |(height, width)| session.warm_up(&batch_sizes, height, width))
}

/// What a session is made of again while the model serves.
pub(super) struct BackboneSource {
    path: PathBuf,
    is_cut: bool,
    /// When the file was written, and how long it is: another model must not take the place of the one that serves.
    stamp: (SystemTime, u64),
    session: SessionOptions,
    image_size: Option<(usize, usize)>,
}

impl BackboneSource {
    pub(super) fn new(
        directory: &ModelDirectory,
        (is_cut, provider): (bool, onnx::Provider),
        preprocessor: &Preprocessor,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let path = directory.backbone.clone();
        Ok(Self {
            stamp: stamp(&path)?,
            path,
            is_cut,
            // Where it runs now, and nowhere else.
            session: SessionOptions { device: provider.into(), ..options.session.clone() },
            image_size: preprocessor.output_size(),
        })
    }

    /// A session, warmed.
    pub(super) fn make(&self) -> Result<onnx::Backbone, LoadError> {
        let path = &self.path;
        let failed = |source: OnnxError| LoadError::Backbone { path: path.clone(), source };
        if stamp(path)? != self.stamp {
            return Err(LoadError::BackboneChanged { path: path.clone() });
        }
        let file = Bytes::from(read(path)?);
        let cut = self.is_cut.then(|| cut_of(path, file.clone(), 0, 0)).transpose()?;
        let model = cut.as_ref().map_or(&*file, |cut| &cut.backbone);
        let mut session = onnx::Backbone::load(model, path.parent(), &self.session).map_err(failed)?;
        warm_up_session(&mut session, self.image_size, self.session.max_batch_size).map_err(failed)?;
        Ok(session)
    }
}

fn stamp(path: &Path) -> Result<(SystemTime, u64), LoadError> {
    let stamp = std::fs::metadata(path).and_then(|metadata| Ok((metadata.modified()?, metadata.len())));
    Ok(stamp.map_err(FileUnreadable::of(path))?)
}
