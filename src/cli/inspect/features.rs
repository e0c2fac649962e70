//! What there is to say of a feature set.

use serde::Serialize;

use super::SampleCounts;
use crate::{
    cli::text::{Facts, count},
    dataset::FeatureSet,
};

#[derive(Debug, Serialize)]
pub(super) struct FeaturesReport {
    rows: usize,
    feature_dim: usize,
    /// As many as the largest label asks for.
    classes: usize,
    samples: SampleCounts,
    zero_rows: usize,
    warnings: Vec<String>,
    /// SHA-256 of the content, whatever the file.
    digest: String,
}

impl FeaturesReport {
    pub(super) fn of(set: &FeatureSet) -> Self {
        let samples = SampleCounts::of(&set.class_counts());
        let mut warnings = Vec::new();
        if samples.classes_without > 0 {
            warnings.push(format!("{} without a row", count(samples.classes_without, "class")));
        }
        if set.num_zero_rows() > 0 {
            warnings.push(format!("{} zero throughout", are(set.num_zero_rows())));
        }
        Self {
            rows: set.num_rows(),
            feature_dim: set.feature_dim(),
            classes: set.num_classes(),
            samples,
            zero_rows: set.num_zero_rows(),
            warnings,
            digest: set.digest().to_hex(),
        }
    }

    /// Lines for people, indented.
    pub(super) fn text(&self) -> String {
        let mut facts = Facts::default();
        facts.add("rows", self.rows.to_string());
        facts.add("feature dim", self.feature_dim.to_string());
        facts.add("classes", self.classes.to_string());
        facts.add("samples", self.samples.shown());
        facts.add("zero rows", self.zero_rows.to_string());
        facts.add("digest", self.digest.clone());
        for warning in &self.warnings {
            facts.add("warning", warning.clone());
        }
        facts.lines(2)
    }
}

fn are(n: usize) -> String {
    format!("{} {}", count(n, "row"), if n == 1 { "is" } else { "are" })
}
