//! What fits and evaluations read: feature sets, of which no more than a limit are held in memory, heads, and training
//! counts.

use std::{
    fs::{self, File},
    io::BufReader,
    path::Path,
};

use anyhow::Context;

use super::labelled_files::shown;
use crate::{
    dataset::{Expected, FeatureSet, FeatureSetError, Shot, parse_train_counts},
    files::read_text,
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

    /// Reads a feature set; without `num_classes` its largest label makes their number. What does not fit the limit is
    /// converted into a file in the folder for temporary files and mapped from there.
    pub(super) fn read(&mut self, path: &Path, num_classes: Option<usize>) -> anyhow::Result<FeatureSet> {
        let set = match FeatureSet::read(path, num_classes, self.left().unwrap_or(u64::MAX)) {
            Err(FeatureSetError::TooLarge { .. }) => spilled(path, num_classes)?,
            read => read.with_context(|| shown(path))?,
        };
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

/// What of a set is held in memory: float32 features and u32 labels, unless they are mapped.
fn size_of(set: &FeatureSet) -> u64 {
    if set.is_mapped() { 0 } else { 4 * set.num_rows() as u64 * (set.feature_dim() as u64 + 1) }
}

/// The set in a file of its own, mapped. The file goes when nobody maps it any more.
fn spilled(path: &Path, num_classes: Option<usize>) -> anyhow::Result<FeatureSet> {
    let folder = tempfile::tempdir().context("a folder for temporary files")?;
    let source = BufReader::new(File::open(path).with_context(|| shown(path))?);
    let expected = Expected { num_classes, feature_dim: None, max_bytes: u64::MAX };
    let set = FeatureSet::convert(source, &expected, &folder.path().join("features.safetensors"));
    set.with_context(|| format!("{}, converted into {}", shown(path), shown(folder.path())))
}

/// Reads a head file.
pub(super) fn read_head(path: &Path) -> anyhow::Result<Head> {
    let bytes = fs::read(path).with_context(|| shown(path))?;
    Ok(HeadFile::parse(&bytes).with_context(|| shown(path))?.head)
}

/// Reads a table of training counts; without `num_classes` its lines make their number.
pub(super) fn read_train_counts(path: &Path, num_classes: Option<usize>) -> anyhow::Result<Vec<u64>> {
    let text = read_text(path)?;
    let n_lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    let num_classes = num_classes.unwrap_or(n_lines.saturating_sub(1));
    parse_train_counts(&text, num_classes).with_context(|| shown(path))
}

/// The shot of each class.
pub(super) fn shots_of(train_counts: &[u64]) -> Vec<Shot> {
    train_counts.iter().map(|&count| Shot::of(count)).collect()
}
