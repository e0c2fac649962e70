//! Running one fit.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use serde_json::value::RawValue;

use super::{
    FitJob, FitState, INTERRUPTED, JobError, PublishPolicy, ReportSummary, Shared, job, priority::at_low_priority,
    request::Inputs,
};
use crate::{
    evaluate::EQUAL,
    fit::{Engine, FitError, Fitted, Progress, Validation, Watch, fit, measure},
    metrics::FitMetrics,
    onnx::{FitEngine, SessionOptions},
    registry::{Author, Edit, HeadId, Model, RegistryError},
};

/// How often whoever watches is told how far a fit is.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What came of a fit.
struct Outcome {
    fitted: Fitted,
    /// The default head and its macro accuracy, if it is to be compared with.
    rival: Option<(HeadId, f64)>,
}

/// Why there is no head.
enum Failure {
    /// Somebody did not want it any more.
    Ended,
    /// Anything else.
    Error(String),
}

impl From<FitError> for Failure {
    fn from(error: FitError) -> Self {
        match error {
            FitError::Cancelled => Self::Ended,
            error => Self::Error(error.to_string()),
        }
    }
}

/// Runs a fit to its end, whatever that is.
pub(super) fn run(shared: &Shared, job: &FitJob) {
    let Some(inputs) = job.take_inputs() else { return };
    let metrics = shared.metrics_of(&job.model);
    job.change(|record| {
        record.state = FitState::Running;
        record.timing.started_at = Some(job::now());
    });
    metrics.queued.dec();
    metrics.running.inc();
    let start = Instant::now();
    // What is published is built on this thread, whose priority is not low.
    let outcome = at_low_priority("fit", || outcome(shared, job, &inputs, &metrics))
        .unwrap_or_else(|error| Err(Failure::Error(error)));
    drop(inputs);
    let method = job.record().method;
    shared.metrics.fit_took(job.model.name(), method.as_str(), start.elapsed());
    let kept = outcome.and_then(|outcome| {
        let digest = job.keep_head(&outcome.fitted.file);
        let digest = digest.map_err(|error| Failure::Error(format!("the head cannot be written down: {error}")))?;
        if !job.seal() {
            job.drop_head();
            return Err(Failure::Ended);
        }
        let report = outcome.fitted.report.as_ref().map(serde_json::value::to_raw_value).transpose();
        let report: Option<Box<RawValue>> = report.map_err(|error| Failure::Error(error.to_string()))?;
        Ok((outcome, digest, report))
    });
    match kept {
        Ok((outcome, digest, report)) => {
            let (head, reason) = publish(job, &outcome);
            tracing::info!(
                model = job.model.name(),
                fit = job.record().id,
                reason,
                "fit `{}` has succeeded",
                job.record().id
            );
            shared.end(job, FitState::Succeeded, |record| {
                if let Some(progress) = &mut record.progress {
                    (progress.done, progress.seconds_left) = (1.0, Some(0.0));
                }
                record.report = report;
                record.summary = outcome.fitted.report.as_ref().map(ReportSummary::of);
                record.warnings = outcome.fitted.warnings;
                record.digest = Some(digest);
                record.head = head;
                record.publish_reason = reason;
            });
        }
        Err(Failure::Ended) if job.is_asked_to_end() => {
            tracing::info!(model = job.model.name(), fit = job.record().id, "fit `{}` was cancelled", job.record().id);
            shared.end(job, FitState::Cancelled, |_| ());
        }
        Err(failure) => {
            let error = match failure {
                Failure::Ended => INTERRUPTED.to_owned(),
                Failure::Error(error) => error,
            };
            tracing::warn!(
                model = job.model.name(),
                fit = job.record().id,
                "fit `{}` has failed: {error}",
                job.record().id
            );
            shared.end(job, FitState::Failed, |record| record.error = Some(error));
        }
    }
}

fn outcome(shared: &Shared, job: &FitJob, inputs: &Inputs, metrics: &FitMetrics) -> Result<Outcome, Failure> {
    let mut engine = shared.engine(&job.model).map_err(|error| Failure::Error(error.to_string()))?;
    let start = Instant::now();
    let (mut told, mut last): (Option<Instant>, Option<Progress>) = (None, None);
    let mut on_progress = |progress: Option<Progress>| {
        if job.is_asked_to_end() || shared.is_stopping() {
            return ControlFlow::Break(());
        }
        last = progress.or(last);
        if let Some(progress) = progress
            && told.is_none_or(|told| told.elapsed() >= TELL_EVERY)
        {
            told = Some(Instant::now());
            metrics.samples_per_second.set(job.tell(progress, start.elapsed()).samples_per_second);
        }
        ControlFlow::Continue(())
    };
    let fitted = fit(&inputs.task(), &mut *engine, &mut Watch::new(&mut on_progress))?;
    // Where it ended is told however soon that came after the last time.
    if let Some(last) = last {
        job.tell(last, start.elapsed());
    }
    let mut quiet = |_| match job.is_asked_to_end() || shared.is_stopping() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let rival = match job.record().publish {
        PublishPolicy::IfBetter => rival(job, inputs, &mut *engine, &mut Watch::new(&mut quiet))?,
        PublishPolicy::Never | PublishPolicy::Always => None,
    };
    // Whoever asked for its end before there was a head gets it.
    match quiet(None) {
        ControlFlow::Continue(()) => Ok(Outcome { fitted, rival }),
        ControlFlow::Break(()) => Err(Failure::Ended),
    }
}

impl Shared {
    /// The engine of a fit or an evaluation of that model; it runs where the model does.
    pub(super) fn engine(&self, model: &Model) -> Result<Box<dyn Engine>, JobError> {
        let options = SessionOptions {
            device: model.provider().into(),
            threads: self.options.threads,
            cuda_memory_limit_bytes: self.options.cuda_memory_limit_bytes,
            ..SessionOptions::default()
        };
        let engine = FitEngine::new(&options).map_err(|error| JobError::Engine(error.to_string()))?;
        Ok((self.wrap.0)(Box::new(engine)))
    }
}

/// The default head of this moment, and its macro accuracy on the validation samples under its present settings.
fn rival(
    job: &FitJob,
    inputs: &Inputs,
    engine: &mut dyn Engine,
    watch: &mut Watch<'_>,
) -> Result<Option<(HeadId, f64)>, Failure> {
    let state = job.model.state();
    let (Ok(default), Some(samples)) = (state.default_head(), inputs.validation_samples()) else { return Ok(None) };
    let shots = job.model.shots();
    let measured = measure(&samples, &default.head, &[default.settings], shots, engine, watch);
    let measured = measured.map_err(|error| match (error, inputs.task().validation) {
        (FitError::Cancelled, _) => Failure::Ended,
        (error, Validation::Set(_)) => of_rival(&error.of_validation_set()),
        (error, _) => of_rival(&error),
    })?;
    let accuracy = measured.first().and_then(|evaluation| evaluation.report().accuracies.macro_);
    Ok(accuracy.map(|accuracy| (default.id.clone(), accuracy)))
}

fn of_rival(error: &FitError) -> Failure {
    Failure::Error(format!("the default head, which is to be compared with: {error}"))
}

/// Publishes what came of a fit if it is to be; says why it was, or was not.
fn publish(job: &FitJob, outcome: &Outcome) -> (Option<HeadId>, Option<String>) {
    let comparison = match job.record().publish {
        PublishPolicy::Never => return (None, None),
        PublishPolicy::Always => "`publish` is `always`".to_owned(),
        PublishPolicy::IfBetter => {
            let accuracy = outcome.fitted.report.as_ref().and_then(|report| report.report.accuracies.macro_);
            let (Some(accuracy), Some((id, of_default))) = (accuracy, &outcome.rival) else {
                return (None, Some("not published: there was nothing to compare on".to_owned()));
            };
            let HeadId { head, version } = id;
            let words = format!(
                "macro accuracy on the validation set is {accuracy:.6}, that of the default head `{head}` version {version} \
                 {of_default:.6}"
            );
            if accuracy + EQUAL < *of_default {
                return (None, Some(format!("not published: {words}")));
            }
            words
        }
    };
    let record = job.record();
    let edit = Edit::by(record.author.clone().unwrap_or_else(Author::server));
    match job.model.publish_file(&edit, &record.publish_as, &outcome.fitted.file) {
        Ok(published) => (Some(published.made.id.clone()), Some(format!("published: {comparison}"))),
        Err(error) => {
            tracing::error!(fit = job.record().id, %error, "the head of a fit cannot be published: {error}");
            let words = match &error {
                RegistryError::State(state) if state.is_unreachable() => "perhaps published, which the audit says",
                _ => "not published",
            };
            (None, Some(format!("{words}: {error}")))
        }
    }
}
