//! Where labels and features go as they are read, block by block.

use std::io::ErrorKind;

use super::FeatureSetError;

/// What the features of a file look like. N · D is within the machine's range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// N.
    pub(super) rows: usize,
    /// D.
    pub(super) columns: usize,
    /// Whether the elements come column by column.
    pub(super) by_column: bool,
}

impl Shape {
    pub(super) fn new(rows: u64, columns: u64, by_column: bool) -> Result<Self, FeatureSetError> {
        let too_large = || FeatureSetError::Io(ErrorKind::OutOfMemory.into());
        let rows = usize::try_from(rows).map_err(|_| too_large())?;
        let columns = usize::try_from(columns).map_err(|_| too_large())?;
        let n_bytes = rows.checked_mul(columns).and_then(|n| n.checked_mul(4));
        n_bytes.filter(|&n| n <= isize::MAX as usize).ok_or_else(too_large)?;
        Ok(Self { rows, columns, by_column })
    }

    /// N · D.
    pub(super) fn n_elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Where element number `element` of the file belongs in row-major order.
    pub(super) fn place(&self, element: usize) -> usize {
        if self.by_column { (element % self.rows) * self.columns + element / self.rows } else { element }
    }
}

/// Takes a feature set as it is read: its shape, all labels, then all features in the order of the file.
pub(super) trait Sink {
    /// Comes first, when everything that can be told from the headers has been checked.
    fn begin(&mut self, shape: Shape) -> Result<(), FeatureSetError>;
    /// The next labels.
    fn put_labels(&mut self, labels: &[u32]) -> Result<(), FeatureSetError>;
    /// The next features, all finite.
    fn put_features(&mut self, values: &[f32]) -> Result<(), FeatureSetError>;
}

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub(super) struct InMemory {
    pub(super) labels: Vec<u32>,
    /// `[N, D]` in row-major order.
    pub(super) features: Vec<f32>,
    pub(super) columns: usize,
    by_column: Option<Shape>,
    n_read: usize,
}

impl Sink for InMemory {
    fn begin(&mut self, shape: Shape) -> Result<(), FeatureSetError> {
        let too_large = |_| FeatureSetError::Io(ErrorKind::OutOfMemory.into());
        self.labels.try_reserve_exact(shape.rows).map_err(too_large)?;
        self.features.try_reserve_exact(shape.n_elements()).map_err(too_large)?;
        self.columns = shape.columns;
        if shape.by_column {
            self.features.resize(shape.n_elements(), 0.0);
            self.by_column = Some(shape);
        }
        Ok(())
    }

    fn put_labels(&mut self, labels: &[u32]) -> Result<(), FeatureSetError> {
        self.labels.extend_from_slice(labels);
        Ok(())
    }

    fn put_features(&mut self, values: &[f32]) -> Result<(), FeatureSetError> {
        match self.by_column {
            None => self.features.extend_from_slice(values),
            Some(shape) => {
                for (offset, &value) in values.iter().enumerate() {
                    self.features[shape.place(self.n_read + offset)] = value;
                }
                self.n_read += values.len();
            }
        }
        Ok(())
    }
}
