//! The head's matrix product: features in, raw scores out.

use std::sync::Arc;

use ort::session::{Session, SessionOutputs};
use ort::value::{Tensor, TensorRef};

use super::batch_sizes::sizes_to_warm;
use super::build::{SharedWeight, build_session};
use super::device::{DeviceChoice, Provider, SessionOptions, providers_to_try};
use super::error::OnnxError;
use super::features::{Features, Rows};
use super::head_graph::{FEATURES, SCORES, SQUARED_NORM, ScorerSpec, WEIGHT};
use super::session::tell_fallback;
use crate::heads::Weights;

/// Raw scores `g(x) Wᵀ` of one weight matrix, in one ONNX Runtime session.
///
/// Scale and shift of each class (tau, bias, temperature) are applied by the caller in O(C), so that one product serves
/// every head and every tau that shares the weights.
#[derive(Debug)]
pub struct Scorer {
    session: Session,
    provider: Provider,
    num_classes: usize,
    feature_dim: usize,
    squared_norm: bool,
    /// What the session may read: it is dropped before this, as fields are in their order.
    _weights: Option<Arc<Weights>>,
}

/// What a scorer answers for `n` rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `g(x) Wᵀ`, `[n, num_classes]` row by row.
    pub raw: Vec<f32>,
    /// `‖g(x)‖²`, `[n]`, if the scorer was built for it.
    pub squared_norm: Option<Vec<f32>>,
    /// Rows.
    pub n: usize,
    /// C
    pub num_classes: usize,
}

impl Scorer {
    /// Builds the graph, loads it and runs it once on a zero row; on a device also at each size that batches are padded to.
    ///
    /// Pass the backbone's provider as the device (`provider.into()`), so that features need not leave it.
    ///
    /// # Errors
    /// [`OnnxError::WeightShape`], [`OnnxError::TooLarge`], and those of loading and of a first run.
    pub fn build(spec: &ScorerSpec<'_>, options: &SessionOptions) -> Result<Self, OnnxError> {
        super::library::init(None)?;
        Self::build_on_any(spec, &spec.encode()?, options)
    }

    /// On the first of the devices asked for that works.
    fn build_on_any(spec: &ScorerSpec<'_>, model: &[u8], options: &SessionOptions) -> Result<Self, OnnxError> {
        let providers = providers_to_try(options.device);
        for (i, &provider) in providers.iter().enumerate() {
            match Self::build_on(spec, model, options, provider, None) {
                Err(err) if i + 1 < providers.len() && err.is_of_the_device() => _ = tell_fallback(provider, &err),
                result => return result,
            }
        }
        Self::build_on(spec, model, options, Provider::Cpu, None)
    }

    /// Builds one scorer for each of `n_sessions` workers. On the CPU they read the weights where these are, and share the
    /// rearranged copy that ONNX Runtime makes of them.
    ///
    /// # Errors
    /// Those of [`Scorer::build`].
    #[expect(unsafe_code, reason = "sessions that borrow")]
    pub fn build_several(
        weights: &Arc<Weights>,
        options: &SessionOptions,
        n_sessions: usize,
    ) -> Result<Vec<Self>, OnnxError> {
        super::library::init(None)?;
        let spec = ScorerSpec::of(weights);
        let model = spec.encode()?;
        if options.device != DeviceChoice::Cpu {
            return (0..n_sessions).map(|_| Self::build_on_any(&spec, &model, options)).collect();
        }
        // SAFETY: only the sessions below are given this, each of which keeps the weights.
        let shared = unsafe { SharedWeight::new(WEIGHT, weights) };
        let shared = shared.map_err(|source| OnnxError::Load { device: options.device, source })?;
        let build = |_| Self::build_on(&spec, &model, options, Provider::Cpu, Some((&shared, weights)));
        (0..n_sessions).map(build).collect()
    }

    fn build_on(
        spec: &ScorerSpec<'_>,
        model: &[u8],
        options: &SessionOptions,
        provider: Provider,
        shared: Option<(&SharedWeight, &Arc<Weights>)>,
    ) -> Result<Self, OnnxError> {
        let session = build_session(model, None, options, provider, shared.map(|(shared, _)| shared))?;
        let ScorerSpec { num_classes, feature_dim, squared_norm, .. } = *spec;
        let weights = shared.map(|(_, weights)| Arc::clone(weights));
        let mut scorer = Self { session, provider, num_classes, feature_dim, squared_norm, _weights: weights };
        let sizes = if provider == Provider::Cpu { vec![1] } else { sizes_to_warm(options.max_batch_size) };
        for n in sizes {
            scorer.run_host(&vec![0.0; n * feature_dim], n)?;
        }
        Ok(scorer)
    }

    /// The execution provider really in use.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// C
    #[must_use]
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// D
    #[must_use]
    pub fn feature_dim(&self) -> usize {
        self.feature_dim
    }

    /// Scores a batch. Features on the same device are used where they are. The scores of features that are too large are
    /// not finite: that is a matter of their row, and of no other of the batch.
    ///
    /// # Errors
    /// [`OnnxError::FeatureShape`] if the rows are of another length, and [`OnnxError::Run`].
    pub fn run(&mut self, features: &Features) -> Result<Scores, OnnxError> {
        let (n, feature_dim) = (features.n(), features.feature_dim());
        if feature_dim != self.feature_dim {
            return Err(OnnxError::FeatureShape {
                expected_dim: self.feature_dim,
                n,
                feature_dim,
                len: n * feature_dim,
            });
        }
        match features.rows() {
            Rows::Device(tensor) if self.provider != Provider::Cpu => self.run_padded(tensor, n),
            Rows::Device(_) => self.run_host(&features.to_host()?, n),
            Rows::Host(rows) => self.run_host(rows, n),
        }
    }

    /// Runs on all rows of a tensor where it is, and keeps the scores of the first `n`.
    pub(super) fn run_padded(&mut self, features: &Tensor<f32>, n: usize) -> Result<Scores, OnnxError> {
        let n_run = features.shape().first().and_then(|&rows| usize::try_from(rows).ok()).unwrap_or(n);
        let mut scores = self.run_tensor(features, n_run)?;
        scores.n = n.min(n_run);
        scores.raw.truncate(scores.n * scores.num_classes);
        if let Some(norms) = &mut scores.squared_norm {
            norms.truncate(scores.n);
        }
        Ok(scores)
    }

    pub(super) fn run_host(&mut self, rows: &[f32], n: usize) -> Result<Scores, OnnxError> {
        let run_error = |source| OnnxError::Run { n, source };
        let features = TensorRef::from_array_view(([n, self.feature_dim], rows)).map_err(run_error)?;
        self.run_tensor(&features, n)
    }

    /// Runs on a tensor where it is, host or device; the scores come to the host.
    fn run_tensor(&mut self, features: &Tensor<f32>, n: usize) -> Result<Scores, OnnxError> {
        let outputs = self.session.run(ort::inputs![FEATURES => features]);
        let outputs = outputs.map_err(|source| OnnxError::Run { n, source })?;
        collect(&outputs, n, self.num_classes, self.squared_norm)
    }
}

/// Copies the outputs out of ONNX Runtime's memory; a device's have been brought to the host by the run.
fn collect(
    outputs: &SessionOutputs<'_>,
    n: usize,
    num_classes: usize,
    squared_norm: bool,
) -> Result<Scores, OnnxError> {
    let run_error = |source| OnnxError::Run { n, source };
    let read = |name: &str, expected: &[usize]| {
        let shape_error = |found| OnnxError::OutputShape { found, n, feature_dim: num_classes };
        let value = outputs.get(name).ok_or_else(|| shape_error(Vec::new()))?;
        let (shape, values) = value.try_extract_tensor::<f32>().map_err(run_error)?;
        let same =
            shape.len() == expected.len() && shape.iter().zip(expected).all(|(&a, &b)| usize::try_from(a) == Ok(b));
        if same { Ok(values.to_vec()) } else { Err(shape_error(shape.to_vec())) }
    };
    let raw = read(SCORES, &[n, num_classes])?;
    let squared_norm = if squared_norm { Some(read(SQUARED_NORM, &[n])?) } else { None };
    Ok(Scores { raw, squared_norm, n, num_classes })
}
