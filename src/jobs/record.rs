//! What is known of a fit, and kept of it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    fit::FitReport,
    heads::HeadKind,
    registry::{Author, HeadId},
};

/// The format of the records in the state directory.
pub(super) const FORMAT: &str = "equipoise-fit/1";

/// How far a fit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FitState {
    /// It waits.
    Queued,
    /// It runs.
    Running,
    /// There is a head.
    Succeeded,
    /// There is none, and `error` says why.
    Failed,
    /// Somebody did not want it any more.
    Cancelled,
}

impl FitState {
    /// Every state in which a fit ends.
    pub const ENDS: [Self; 3] = [Self::Succeeded, Self::Failed, Self::Cancelled];

    /// Whether nothing more will happen.
    pub fn is_finished(self) -> bool {
        Self::ENDS.contains(&self)
    }

    /// The name in answers, records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Whether a head is published as soon as it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishPolicy {
    /// It waits for somebody to publish it.
    #[default]
    Never,
    /// If its macro accuracy on the validation samples is at least that of the default head.
    IfBetter,
    /// Whatever it is like.
    Always,
}

/// What a head is chosen and reported on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ValidationChoice {
    /// A feature set, by its id.
    FeatureSet(String),
    /// This share of the rows of each class, which then are not fitted.
    Holdout(f64),
}

/// How far a running fit is, or a finished one was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitProgress {
    /// From 0 to 1.
    pub done: f64,
    /// The epoch, from 1; of L-BFGS the number of evaluations.
    pub epoch: usize,
    /// How many there will be; 0 if nobody knows.
    pub epochs: usize,
    /// The mean loss of this epoch so far.
    pub loss: Option<f64>,
    /// Samples that were looked at in a second.
    pub samples_per_second: f64,
    /// A guess from what is done so far.
    pub seconds_left: Option<f64>,
}

/// When a fit did what, in seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FitTiming {
    /// It was asked for.
    pub queued_at: f64,
    /// It began to run.
    pub started_at: Option<f64>,
    /// It ended.
    pub finished_at: Option<f64>,
}

/// The accuracies of a report, without what there is for each class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportSummary {
    n: u64,
    micro: Option<f64>,
    #[serde(rename = "macro")]
    macro_: Option<f64>,
    many: Option<f64>,
    medium: Option<f64>,
    few: Option<f64>,
    top5: Option<f64>,
    ece: Option<f64>,
}

impl ReportSummary {
    pub(super) fn of(report: &FitReport) -> Self {
        let accuracies = report.report.accuracies;
        Self {
            n: report.report.n,
            micro: accuracies.micro,
            macro_: accuracies.macro_,
            many: accuracies.many,
            medium: accuracies.medium,
            few: accuracies.few,
            top5: report.report.top5,
            ece: report.report.ece,
        }
    }
}

/// A fit, as it is kept in the state directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitRecord {
    pub(super) format: String,
    /// Counts the fits of the model.
    pub(super) number: u64,
    /// `fit_` and 16 hexadecimal digits.
    pub id: String,
    /// Who asked for it; not known of those of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<Author>,
    /// The method.
    pub method: HeadKind,
    /// The name that a publish gives the head.
    pub publish_as: String,
    /// The version that the method starts from, if it starts from one or one was named.
    pub base: Option<HeadId>,
    /// The id of what is fitted.
    pub feature_set: String,
    /// What is chosen and reported on.
    pub validation: Option<ValidationChoice>,
    /// Whether the head is published as soon as it is there.
    pub publish: PublishPolicy,
    /// The parameters, as they were given.
    pub params: Map<String, Value>,
    /// How far it is.
    pub state: FitState,
    /// Of a finished fit, how far it got.
    pub progress: Option<FitProgress>,
    /// The [`FitReport`] as JSON, which nobody here looks into again.
    pub report: Option<Box<RawValue>>,
    /// The head of that report.
    pub summary: Option<ReportSummary>,
    /// What whoever asked for it should know.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The SHA-256 of the head file in hexadecimal, once there is one.
    pub digest: Option<String>,
    /// What it was published as, the last time.
    pub head: Option<HeadId>,
    /// Why it was published, or was not, as soon as it was there.
    pub publish_reason: Option<String>,
    /// When it did what.
    pub timing: FitTiming,
}
