//! How good a head is on a feature set, asked of a server.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde::Serialize;

use super::{FitJobs, JobError, Shared, priority::at_low_priority};
use crate::{
    evaluate::Report,
    fit::{FitError, Samples, Watch, measure},
    heads::{Scoring, Settings, SettingsPatch},
    registry::{FeatureSetInUse, HeadId, Model, PublishedHead, RegistryError},
};

/// Evaluations that run at once. Each uses all cores.
const MAX_EVALUATIONS: usize = 2;
/// Values of tau in one evaluation.
const MAX_TAUS: usize = 1000;

/// What a head gets right on a feature set.
#[derive(Debug, Serialize)]
pub struct EvaluationAnswer {
    /// The head and its version.
    #[serde(flatten)]
    pub id: HeadId,
    /// The settings that the report is of.
    pub settings: Settings,
    /// Of the present settings.
    #[serde(flatten)]
    pub report: Report,
    /// Of each tau that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<Vec<TauPoint>>,
    /// Why the report may be better than the head.
    pub warnings: Vec<String>,
}

/// A tau, and the report under it.
#[derive(Debug, Serialize)]
pub struct TauPoint {
    /// The exponent.
    pub tau: f64,
    /// The report.
    pub report: Report,
}

/// A place among the evaluations that may run.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(shared: &'a Shared) -> Result<Self, JobError> {
        if shared.is_stopping() {
            return Err(JobError::Stopping);
        }
        let place = Self(&shared.evaluations);
        // One too many is given back as `place` is dropped.
        if shared.evaluations.fetch_add(1, Ordering::AcqRel) >= MAX_EVALUATIONS {
            return Err(JobError::TooManyEvaluations { capacity: MAX_EVALUATIONS });
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl FitJobs {
    /// Evaluates a head on a feature set, under its present settings and for each of `tau`. Blocks. Ends early once
    /// `is_unwanted` is set, or the server stops.
    ///
    /// # Errors
    /// [`JobError`].
    pub fn evaluate(
        &self,
        model: &Model,
        head: (&str, Option<u32>),
        feature_set: &str,
        tau: Option<&[f64]>,
        is_unwanted: &AtomicBool,
    ) -> Result<EvaluationAnswer, JobError> {
        let state = model.state();
        let head = Arc::clone(state.head(head.0, head.1)?);
        let set = model.feature_sets()?.pin(feature_set)?;
        let mut scorings = vec![Scoring::clone(&head.scoring)];
        scorings.extend(scorings_of(&head, tau)?);
        let _place = Place::take(&self.shared)?;

        let mut on_progress = |_| match is_unwanted.load(Ordering::Acquire) || self.shared.is_stopping() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let (samples, scorings) = (Samples::all(set.set()), scorings.iter().collect::<Vec<_>>());
        let measured = at_low_priority("evaluation", || {
            let mut engine = self.shared.engine(model)?;
            let mut watch = Watch::new(&mut on_progress);
            let measured = measure(&samples, head.head.weights(), &scorings, model.shots(), &mut *engine, &mut watch);
            measured.map_err(|error| match error {
                FitError::LogitsNotFinite { row } => JobError::NotFinite { row },
                FitError::Cancelled => JobError::Stopping,
                error => JobError::Engine(error.to_string()),
            })
        });
        let measured = measured.unwrap_or_else(|error| Err(JobError::Engine(error)))?;
        let mut reports = measured.iter().map(|evaluation| evaluation.report());
        let report = reports.next().ok_or_else(|| JobError::Engine("there is no report".to_owned()))?;
        let points = |tau: &[f64]| tau.iter().zip(reports).map(|(&tau, report)| TauPoint { tau, report }).collect();
        Ok(EvaluationAnswer {
            id: head.id.clone(),
            settings: head.settings,
            report,
            curve: tau.map(points),
            warnings: warnings(&head, &set),
        })
    }
}

fn scorings_of(head: &PublishedHead, tau: Option<&[f64]>) -> Result<Vec<Scoring>, JobError> {
    let Some(tau) = tau else { return Ok(Vec::new()) };
    if !(1..=MAX_TAUS).contains(&tau.len()) {
        return Err(JobError::TauList { max: MAX_TAUS, found: tau.len() });
    }
    let scoring = |&tau: &f64| {
        let patch = SettingsPatch { tau: Some(tau), ..SettingsPatch::default() };
        let settings = head.settings.with(patch, head.head.kind()).map_err(RegistryError::from)?;
        Ok(head.head.scoring(&settings))
    };
    tau.iter().map(scoring).collect()
}

/// What the head has seen of the set before.
fn warnings(head: &PublishedHead, set: &FeatureSetInUse) -> Vec<String> {
    let digest = set.set().digest().to_hex();
    let HeadId { head: name, version } = &head.id;
    let is_of = |key: &str| head.head.provenance().get(key) == Some(&digest);
    let mut warnings = Vec::new();
    if is_of("validation_set_digest") {
        warnings.push(format!(
            "head `{name}` version {version} was chosen on this very set: on samples that it has never met it gets less right"
        ));
    }
    if is_of("feature_set_digest") {
        warnings.push(format!(
            "head `{name}` version {version} was fitted on this very set: on samples that it has never met it gets less right"
        ));
    }
    warnings
}
