//! What there is to say of a head.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{SampleCounts, ShotCounts};
use crate::{
    cli::text::{Facts, count},
    heads::{Head, HeadFile, HeadKind, NormStatistics, Settings},
    registry::{HeadSource, PublishedHead},
};

#[derive(Debug, Serialize)]
pub(super) struct HeadReport {
    /// In a model directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) head: Option<String>,
    kind: HeadKind,
    classes: usize,
    feature_dim: usize,
    settings: Settings,
    transform: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<&'static str>,
    train_prior: &'static str,
    /// Of the head's own counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    shots: Option<ShotCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<SampleCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    norms: Option<NormReport>,
    /// The head that it is derived from: weights, norms and warnings are that one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    pub(super) warnings: Vec<String>,
    provenance: BTreeMap<String, String>,
    /// SHA-256 of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

/// The norms of the class weights.
#[derive(Debug, Serialize)]
struct NormReport {
    min: f64,
    min_class: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_label: Option<String>,
    max: f64,
    max_class: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_label: Option<String>,
    mean: f64,
    /// Standard deviation over mean.
    variation: Option<f64>,
    /// Pearson's, of log training count and norm.
    count_correlation: Option<f64>,
}

impl HeadReport {
    /// The report of a head; `train_counts` are the model's, for a head without any of its own.
    pub(super) fn of(head: &Head, labels: Option<&[String]>, train_counts: Option<&[u64]>) -> Self {
        let own_counts = head.train_counts();
        let statistics = head.row_norms().and_then(|norms| NormStatistics::new(&norms, own_counts.or(train_counts)));
        // The other kinds are not what tau-normalisation is made of.
        let is_for_tau = matches!(head.kind(), HeadKind::Joint | HeadKind::TauNorm);
        let mut warnings: Vec<String> = match &statistics {
            Some(statistics) if is_for_tau => statistics.warnings().iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        let samples = own_counts.map(SampleCounts::of);
        if let Some(n) = samples.map(|samples| samples.classes_without).filter(|&n| n > 0) {
            warnings.push(format!("{} had no training sample and cannot be predicted", count(n, "class")));
        }
        let label = |class: usize| labels.and_then(|labels| labels.get(class)).cloned();
        Self {
            head: None,
            kind: head.kind(),
            classes: head.num_classes(),
            feature_dim: head.feature_dim(),
            settings: *head.initial_settings(),
            transform: head.transform().as_str(),
            metric: head.metric().map(|metric| metric.as_str()),
            train_prior: head.train_prior().as_str(),
            shots: own_counts.map(ShotCounts::of),
            samples,
            norms: statistics.map(|statistics| NormReport {
                min: statistics.smallest.1,
                min_class: statistics.smallest.0,
                min_label: label(statistics.smallest.0),
                max: statistics.largest.1,
                max_class: statistics.largest.0,
                max_label: label(statistics.largest.0),
                mean: statistics.mean,
                variation: statistics.variation,
                count_correlation: statistics.count_correlation,
            }),
            base: None,
            warnings,
            provenance: head.provenance().clone(),
            digest: None,
        }
    }

    /// With the digest of its file.
    pub(super) fn with_digest(self, file: &HeadFile) -> Self {
        Self { digest: Some(file.digest.to_hex()), ..self }
    }

    /// The report of a head of a model.
    pub(super) fn of_published(published: &PublishedHead, labels: &[String], train_counts: Option<&[u64]>) -> Self {
        let mut report = Self::of(&published.head, Some(labels), train_counts);
        report.head = Some(published.id.head.clone());
        report.settings = published.settings;
        match &published.source {
            HeadSource::File(digest) => report.digest = Some(digest.clone()),
            HeadSource::Derived(spec) => {
                report.base = Some(spec.base.head.clone());
                (report.norms, report.warnings) = (None, Vec::new());
            }
        }
        report
    }

    /// Lines for people, indented.
    pub(super) fn text(&self) -> String {
        let mut facts = Facts::default();
        let mut kind = self.kind.to_string();
        if let Some(base) = &self.base {
            kind.push_str(&format!(" of {base}"));
        }
        facts.add("kind", kind);
        if self.head.is_none() {
            facts.add("classes", self.classes.to_string());
            facts.add("feature dim", self.feature_dim.to_string());
        }
        facts.add("settings", self.settings_shown());
        if let Some(metric) = self.metric {
            facts.add("compares by", format!("{metric}, features transformed by {}", self.transform));
        }
        facts.add("train prior", self.train_prior);
        if let (None, Some(shots), Some(samples)) = (&self.head, self.shots, self.samples) {
            facts.add("shots", shots.shown());
            facts.add("train samples", samples.shown());
        }
        if let Some(norms) = &self.norms {
            let class = |class: usize, label: &Option<String>| match label {
                Some(label) => label.clone(),
                None => format!("class {class}"),
            };
            let (min, max) = (class(norms.min_class, &norms.min_label), class(norms.max_class, &norms.max_label));
            facts.add(
                "row norms",
                format!("{:.3} ({min}) to {:.3} ({max}), mean {:.3}", norms.min, norms.max, norms.mean),
            );
            if let Some(variation) = norms.variation {
                facts.add("", format!("they vary by {:.1} % (standard deviation over mean)", 100.0 * variation));
            }
            match norms.count_correlation {
                Some(correlation) => facts.add("", format!("correlation with log count {correlation:.3}")),
                None => facts.add("", "correlation with log count unknown: no counts, or one side does not vary"),
            }
        }
        for (key, value) in &self.provenance {
            facts.add(key.replace('_', " "), value.clone());
        }
        if let Some(digest) = &self.digest {
            facts.add("sha256", digest.clone());
        }
        for warning in &self.warnings {
            facts.add("warning", warning.clone());
        }
        facts.lines(2)
    }

    fn settings_shown(&self) -> String {
        let mut settings = Vec::new();
        if let Some(tau) = self.settings.tau {
            settings.push(format!("tau {tau}"));
        }
        if let Some(bias) = self.settings.bias {
            // By the name it has in files.
            settings.push(format!("bias {}", serde_json::json!(bias).as_str().unwrap_or_default()));
        }
        settings.push(format!("temperature {}", self.settings.temperature));
        settings.join(", ")
    }
}
