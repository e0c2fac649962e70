//! Heads of every kind, and how a scoring follows from one.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use ndarray::{Array1, Array2, Axis};
use serde::{Deserialize, Serialize};

use super::{BiasMode, FeatureMap, Scoring, Settings, Weights, weights::normalize};

macro_rules! named {
    ($type:ident { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// The name in head files, requests and answers.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
        impl FromStr for $type {
            type Err = String;
            fn from_str(name: &str) -> Result<Self, String> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err([$($name),+].join(", ")),
                }
            }
        }
    };
}

/// How a head was made, and so what of it is adjustable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// The linear classifier of joint training.
    Joint,
    /// A linear classifier retrained with class-balanced sampling.
    Crt,
    /// A linear classifier with weights divided by a power of their norm.
    TauNorm,
    /// A linear classifier with a learnt scale for each class.
    Lws,
    /// The nearest class mean.
    Ncm,
}
named!(HeadKind { Joint => "joint", Crt => "crt", TauNorm => "tau_norm", Lws => "lws", Ncm => "ncm" });

/// What NCM does to features before it averages and compares them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// L2-normalise.
    L2n,
    /// Subtract the mean of the training features, then L2-normalise.
    Cl2n,
}
named!(Transform { None => "none", L2n => "l2n", Cl2n => "cl2n" });

/// How NCM compares a feature vector with a centroid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Minus the squared Euclidean distance.
    L2,
    /// The cosine of the angle between them.
    Cosine,
    /// Their inner product over D: what the reference code calls `cos`.
    Dot,
}
named!(Metric { L2 => "l2", Cosine => "cosine", Dot => "dot" });

/// The class prior under which a head was in effect trained, so that later corrections do not stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainPrior {
    /// That of the training data.
    Joint,
    /// Every class alike.
    Uniform,
    /// Neither: tau-normalisation lies somewhere between.
    None,
}
named!(TrainPrior { Joint => "joint", Uniform => "uniform", None => "none" });

impl TrainPrior {
    /// The prior that a head of `kind` has if its file does not say.
    pub fn default_of(kind: HeadKind) -> Self {
        match kind {
            HeadKind::Joint => Self::Joint,
            HeadKind::Crt | HeadKind::Lws | HeadKind::Ncm => Self::Uniform,
            HeadKind::TauNorm => Self::None,
        }
    }
}

/// The numbers of a head as its file has them. Every one is finite, and the shapes fit.
#[derive(Clone, Debug)]
pub enum Parameters {
    /// `z = scale ∘ (x Wᵀ + bias)`; without `scale` all are 1, without `bias` all are 0.
    Linear {
        /// `[C, D]`.
        weight: Array2<f32>,
        /// `[C]`.
        bias: Option<Array1<f32>>,
        /// `[C]`, of LWS.
        scale: Option<Array1<f32>>,
    },
    /// Nearest class mean.
    Ncm {
        /// `[C, D]`, means of the transformed features; not normalised again.
        centroids: Array2<f32>,
        /// `[D]`; there if the transform is `cl2n`.
        mean: Option<Array1<f32>>,
        /// Before averaging and comparing.
        transform: Transform,
        /// How to compare.
        metric: Metric,
    },
}

/// What of a head is left once its weights are set apart.
#[derive(Clone, Debug)]
enum Form {
    Linear { bias: Option<Array1<f32>>, scale: Option<Array1<f32>>, log_norms: Arc<[f64]> },
    Ncm { transform: Transform, metric: Metric, squared_norms: Arc<[f64]> },
}

/// Why one head cannot be derived from another.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeriveError {
    /// Only tau-norm is derived.
    #[error("a head of kind {kind} cannot be derived from another: it needs numbers of its own")]
    Kind {
        /// The kind asked for.
        kind: HeadKind,
    },
    /// The base has no linear weights.
    #[error("a tau-normalised head needs a linear base, and the base is of kind {base}")]
    Base {
        /// The base's kind.
        base: HeadKind,
    },
}

/// A head: immutable. Which settings it is served with is somebody else's.
#[derive(Clone, Debug)]
pub struct Head {
    kind: HeadKind,
    weights: Arc<Weights>,
    form: Form,
    train_counts: Option<Arc<[u64]>>,
    train_prior: TrainPrior,
    initial_settings: Settings,
    provenance: BTreeMap<String, String>,
}

impl Head {
    /// Puts a head together. The shapes of `parameters` and the values are the file reader's to check.
    pub fn new(kind: HeadKind, parameters: Parameters, train_counts: Option<Vec<u64>>) -> Self {
        let (weights, form) = match parameters {
            Parameters::Linear { weight, bias, scale } => {
                let log_norms = row_squared_norms(&weight).map(|norm| norm.sqrt().ln()).collect();
                (Weights::new(weight, FeatureMap::Identity, false), Form::Linear { bias, scale, log_norms })
            }
            Parameters::Ncm { mut centroids, mean, transform, metric } => {
                if metric == Metric::Cosine {
                    for mut row in centroids.rows_mut() {
                        normalize(&mut row);
                    }
                }
                let feature_map = match (transform, mean) {
                    (Transform::Cl2n, Some(mean)) => FeatureMap::CenterL2Normalize { mean },
                    (Transform::L2n, _) => FeatureMap::L2Normalize,
                    // The cosine normalises the features whatever was done to them before; for the other two that is done.
                    _ if metric == Metric::Cosine => FeatureMap::L2Normalize,
                    _ => FeatureMap::Identity,
                };
                let squared_norms = row_squared_norms(&centroids).collect();
                (
                    Weights::new(centroids, feature_map, metric == Metric::L2),
                    Form::Ncm { transform, metric, squared_norms },
                )
            }
        };
        Self {
            kind,
            weights: Arc::new(weights),
            form,
            train_counts: train_counts.map(Into::into),
            train_prior: TrainPrior::default_of(kind),
            initial_settings: Settings::default_of(kind),
            provenance: BTreeMap::new(),
        }
    }

    /// This head with another training prior, other initial settings and a provenance.
    #[must_use]
    pub fn with_record(mut self, prior: TrainPrior, initial: Settings, provenance: BTreeMap<String, String>) -> Self {
        self.train_prior = prior;
        self.initial_settings = initial;
        self.provenance = provenance;
        self
    }

    /// A head of `kind` that shares this one's weights.
    ///
    /// An LWS base counts as what it computes: a linear layer with rows `sⱼwⱼ` and bias `sⱼbⱼ`.
    ///
    /// # Errors
    /// [`DeriveError`] if `kind` is not tau_norm, or this head has no linear weights.
    pub fn derive(&self, kind: HeadKind, initial: Settings) -> Result<Self, DeriveError> {
        if kind != HeadKind::TauNorm {
            return Err(DeriveError::Kind { kind });
        }
        if matches!(self.form, Form::Ncm { .. }) {
            return Err(DeriveError::Base { base: self.kind });
        }
        let mut derived = self.clone();
        derived.kind = kind;
        derived.train_prior = TrainPrior::default_of(kind);
        derived.initial_settings = initial;
        // How the weights were fitted says nothing of this head; the samples that they have met are still no test of it.
        derived.provenance = self.sets_met().map(|(key, digest)| (key.to_owned(), digest.to_owned())).collect();
        Ok(derived)
    }

    /// The same head on weights that were found equal, so that both use one matrix product.
    #[must_use]
    pub fn sharing(mut self, weights: &Arc<Weights>) -> Self {
        debug_assert_eq!(self.weights.digest(), weights.digest());
        self.weights = Arc::clone(weights);
        self
    }

    /// `a`, `c` and `T` of the algebra for these settings, in `O(C)`.
    ///
    /// A class whose weight vector is zero keeps `a = 1`: there is nothing to normalise, and its score is 0 anyway.
    ///
    /// # Reference
    /// Kang et al., ICLR 2020, section 4.2 (tau-normalised classifier, LWS); the reference code drops the bias of tau-norm.
    pub fn scoring(&self, settings: &Settings) -> Scoring {
        let num_classes = self.num_classes();
        let (scale, shift) = match &self.form {
            Form::Ncm { metric, squared_norms, .. } => match metric {
                Metric::L2 => (vec![2.0; num_classes], squared_norms.iter().map(|norm| -norm).collect()),
                Metric::Cosine => (vec![1.0; num_classes], vec![0.0; num_classes]),
                Metric::Dot => (vec![1.0 / self.feature_dim() as f64; num_classes], vec![0.0; num_classes]),
            },
            Form::Linear { bias, scale, log_norms } => {
                let of = |values: &Option<Array1<f32>>, class: usize, missing: f64| {
                    values.as_ref().map_or(missing, |values| f64::from(values[class]))
                };
                let tau = settings.tau.unwrap_or(0.0);
                let mode =
                    if self.kind == HeadKind::TauNorm { settings.bias.unwrap_or_default() } else { BiasMode::Keep };
                (0..num_classes)
                    .map(|class| {
                        let row_scale = of(scale, class, 1.0);
                        let log_norm = log_norms[class] + row_scale.abs().ln();
                        // A scale near the smallest float32 on a norm near it would overflow, and inf · 0 is NaN.
                        let normaliser = if log_norm.is_finite() { (-tau * log_norm).exp().min(f64::MAX) } else { 1.0 };
                        let bias = row_scale * of(bias, class, 0.0);
                        let shift = match mode {
                            BiasMode::Drop => 0.0,
                            BiasMode::Keep => bias,
                            BiasMode::Scale => normaliser * bias,
                        };
                        (normaliser * row_scale, shift)
                    })
                    .unzip()
            }
        };
        Scoring::new(scale, shift, settings.temperature, self.train_counts.as_deref())
    }

    /// What kind of head it is.
    pub fn kind(&self) -> HeadKind {
        self.kind
    }

    /// Its matrix product, possibly shared with others.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// C.
    pub fn num_classes(&self) -> usize {
        self.weights.num_classes()
    }

    /// D.
    pub fn feature_dim(&self) -> usize {
        self.weights.feature_dim()
    }

    /// The norms that tau is an exponent of, `[C]`: `‖wⱼ‖`, of LWS `|sⱼ|·‖wⱼ‖`. `None` for NCM.
    pub fn row_norms(&self) -> Option<Vec<f64>> {
        match &self.form {
            Form::Linear { scale, log_norms, .. } => {
                let scale = |class: usize| scale.as_ref().map_or(1.0, |scale| f64::from(scale[class]).abs());
                Some(log_norms.iter().enumerate().map(|(class, log_norm)| scale(class) * log_norm.exp()).collect())
            }
            Form::Ncm { .. } => None,
        }
    }

    /// Weight `[C, D]` and bias `[C]` of the linear layer that this head's numbers stand for, before any tau: of LWS the
    /// scaled ones, of a head without a bias zeros. `None` for NCM.
    pub fn linear_layer(&self) -> Option<(Array2<f32>, Array1<f32>)> {
        let Form::Linear { bias, scale, .. } = &self.form else { return None };
        let mut weight = self.weights.matrix().to_owned();
        let mut bias = bias.clone().unwrap_or_else(|| Array1::zeros(self.num_classes()));
        if let Some(scale) = scale {
            for (mut row, &scale) in weight.rows_mut().into_iter().zip(scale) {
                row *= scale;
            }
            bias *= scale;
        }
        Some((weight, bias))
    }

    /// What its file says is done to features first; the weights' feature map may do more, as the cosine needs it.
    pub fn transform(&self) -> Transform {
        match self.form {
            Form::Ncm { transform, .. } => transform,
            Form::Linear { .. } => Transform::None,
        }
    }

    /// How NCM compares; `None` for the other kinds.
    pub fn metric(&self) -> Option<Metric> {
        match self.form {
            Form::Ncm { metric, .. } => Some(metric),
            Form::Linear { .. } => None,
        }
    }

    /// The counts it was fitted on, `[C]`.
    pub fn train_counts(&self) -> Option<&[u64]> {
        self.train_counts.as_deref()
    }

    /// The class prior it was in effect trained under.
    pub fn train_prior(&self) -> TrainPrior {
        self.train_prior
    }

    /// The settings that a new version starts from.
    pub fn initial_settings(&self) -> &Settings {
        &self.initial_settings
    }

    /// The feature sets that it or its bases were fitted on (`...feature_set_digest`) or chosen on (`...validation_set_digest`),
    /// by their digests; keys of a base begin with `base_`.
    pub fn sets_met(&self) -> impl Iterator<Item = (&str, &str)> {
        // Tau-normalisation fits nothing on its set.
        let fits = self.provenance.get("method").is_none_or(|method| method != HeadKind::TauNorm.as_str());
        let is_met = move |key: &str| key.ends_with("_set_digest") && (fits || key != "feature_set_digest");
        let words = self.provenance.iter().map(|(key, digest)| (key.as_str(), digest.as_str()));
        words.filter(move |(key, _)| is_met(key))
    }

    /// Where it came from: method, parameters, seed, digest of the features.
    pub fn provenance(&self) -> &BTreeMap<String, String> {
        &self.provenance
    }
}

fn row_squared_norms(matrix: &Array2<f32>) -> impl Iterator<Item = f64> + '_ {
    matrix.axis_iter(Axis(0)).map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum())
}
