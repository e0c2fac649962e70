//! What a fit is asked to do: the method and its parameters, every default filled in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::Sampling;
use crate::{
    heads::{BiasMode, HeadKind, MAX_TAU, Metric, Transform},
    json::{self, name, present, present_name},
};

/// The batch size for which the paper's learning rate is meant; it scales with the batch.
const REFERENCE_BATCH_SIZE: f64 = 512.0;

/// A method with its parameters.
///
/// | parameter | joint | crt | lws |
/// |---|---|---|---|
/// | sampler | instance_balanced | class_balanced | class_balanced |
/// | solver | sgd | sgd | sgd |
/// | epochs | 90 | 10 | 5 |
/// | batch_size | 512, or all rows if fewer | the same | the same |
/// | learning_rate | 0.2 · batch_size / 512 | the same | the same |
/// | momentum | 0.9 | 0.9 | 0.9 |
/// | weight_decay | 0.0005 | 0.0005 | 0.0005 |
/// | seed | 0 | 0 | 0 |
/// | init | – | – | ones |
///
/// tau_norm: `tau` 0, 0.1, ..., 2; `bias` best. ncm: `transform` cl2n, `metric` l2. Both take `seed`, which is that of a
/// held-out split.
///
/// # Reference
/// Kang et al., ICLR 2020, and the ImageNet-LT configurations of the reference code.
#[derive(Clone, Debug, PartialEq)]
pub enum Recipe {
    /// A linear classifier anew, as joint training would have made it: `joint` with instance-balanced, `crt` with
    /// class-balanced sampling by default.
    Linear(HeadKind, Softmax),
    /// A factor for each class of the base.
    Lws(Softmax, LwsInit),
    /// Tau and the treatment of the bias, chosen on validation.
    TauNorm(TauGrid),
    /// The means of the classes.
    Ncm(NcmOptions),
}

/// Softmax regression: what is drawn, and how its loss is brought down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// How rows are drawn, or for [`Solver::Lbfgs`] how they are weighted.
    pub sampling: Sampling,
    /// How the loss is brought down.
    pub solver: Solver,
    /// Passes over as many rows as the set has.
    pub epochs: usize,
    /// Rows of a step; `None` is 512, or all rows if they are fewer.
    pub batch_size: Option<usize>,
    /// Of the first epoch; `None` is 0.2 · batch_size / 512. It falls as a half cosine.
    pub learning_rate: Option<f64>,
    /// Of SGD, without dampening, not Nesterov's.
    pub momentum: f64,
    /// Adds `weight_decay / 2` times the squared norm of all that is fitted to the loss.
    pub weight_decay: f64,
    /// Of the initial weights, the draws and a held-out split.
    pub seed: u64,
}

/// How a loss is brought down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// Stochastic gradient descent with momentum: the reference code's.
    #[default]
    Sgd,
    /// L-BFGS on the weighted loss of all rows: its optimum.
    Lbfgs,
}

/// Where the factors of LWS start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LwsInit {
    /// At 1: the reference code.
    #[default]
    Ones,
    /// At `1/‖wⱼ‖`: tau-normalised with tau 1.
    InverseNorm,
}

/// What tau-normalisation chooses from.
#[derive(Clone, Debug, PartialEq)]
pub struct TauGrid {
    /// The values, at least one, each from 0 to 5.
    pub tau: Vec<f64>,
    /// The treatments of the bias, at least one.
    pub bias: Vec<BiasMode>,
    /// Of a held-out split.
    pub seed: u64,
}

/// How class means are made and compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NcmOptions {
    /// Before averaging and comparing.
    pub transform: Transform,
    /// How to compare.
    pub metric: Metric,
    /// Of a held-out split.
    pub seed: u64,
}

/// What is wrong with the parameters of a method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// An unknown key, one that the method has no use for, or a value of another type.
    #[error("params of method {method}: {problem}")]
    Params {
        /// The method.
        method: HeadKind,
        /// What is wrong with it, by name.
        problem: String,
    },
    /// A value out of range.
    #[error("`{key}` must be {range}, and is {found}")]
    OutOfRange {
        /// The parameter.
        key: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it is.
        found: String,
    },
}

impl RecipeError {
    /// Names one more key where the keys that are known are listed.
    fn with_key(self, key: &str) -> Self {
        match self {
            Self::Params { method, problem } if problem.contains("expected one of") => {
                Self::Params { method, problem: format!("{problem}, `{key}`") }
            }
            other => other,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SoftmaxParams {
    #[serde(default, deserialize_with = "present_name")]
    sampler: Option<NamedSampling>,
    #[serde(default, deserialize_with = "present")]
    q: Option<f64>,
    #[serde(default, deserialize_with = "name")]
    solver: Solver,
    #[serde(default, deserialize_with = "present")]
    epochs: Option<usize>,
    #[serde(default, deserialize_with = "present")]
    batch_size: Option<usize>,
    #[serde(default, deserialize_with = "present")]
    learning_rate: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    momentum: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    weight_decay: Option<f64>,
    #[serde(default)]
    seed: u64,
}

// Written out beside `SoftmaxParams`, because serde cannot both flatten and refuse unknown keys.
const LWS_ONLY: &str = "init";

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum NamedSampling {
    InstanceBalanced,
    ClassBalanced,
    ClassBalancedIid,
    SquareRoot,
    ProgressivelyBalanced,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TauNormParams {
    #[serde(default, deserialize_with = "present")]
    tau: Option<Vec<f64>>,
    #[serde(default, deserialize_with = "name")]
    bias: BiasChoice,
    #[serde(default)]
    seed: u64,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BiasChoice {
    Drop,
    Keep,
    Scale,
    #[default]
    Best,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NcmParams {
    #[serde(default, deserialize_with = "present")]
    transform: Option<String>,
    #[serde(default, deserialize_with = "present")]
    metric: Option<String>,
    #[serde(default)]
    seed: u64,
}

impl Recipe {
    /// Reads the parameters of `method`; what is not there has its default.
    ///
    /// # Errors
    /// [`RecipeError`] names the parameter.
    pub fn new(method: HeadKind, mut params: Map<String, Value>) -> Result<Self, RecipeError> {
        match method {
            HeadKind::Joint | HeadKind::Crt => {
                Ok(Self::Linear(method, softmax(method, read_params(method, &params)?)?))
            }
            HeadKind::Lws => {
                let init = params.remove(LWS_ONLY).map_or(Ok(LwsInit::Ones), name);
                let problem = |error: serde_json::Error| format!("`{LWS_ONLY}`: {}", json::plain(&error.to_string()));
                let init = init.map_err(|error| RecipeError::Params { method, problem: problem(error) })?;
                let params = read_params(method, &params).map_err(|error| error.with_key(LWS_ONLY))?;
                Ok(Self::Lws(softmax(method, params)?, init))
            }
            HeadKind::TauNorm => {
                let params: TauNormParams = read_params(method, &params)?;
                let tau = params.tau.unwrap_or_else(|| (0..=20).map(|step| f64::from(step) / 10.0).collect());
                const RANGE: &str = "a list of 1 to 10000 numbers from 0 to 5";
                if !(1..=10_000).contains(&tau.len()) {
                    return Err(RecipeError::OutOfRange {
                        key: "tau",
                        range: RANGE,
                        found: format!("{} of them", tau.len()),
                    });
                }
                if let Some(value) = tau.iter().find(|value| !(0.0..=MAX_TAU).contains(*value)) {
                    return Err(RecipeError::OutOfRange { key: "tau", range: RANGE, found: value.to_string() });
                }
                let bias = match params.bias {
                    BiasChoice::Drop => vec![BiasMode::Drop],
                    BiasChoice::Keep => vec![BiasMode::Keep],
                    BiasChoice::Scale => vec![BiasMode::Scale],
                    BiasChoice::Best => vec![BiasMode::Drop, BiasMode::Keep, BiasMode::Scale],
                };
                Ok(Self::TauNorm(TauGrid { tau, bias, seed: params.seed }))
            }
            HeadKind::Ncm => {
                let params: NcmParams = read_params(method, &params)?;
                let unknown = |key: &'static str, range: &'static str, found: &str| RecipeError::OutOfRange {
                    key,
                    range,
                    found: format!("`{found}`"),
                };
                let transform = match params.transform.as_deref() {
                    None => Transform::Cl2n,
                    Some(name) => name.parse().map_err(|_| unknown("transform", "one of none, l2n, cl2n", name))?,
                };
                let metric = match params.metric.as_deref() {
                    None => Metric::L2,
                    Some(name) => name.parse().map_err(|_| unknown("metric", "one of l2, cosine, dot", name))?,
                };
                Ok(Self::Ncm(NcmOptions { transform, metric, seed: params.seed }))
            }
        }
    }

    /// The kind of head that comes of it.
    pub fn method(&self) -> HeadKind {
        match self {
            Self::Linear(kind, _) => *kind,
            Self::Lws(..) => HeadKind::Lws,
            Self::TauNorm(_) => HeadKind::TauNorm,
            Self::Ncm(_) => HeadKind::Ncm,
        }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        match self {
            Self::Linear(_, softmax) | Self::Lws(softmax, _) => softmax.seed,
            Self::TauNorm(grid) => grid.seed,
            Self::Ncm(options) => options.seed,
        }
    }

    /// The method and every parameter with its value, as head files carry them, of a fit of `num_rows` rows.
    pub fn words(&self, num_rows: usize) -> BTreeMap<String, String> {
        let mut words = BTreeMap::new();
        let mut word = |key: &str, value: String| _ = words.insert(key.to_owned(), value);
        word("method", self.method().to_string());
        word("seed", self.seed().to_string());
        match self {
            Self::Linear(_, softmax) | Self::Lws(softmax, _) => {
                match softmax.sampling {
                    Sampling::Power(q) => word("q", q.to_string()),
                    sampling => word("sampler", plain_name(&sampling)),
                }
                word("solver", plain_name(&softmax.solver));
                word("weight_decay", softmax.weight_decay.to_string());
                if softmax.solver == Solver::Sgd {
                    word("epochs", softmax.epochs.to_string());
                    word("batch_size", softmax.batch_size(num_rows).to_string());
                    word("learning_rate", softmax.learning_rate(1, num_rows).to_string());
                    word("momentum", softmax.momentum.to_string());
                }
                if let Self::Lws(_, init) = self {
                    word("init", plain_name(init));
                    // Of the two treatments in the literature the reference code's, always.
                    word("bias_treatment", "scale".to_owned());
                }
            }
            // What was chosen stands in the file already, under the keys that every head of the kind has.
            Self::TauNorm(_) | Self::Ncm(_) => {}
        }
        words
    }

    /// Whether it starts from another head's weights.
    pub fn needs_base(&self) -> bool {
        matches!(self, Self::Lws(..) | Self::TauNorm(_))
    }

    /// Whether there is something to choose, which takes a validation set.
    pub fn needs_validation(&self) -> bool {
        matches!(self, Self::TauNorm(grid) if grid.tau.len() * grid.bias.len() > 1)
    }
}

fn read_params<T: DeserializeOwned>(method: HeadKind, params: &Map<String, Value>) -> Result<T, RecipeError> {
    json::fields(params).map_err(|problem| RecipeError::Params { method, problem })
}

/// The name that a variant has in JSON.
fn plain_name(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn softmax(method: HeadKind, params: SoftmaxParams) -> Result<Softmax, RecipeError> {
    let problem = |problem: &str| RecipeError::Params { method, problem: problem.to_owned() };
    let sampling = match (params.sampler, params.q) {
        (Some(_), Some(_)) => return Err(problem("`sampler` and `q` both say how rows are drawn; give one")),
        (None, Some(q)) if (-2.0..=2.0).contains(&q) => Sampling::Power(q),
        (None, Some(q)) => {
            return Err(RecipeError::OutOfRange { key: "q", range: "a number from -2 to 2", found: q.to_string() });
        }
        (Some(NamedSampling::InstanceBalanced), None) => Sampling::InstanceBalanced,
        (Some(NamedSampling::ClassBalanced), None) => Sampling::ClassBalanced,
        (Some(NamedSampling::ClassBalancedIid), None) => Sampling::ClassBalancedIid,
        (Some(NamedSampling::SquareRoot), None) => Sampling::SquareRoot,
        (Some(NamedSampling::ProgressivelyBalanced), None) => Sampling::ProgressivelyBalanced,
        (None, None) if method == HeadKind::Joint => Sampling::InstanceBalanced,
        (None, None) => Sampling::ClassBalanced,
    };
    if params.solver == Solver::Lbfgs && sampling == Sampling::ProgressivelyBalanced {
        return Err(problem("L-BFGS has no epochs, which `progressively_balanced` goes by"));
    }
    let of_sgd = [
        ("epochs", params.epochs.is_some()),
        ("batch_size", params.batch_size.is_some()),
        ("learning_rate", params.learning_rate.is_some()),
        ("momentum", params.momentum.is_some()),
    ];
    if let (Solver::Lbfgs, Some((key, _))) = (params.solver, of_sgd.iter().find(|(_, is_given)| *is_given)) {
        return Err(problem(&format!("`{key}` means nothing to the solver `lbfgs`")));
    }
    let range = |key, value: f64, is_in: bool, range| match is_in {
        true => Ok(value),
        false => Err(RecipeError::OutOfRange { key, range, found: value.to_string() }),
    };
    let whole = |key, value: usize, max: usize, range| match (1..=max).contains(&value) {
        true => Ok(value),
        false => Err(RecipeError::OutOfRange { key, range, found: value.to_string() }),
    };
    let default_epochs = match method {
        HeadKind::Joint => 90,
        HeadKind::Lws => 5,
        _ => 10,
    };
    let momentum = params.momentum.unwrap_or(0.9);
    let weight_decay = params.weight_decay.unwrap_or(5e-4);
    Ok(Softmax {
        sampling,
        solver: params.solver,
        epochs: whole("epochs", params.epochs.unwrap_or(default_epochs), 100_000, "from 1 to 100000")?,
        batch_size: params
            .batch_size
            .map(|size| whole("batch_size", size, 1 << 20, "from 1 to 1048576"))
            .transpose()?,
        learning_rate: params
            .learning_rate
            .map(|rate| range("learning_rate", rate, rate > 0.0 && rate <= 1e6, "above 0 and at most 1000000"))
            .transpose()?,
        momentum: range("momentum", momentum, (0.0..1.0).contains(&momentum), "from 0 to below 1")?,
        weight_decay: range("weight_decay", weight_decay, (0.0..=1e6).contains(&weight_decay), "from 0 to 1000000")?,
        seed: params.seed,
    })
}

impl Softmax {
    /// Rows of a step for a set of `num_rows`.
    pub fn batch_size(&self, num_rows: usize) -> usize {
        self.batch_size.unwrap_or(REFERENCE_BATCH_SIZE as usize).min(num_rows)
    }

    /// The learning rate of epoch `epoch`, from 1: `½ lr (1 + cos(π (e − 1)/E))`, so that the last is not 0.
    pub fn learning_rate(&self, epoch: usize, num_rows: usize) -> f64 {
        let scaled = || 0.2 * self.batch_size(num_rows) as f64 / REFERENCE_BATCH_SIZE;
        let first = self.learning_rate.unwrap_or_else(scaled);
        0.5 * first * (1.0 + (std::f64::consts::PI * (epoch - 1) as f64 / self.epochs as f64).cos())
    }
}
