//! The rows that a fit sees.

use std::ops::Range;

use ndarray::ArrayView2;

use super::engine::Rows;
use crate::dataset::{FeatureSet, class_counts};

/// Some labelled rows of a feature set.
#[derive(Clone, Debug)]
pub struct Samples<'a> {
    table: ArrayView2<'a, f32>,
    /// `None` is all of them.
    rows: Option<Vec<u32>>,
    labels: Vec<u32>,
    num_classes: usize,
}

impl<'a> Samples<'a> {
    /// All rows of `set`.
    pub fn all(set: &'a FeatureSet) -> Self {
        Self { table: set.features(), rows: None, labels: set.labels().to_vec(), num_classes: set.num_classes() }
    }

    /// These rows of `set`.
    pub fn some(set: &'a FeatureSet, rows: Vec<u32>) -> Self {
        let labels = rows.iter().map(|&row| set.labels()[row as usize]).collect();
        Self { table: set.features(), rows: Some(rows), labels, num_classes: set.num_classes() }
    }

    /// `[N, D]`, the table that rows are counted in; may hold more rows than these samples.
    pub fn table(&self) -> ArrayView2<'a, f32> {
        self.table
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Their labels.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// C.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// D.
    pub fn feature_dim(&self) -> usize {
        self.table.ncols()
    }

    /// How many samples each class has, `[C]`.
    pub fn class_counts(&self) -> Vec<u64> {
        class_counts(&self.labels, self.num_classes)
    }

    /// The table's rows of a piece of the samples.
    pub fn piece(&self, range: Range<usize>) -> Rows<'_> {
        match &self.rows {
            None => Rows::Range { start: range.start, end: range.end },
            Some(rows) => Rows::Index(&rows[range]),
        }
    }

    /// The table's row of a sample.
    pub fn row(&self, sample: u32) -> u32 {
        self.rows.as_ref().map_or(sample, |rows| rows[sample as usize])
    }

    /// The same labels, in the same order, over a table that has a row for each of these samples and no other.
    pub(super) fn with_table<'b>(&self, table: ArrayView2<'b, f32>) -> Samples<'b> {
        Samples { table, rows: None, labels: self.labels.clone(), num_classes: self.num_classes }
    }

    /// The same rows with the classes that have none left out: labels count the others only. Gives back which they are, in
    /// ascending order.
    ///
    /// A class that nobody has seen takes no part in a softmax fit: it would only be pushed away from everything.
    pub(super) fn without_absent_classes(&self) -> (Self, Vec<usize>) {
        let counts = self.class_counts();
        let present: Vec<usize> = (0..self.num_classes).filter(|&class| counts[class] > 0).collect();
        let mut compact = vec![0; self.num_classes];
        for (index, &class) in (0u32..).zip(&present) {
            compact[class] = index;
        }
        let labels = self.labels.iter().map(|&label| compact[label as usize]).collect();
        (Self { table: self.table, rows: self.rows.clone(), labels, num_classes: present.len() }, present)
    }
}

/// The places of each class's labels, `[C]` lists in ascending order.
pub(super) fn rows_by_class(labels: &[u32], num_classes: usize) -> Vec<Vec<u32>> {
    let mut rows = vec![Vec::new(); num_classes];
    for (row, &label) in (0u32..).zip(labels) {
        rows[label as usize].push(row);
    }
    rows
}
