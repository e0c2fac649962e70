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
    evaluate::{EvaluationAnswer, MAX_TAUS, TauPoint, warnings},
    fit::{FitError, Samples, Watch, measure},
    heads::{Settings, SettingsPatch},
    registry::{HeadId, Model, PublishedHead, RegistryError},
};

/// Evaluations that run at once. Each takes as many threads as a fit.
const MAX_EVALUATIONS: usize = 2;

/// What a published head gets right on a feature set, under its present settings.
#[derive(Debug, Serialize)]
pub struct HeadEvaluation {
    /// The head and its version.
    #[serde(flatten)]
    pub id: HeadId,
    /// The rest.
    #[serde(flatten)]
    pub answer: EvaluationAnswer,
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
    ) -> Result<HeadEvaluation, JobError> {
        let state = model.state();
        let head = Arc::clone(state.head(head.0, head.1)?);
        let set = model.feature_sets()?.pin(feature_set)?;
        let mut settings = vec![head.settings];
        settings.extend(settings_of(&head, tau)?);
        let _place = Place::take(&self.shared)?;

        let mut on_progress = |_| match is_unwanted.load(Ordering::Acquire) || self.shared.is_stopping() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let samples = Samples::all(set.set());
        let measured = at_low_priority("evaluation", || {
            let mut engine = self.shared.engine(model)?;
            let mut watch = Watch::new(&mut on_progress);
            let measured = measure(&samples, &head.head, &settings, model.shots(), &mut *engine, &mut watch);
            measured.map_err(|error| match error {
                error @ FitError::LogitsNotFinite { .. } => JobError::NotFinite(error),
                FitError::Cancelled => JobError::Stopping,
                error => JobError::Engine(error.to_string()),
            })
        });
        let measured = measured.unwrap_or_else(|error| Err(JobError::Engine(error)))?;
        let mut reports = measured.iter().map(|evaluation| evaluation.report());
        let report = reports.next().ok_or_else(|| JobError::Engine("there is no report".to_owned()))?;
        let points = |tau: &[f64]| tau.iter().zip(reports).map(|(&tau, report)| TauPoint { tau, report }).collect();
        let HeadId { head: name, version } = &head.id;
        let warnings = warnings(&head.head, &format!("head `{name}` version {version}"), set.set());
        let answer = EvaluationAnswer { settings: head.settings, report, curve: tau.map(points), warnings };
        Ok(HeadEvaluation { id: head.id.clone(), answer })
    }
}

fn settings_of(head: &PublishedHead, tau: Option<&[f64]>) -> Result<Vec<Settings>, JobError> {
    let Some(tau) = tau else { return Ok(Vec::new()) };
    if !(1..=MAX_TAUS).contains(&tau.len()) {
        return Err(JobError::TauList { max: MAX_TAUS, found: tau.len() });
    }
    let with = |&tau: &f64| {
        let patch = SettingsPatch { tau: Some(tau), ..SettingsPatch::default() };
        Ok(head.settings.with(patch, head.head.kind()).map_err(RegistryError::from)?)
    };
    tau.iter().map(with).collect()
}
