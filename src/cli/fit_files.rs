//! What fits and evaluations read: feature sets within a limit, heads, and training counts.

use std::{fs, path::Path};

use anyhow::Context;

use super::labelled_files::shown;
use crate::{
    dataset::{FeatureSet, FeatureSetError, Shot, parse_train_counts},
    heads::{Head, HeadFile},
};

/// What may still be read into memory, in bytes.
#[derive(Debug)]
pub(super) struct MemoryLimit {
    /// As it was asked for.
    limit: Option<u64>,
    held: u64,
}

impl MemoryLimit {
    /// Of `--memory-limit-bytes`.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, held: 0 }
    }

    /// What is left; `None` without a limit.
    pub(super) fn left(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.held))
    }

    /// Reads a feature set; without `num_classes` its largest label makes their number.
    pub(super) fn read(&mut self, path: &Path, num_classes: Option<usize>) -> anyhow::Result<FeatureSet> {
        let read = FeatureSet::read(path, num_classes, self.left().unwrap_or(u64::MAX));
        let set = read.with_context_of(|error| match error {
            FeatureSetError::TooLarge { .. } => format!("{}, within what is left of --memory-limit-bytes", shown(path)),
            _ => shown(path),
        })?;
        self.held = self.held.saturating_add(size_of(&set));
        Ok(set)
    }

    /// Two feature sets with one number of classes; without `num_classes` the largest label of both makes it.
    pub(super) fn read_two(
        &mut self,
        first: &Path,
        second: &Path,
        num_classes: Option<usize>,
    ) -> anyhow::Result<(FeatureSet, FeatureSet)> {
        let sets = (self.read(first, num_classes)?, self.read(second, num_classes)?);
        let (of_first, of_second) = (sets.0.num_classes(), sets.1.num_classes());
        // A set does not change: the one with the smaller labels is read again.
        Ok(match of_first.cmp(&of_second) {
            std::cmp::Ordering::Equal => sets,
            std::cmp::Ordering::Less => (self.read_again(sets.0, first, of_second)?, sets.1),
            std::cmp::Ordering::Greater => (sets.0, self.read_again(sets.1, second, of_first)?),
        })
    }

    fn read_again(&mut self, set: FeatureSet, path: &Path, num_classes: usize) -> anyhow::Result<FeatureSet> {
        self.held = self.held.saturating_sub(size_of(&set));
        drop(set);
        self.read(path, Some(num_classes))
    }
}

/// What a set is held in: float32 features and u32 labels.
fn size_of(set: &FeatureSet) -> u64 {
    4 * set.num_rows() as u64 * (set.feature_dim() as u64 + 1)
}

/// A context that depends on the error.
trait WithContextOf<T, E> {
    fn with_context_of(self, context: impl FnOnce(&E) -> String) -> anyhow::Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> WithContextOf<T, E> for Result<T, E> {
    fn with_context_of(self, context: impl FnOnce(&E) -> String) -> anyhow::Result<T> {
        self.map_err(|error| {
            let context = context(&error);
            anyhow::Error::from(error).context(context)
        })
    }
}

/// Reads a head file.
pub(super) fn read_head(path: &Path) -> anyhow::Result<Head> {
    let bytes = fs::read(path).with_context(|| shown(path))?;
    Ok(HeadFile::parse(&bytes).with_context(|| shown(path))?.head)
}

/// Reads a table of training counts; without `num_classes` its lines make their number.
pub(super) fn read_train_counts(path: &Path, num_classes: Option<usize>) -> anyhow::Result<Vec<u64>> {
    let text = fs::read_to_string(path).with_context(|| shown(path))?;
    let n_lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    let num_classes = num_classes.unwrap_or(n_lines.saturating_sub(1));
    parse_train_counts(&text, num_classes).with_context(|| shown(path))
}

/// The shot of each class.
pub(super) fn shots_of(train_counts: &[u64]) -> Vec<Shot> {
    train_counts.iter().map(|&count| Shot::of(count)).collect()
}
