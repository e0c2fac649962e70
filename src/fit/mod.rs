//! How a head is made: from features and labels to a head file and a report.
//!
//! ```text
//! Recipe (method, parameters) + Samples -> joint, crt, lws: minimise a softmax loss (SGD or L-BFGS)
//!                                          tau_norm:        choose on validation, from one matrix product
//!                                          ncm:             class means
//!                                       -> head file -> Report of the validation set
//! ```
//!
//! The matrix products and gradients are an [`Engine`]'s; here is everything around them. Same samples, recipe and engine:
//! same bytes.

mod engine;
mod error;
mod file;
mod give_way;
mod lbfgs;
#[cfg(target_arch = "x86_64")]
mod linear_sgd;
#[cfg(not(target_arch = "x86_64"))]
#[path = "linear_sgd_elsewhere.rs"]
mod linear_sgd;
mod measure;
mod minimise;
mod ncm;
mod recipe;
mod sampler;
mod samples;
mod scale_gradient;
mod sgd;
mod softmax;
mod tau_norm;

use std::{collections::BTreeMap, ops::ControlFlow};

use serde::Serialize;

pub use engine::{Batch, Engine, EngineError, Gradient, PlainEngine, RawScores, Rows};
pub use error::{FitError, VALIDATION_SET};
pub use measure::measure;
pub use recipe::{LwsInit, NcmOptions, Recipe, RecipeError, Softmax, Solver, TauGrid};
pub use sampler::{Random, Sampler, Sampling, class_probabilities, stratified_holdout};
pub use samples::Samples;
pub use scale_gradient::scale_gradient;
pub use sgd::Sgd;
pub use tau_norm::CurvePoint;

use file::head_file;
use measure::Scored;

use crate::{
    dataset::{FeatureSet, Shot},
    evaluate::{Accuracies, Report},
    heads::{Head, HeadFile, HeadKind, LARGEST_WEIGHT_BYTES, NormStatistics, Parameters, Settings, TrainPrior},
};

/// What a head is fitted from.
#[derive(Debug)]
pub struct FitTask<'a> {
    /// The method and its parameters.
    pub recipe: &'a Recipe,
    /// What is fitted.
    pub features: &'a FeatureSet,
    /// What is chosen and reported on.
    pub validation: Validation<'a>,
    /// The head that LWS and tau-norm start from.
    pub base: Option<&'a Head>,
    /// How many samples of each class the network was trained on, if that is known: they make the shots. Else it is the
    /// samples that are fitted, and for tau-norm, which fits none, what its base says.
    pub train_counts: Option<&'a [u64]>,
    /// What may be held beside the features, in bytes: LWS keeps its scores if they fit.
    pub cache_bytes: u64,
}

/// What is chosen and reported on.
#[derive(Clone, Copy, Debug)]
pub enum Validation<'a> {
    /// Nothing.
    None,
    /// Another feature set.
    Set(&'a FeatureSet),
    /// This share of the rows of each class, which then are not fitted.
    Holdout(f64),
}

/// How far a fit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// From 0 to 1.
    pub done: f64,
    /// The epoch, from 1; of L-BFGS the number of evaluations.
    pub epoch: usize,
    /// How many there will be; 0 if nobody knows.
    pub epochs: usize,
    /// The mean loss of this epoch so far, without the penalty.
    pub loss: Option<f64>,
    /// Samples that have been looked at, one as often as it was.
    pub samples_seen: usize,
}

/// Who is told how far a fit is, and may end it.
pub struct Watch<'a> {
    on_progress: &'a mut dyn FnMut(Option<Progress>) -> ControlFlow<()>,
    is_quiet: bool,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl<'a> Watch<'a> {
    /// `on_progress` is called every few milliseconds of work, with `None` if there is nothing new to tell; `Break` ends the
    /// fit with [`FitError::Cancelled`].
    pub fn new(on_progress: &'a mut dyn FnMut(Option<Progress>) -> ControlFlow<()>) -> Self {
        Self { on_progress, is_quiet: false }
    }

    /// The same, but nothing is told.
    fn quiet(&mut self) -> Watch<'_> {
        Watch { on_progress: &mut *self.on_progress, is_quiet: true }
    }

    fn tell(&mut self, progress: Progress) -> Result<(), FitError> {
        self.call((!self.is_quiet).then_some(progress))
    }

    fn check(&mut self) -> Result<(), FitError> {
        self.call(None)
    }

    fn call(&mut self, progress: Option<Progress>) -> Result<(), FitError> {
        match (self.on_progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(FitError::Cancelled),
        }
    }
}

/// A fitted head.
#[derive(Debug)]
pub struct Fitted {
    /// The head file.
    pub file: Vec<u8>,
    /// The head as it is read from that file.
    pub head: Head,
    /// On the validation set, if there is one.
    pub report: Option<FitReport>,
    /// What whoever asked for it should know.
    pub warnings: Vec<String>,
}

/// What a fitted head gets right on its validation set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FitReport {
    /// The report.
    #[serde(flatten)]
    pub report: Report,
    /// The digest of the set; with a holdout that of the set it was taken from.
    pub feature_set_digest: String,
    /// What was chosen on this very set, so that the report is a little optimistic about it.
    pub chosen_on_this_set: Vec<&'static str>,
    /// The epoch of the parameters, if it was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<usize>,
    /// Of tau-norm: every setting that was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<Vec<CurvePoint>>,
}

/// Fits a head.
///
/// # Errors
/// [`FitError`]; nothing has been written anywhere.
pub fn fit(task: &FitTask<'_>, engine: &mut dyn Engine, watch: &mut Watch<'_>) -> Result<Fitted, FitError> {
    let FitTask { recipe, features, .. } = task;
    let method = recipe.method();
    let (num_classes, feature_dim) = (features.num_classes(), features.feature_dim());
    if let Some(counts) = task.train_counts.filter(|counts| counts.len() != num_classes) {
        let (what, found) = ("the table of training counts", counts.len());
        return Err(FitError::Mismatch { what, unit: "classes", found, expected: num_classes });
    }
    if num_classes.saturating_mul(feature_dim) > LARGEST_WEIGHT_BYTES / 4 {
        return Err(FitError::TooLarge { num_classes, feature_dim });
    }
    let (samples, validation) = split(task)?;
    let base = check_base(task)?;
    if recipe.needs_validation() && validation.is_none() {
        return Err(FitError::NoValidation { method });
    }
    let mut warnings = Vec::new();
    // Tau-norm fits nothing: its weights were fitted on other samples than these, or nobody knows on which.
    let train_counts: Option<Vec<u64>> = if method == HeadKind::TauNorm {
        base.and_then(Head::train_counts).or(task.train_counts).map(<[u64]>::to_vec)
    } else {
        let counts = samples.class_counts();
        warnings.extend(absent(&counts));
        Some(counts)
    };
    let shots: Vec<Shot> = match task.train_counts.or(train_counts.as_deref()) {
        Some(counts) => counts.iter().map(|&count| Shot::of(count)).collect(),
        None => vec![Shot::Unknown; num_classes],
    };
    let shots = shots.as_slice();
    if features.num_zero_rows() > 0 {
        warnings.push(format!("{} rows are zero throughout: they say nothing", features.num_zero_rows()));
    }
    let mut settings = Settings::default_of(method);
    let (mut curve, mut epoch, mut chosen) = (None, None, Vec::new());
    // The scores of the validation samples under the weights of the head, where choosing has computed them.
    let mut kept = Vec::new();
    let mut prior = TrainPrior::default_of(method);
    let mut validate = |engine: &mut dyn Engine, parameters: Parameters, watch: &mut Watch<'_>| {
        let head = Head::new(method, parameters, train_counts.clone());
        validation.as_ref().map_or(Ok(0.0), |samples| macro_accuracy(samples, &head, shots, engine, watch))
    };
    let parameters = match recipe {
        Recipe::Linear(_, softmax) | Recipe::Lws(softmax, _) => {
            // Of one epoch there is none to choose.
            let validate: Option<&mut minimise::Validate<'_>> =
                if validation.is_some() && softmax.epochs > 1 { Some(&mut validate) } else { None };
            let fitted = match (recipe, base) {
                (Recipe::Lws(_, init), Some(base)) => {
                    softmax::fit_lws(softmax, *init, base, &samples, task.cache_bytes, validate, engine, watch)?
                }
                _ => softmax::fit_linear(softmax, &samples, validate, engine, watch)?,
            };
            warnings.extend(fitted.warnings);
            epoch = fitted.chosen_epoch;
            chosen.extend(epoch.is_some().then_some("epoch"));
            prior = prior_of(softmax.sampling);
            fitted.parameters
        }
        Recipe::TauNorm(grid) => {
            let base = base.ok_or(FitError::NoBase { method })?;
            let not_linear =
                || FitError::Base { reason: format!("it is of kind {}, which has no row norms", base.kind()) };
            let (weight, bias) = base.linear_layer().ok_or_else(not_linear)?;
            let parameters = Parameters::Linear { weight, bias: Some(bias), scale: None };
            settings.tau = grid.tau.first().copied();
            settings.bias = grid.bias.first().copied();
            if let Some(validation) = validation.as_ref().filter(|_| recipe.needs_validation()) {
                let untuned = Head::new(method, parameters.clone(), train_counts.clone());
                let mut scored = Scored::new(validation, untuned.weights(), task.cache_bytes);
                let (best, points) = tau_norm::choose(grid, &untuned, &mut scored, shots, engine, watch)?;
                kept = scored.into_kept();
                settings = best;
                curve = Some(points);
                chosen.extend((grid.tau.len() > 1).then_some("tau"));
                chosen.extend((grid.bias.len() > 1).then_some("bias"));
            }
            let norms = base.row_norms().unwrap_or_default();
            let statistics = NormStatistics::new(&norms, train_counts.as_deref());
            warnings.extend(statistics.iter().flat_map(NormStatistics::warnings).map(|warning| warning.to_string()));
            parameters
        }
        Recipe::Ncm(options) => ncm::fit(options, &samples, engine.threads(), watch)?,
    };

    let validated_on = match task.validation {
        Validation::None => None,
        Validation::Set(set) => Some(set),
        Validation::Holdout(_) => Some(task.features),
    };
    if validated_on.is_some_and(|set| has_met(task, set)) {
        warnings
            .push("the base was fitted on the very samples of the validation: it gets less right on others".to_owned());
    }
    let provenance = provenance(task, samples.len(), epoch, validated_on.filter(|_| !chosen.is_empty()));
    let file = head_file(method, &parameters, &settings, prior, train_counts.as_deref(), provenance)?;
    let head = HeadFile::parse_head(&file).map_err(|error| FitError::Invalid { reason: error.to_string() })?;
    let report = match validation.as_ref().zip(validated_on) {
        Some((samples, set)) => {
            let (settings, mut scored) = (*head.initial_settings(), Scored::kept(samples, head.weights(), kept));
            let evaluations = scored.measure(&head, &[settings], shots, engine, &mut watch.quiet());
            let evaluations = evaluations.map_err(|error| match task.validation {
                Validation::Set(_) => error.of_validation_set(),
                Validation::Holdout(_) | Validation::None => error,
            })?;
            evaluations.first().map(|evaluation| FitReport {
                report: evaluation.report(),
                feature_set_digest: set.digest().to_hex(),
                chosen_on_this_set: chosen,
                epoch,
                curve,
            })
        }
        None => None,
    };
    Ok(Fitted { file, head, report, warnings })
}

/// What is fitted, and what it is validated on.
fn split<'a>(task: &FitTask<'a>) -> Result<(Samples<'a>, Option<Samples<'a>>), FitError> {
    let features = task.features;
    match task.validation {
        Validation::None => Ok((Samples::all(features), None)),
        Validation::Set(set) => {
            let mismatch = |unit, found, expected| FitError::Mismatch { what: VALIDATION_SET, unit, found, expected };
            if set.feature_dim() != features.feature_dim() {
                return Err(mismatch("features", set.feature_dim(), features.feature_dim()));
            }
            if set.num_classes() != features.num_classes() {
                return Err(mismatch("classes", set.num_classes(), features.num_classes()));
            }
            if set.digest() == features.digest() {
                return Err(FitError::SameSet);
            }
            Ok((Samples::all(features), Some(Samples::all(set))))
        }
        Validation::Holdout(share) => {
            if !(share > 0.0 && share < 1.0) {
                return Err(FitError::HoldoutRange { share });
            }
            let seed = task.recipe.seed();
            let (kept, held_out) = stratified_holdout(features.labels(), features.num_classes(), share, seed);
            if held_out.is_empty() {
                return Err(FitError::EmptyHoldout { share });
            }
            Ok((Samples::some(features, kept), Some(Samples::some(features, held_out))))
        }
    }
}

/// The base, if the method needs one, whose classes and features are those of the set.
fn check_base<'a>(task: &FitTask<'a>) -> Result<Option<&'a Head>, FitError> {
    if !task.recipe.needs_base() {
        return Ok(None);
    }
    let base = task.base.ok_or(FitError::NoBase { method: task.recipe.method() })?;
    let mismatch = |unit, found, expected| FitError::Mismatch { what: "the base", unit, found, expected };
    if base.feature_dim() != task.features.feature_dim() {
        return Err(mismatch("features", base.feature_dim(), task.features.feature_dim()));
    }
    if base.num_classes() != task.features.num_classes() {
        return Err(mismatch("classes", base.num_classes(), task.features.num_classes()));
    }
    Ok(Some(base))
}

/// A word about the classes without a sample, if there are any.
fn absent(counts: &[u64]) -> Option<String> {
    let mut absent = counts.iter().enumerate().filter(|(_, count)| **count == 0).map(|(class, _)| class);
    let first = absent.next()?;
    let n = 1 + absent.count();
    Some(format!("{n} of {} classes have no sample and are never predicted; the first is class {first}", counts.len()))
}

fn macro_accuracy(
    samples: &Samples<'_>,
    head: &Head,
    shots: &[Shot],
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<f64, FitError> {
    let scoring = head.scoring(head.initial_settings());
    let correct = Scored::new(samples, head.weights(), 0).count_correct(&[&scoring], engine, watch)?;
    let correct = correct.first().map_or(&[][..], Vec::as_slice);
    Ok(Accuracies::new(correct, &samples.class_counts(), shots).macro_.unwrap_or(0.0))
}

/// The prior that this sampling leaves in a softmax classifier.
fn prior_of(sampling: Sampling) -> TrainPrior {
    match sampling {
        Sampling::InstanceBalanced => TrainPrior::Joint,
        Sampling::ClassBalanced | Sampling::ClassBalancedIid => TrainPrior::Uniform,
        Sampling::Power(0.0) => TrainPrior::Uniform,
        Sampling::Power(1.0) => TrainPrior::Joint,
        Sampling::SquareRoot | Sampling::ProgressivelyBalanced | Sampling::Power(_) => TrainPrior::None,
    }
}

/// Whether the base was fitted on the samples of `set` that are validated on.
fn has_met(task: &FitTask<'_>, set: &FeatureSet) -> bool {
    let Some(base) = task.base.filter(|_| task.recipe.needs_base()) else { return false };
    let is = |key: &str, value: String| base.provenance().get(key) == Some(&value);
    let digest = set.digest().to_hex();
    // Of the same set, share and seed the same rows are held out.
    let held_out_too = match task.validation {
        Validation::Holdout(share) => is("holdout", share.to_string()) && is("seed", task.recipe.seed().to_string()),
        Validation::Set(_) | Validation::None => false,
    };
    let mut fitted = base.sets_met().filter(|(key, met)| key.ends_with("feature_set_digest") && *met == digest);
    fitted.any(|(key, _)| !(held_out_too && key == "feature_set_digest"))
}

/// Everything that the head depends on, in words; `num_rows` is how many rows were fitted, `chosen_on` where something was
/// chosen.
fn provenance(
    task: &FitTask<'_>,
    num_rows: usize,
    epoch: Option<usize>,
    chosen_on: Option<&FeatureSet>,
) -> BTreeMap<String, String> {
    let mut words = task.recipe.words(num_rows);
    words.insert("feature_set_digest".to_owned(), task.features.digest().to_hex());
    if let Some(set) = chosen_on {
        words.insert("validation_set_digest".to_owned(), set.digest().to_hex());
    }
    if let Validation::Holdout(share) = task.validation {
        words.insert("holdout".to_owned(), share.to_string());
    }
    if let Some(base) = task.base.filter(|_| task.recipe.needs_base()) {
        words.insert("base_weights_digest".to_owned(), base.weights().digest().to_hex());
        // What they have met is no test of this head either.
        words.extend(base.sets_met().map(|(key, digest)| (format!("base_{key}"), digest.to_owned())));
    }
    if let Some(epoch) = epoch {
        words.insert("epoch".to_owned(), epoch.to_string());
    }
    words
}
