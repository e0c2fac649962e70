//! What a fit is asked to do, checked before it waits.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{JobError, PublishPolicy, ValidationChoice};
use crate::{
    fit::{FitError, FitTask, Recipe, Samples, Validation, stratified_holdout},
    heads::{Head, HeadKind},
    registry::{FeatureSetInUse, HeadId, Model, is_valid_name, parse_head_reference},
};

/// The base if none is named.
const DEFAULT_BASE: &str = "joint";
/// Scores that LWS may hold in memory, in bytes.
const CACHE_BYTES: u64 = 1 << 30;

/// What a fit is asked to do.
#[derive(Clone, Debug)]
pub struct FitRequest {
    /// The method.
    pub method: HeadKind,
    /// The id of what is fitted.
    pub feature_set: String,
    /// The name that a publish gives the head.
    pub head: String,
    /// `NAME` or `NAME@VERSION`.
    pub base: Option<String>,
    /// What is chosen and reported on.
    pub validation: Option<ValidationChoice>,
    /// Whether the head is published as soon as it is there.
    pub publish: PublishPolicy,
    /// The parameters of the method.
    pub params: Map<String, Value>,
}

/// All that a fit reads, which stays as it is until the fit has ended.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) recipe: Recipe,
    features: FeatureSetInUse,
    validation: HeldValidation,
    base: Option<Arc<Head>>,
    /// The model's, if they are known.
    train_counts: Option<Vec<u64>>,
}

#[derive(Debug)]
enum HeldValidation {
    None,
    Set(FeatureSetInUse),
    Holdout(f64),
}

impl Inputs {
    /// Looks up what `request` names, and refuses what cannot succeed. Gives the version of the base too.
    pub(super) fn of(model: &Model, request: &FitRequest) -> Result<(Self, Option<HeadId>), JobError> {
        let method = request.method;
        if !is_valid_name(&request.head) {
            return Err(JobError::HeadName { key: "head", name: request.head.clone() });
        }
        let recipe = Recipe::new(method, request.params.clone())?;
        let sets = model.feature_sets()?;
        let features = sets.pin(&request.feature_set)?;
        let validation = match &request.validation {
            None if recipe.needs_validation() => return Err(JobError::Fit(FitError::NoValidation { method })),
            None if request.publish == PublishPolicy::IfBetter => return Err(JobError::NothingToCompareOn),
            None => HeldValidation::None,
            Some(ValidationChoice::FeatureSet(id)) => {
                let set = sets.pin(id)?;
                if set.set().digest() == features.set().digest() {
                    return Err(JobError::Fit(FitError::SameSet));
                }
                HeldValidation::Set(set)
            }
            Some(ValidationChoice::Holdout(share)) => {
                let share = *share;
                if !(share > 0.0 && share < 1.0) {
                    return Err(JobError::Fit(FitError::HoldoutRange { share }));
                }
                HeldValidation::Holdout(share)
            }
        };
        let base = match request.base.as_deref().or(recipe.needs_base().then_some(DEFAULT_BASE)) {
            None => None,
            Some(reference) => {
                let no_name = || JobError::HeadName { key: "base", name: reference.to_owned() };
                let (name, version) = parse_head_reference(reference).ok_or_else(no_name)?;
                let state = model.state();
                let base = state.head(name, version)?;
                if recipe.needs_base() && base.head.linear_layer().is_none() {
                    let (HeadId { head, version }, kind) = (base.id.clone(), base.head.kind());
                    return Err(JobError::Base { method, head, version, kind });
                }
                Some((Arc::clone(&base.head), base.id.clone()))
            }
        };
        let (base, base_id) = base.unzip();
        let train_counts = model.train_counts().map(<[u64]>::to_vec);
        Ok((Self { recipe, features, validation, base, train_counts }, base_id))
    }

    pub(super) fn task(&self) -> FitTask<'_> {
        FitTask {
            recipe: &self.recipe,
            features: self.features.set(),
            validation: match &self.validation {
                HeldValidation::None => Validation::None,
                HeldValidation::Set(set) => Validation::Set(set.set()),
                HeldValidation::Holdout(share) => Validation::Holdout(*share),
            },
            base: self.base.as_deref(),
            train_counts: self.train_counts.as_deref(),
            cache_bytes: CACHE_BYTES,
        }
    }

    /// The samples that the fit reports on.
    pub(super) fn validation_samples(&self) -> Option<Samples<'_>> {
        let features = self.features.set();
        match &self.validation {
            HeldValidation::None => None,
            HeldValidation::Set(set) => Some(Samples::all(set.set())),
            // The draw is the fit's own: it depends on nothing but these.
            HeldValidation::Holdout(share) => {
                let seed = self.recipe.seed();
                let (_, held_out) = stratified_holdout(features.labels(), features.num_classes(), *share, seed);
                Some(Samples::some(features, held_out))
            }
        }
    }
}
