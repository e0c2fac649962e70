//! What a backbone answers: rows of features, on the host or on the device.

use std::borrow::Cow;

use ort::memory::AllocationDevice;
use ort::value::Tensor;

use super::error::OnnxError;

/// Features `[n, feature_dim]` of a batch, row by row.
///
/// They stay on the device when the backbone runs on CUDA: a head on the same device takes them from there.
#[derive(Debug)]
pub struct Features {
    rows: Rows,
    n: usize,
    feature_dim: usize,
}

#[derive(Debug)]
pub(super) enum Rows {
    /// `[n, feature_dim]`.
    Host(Vec<f32>),
    /// The first `n` rows of it; what was computed for padding comes after them.
    Device(Tensor<f32>),
}

impl Features {
    /// Wraps rows that are on the host: features that a caller sent instead of images.
    ///
    /// # Errors
    /// [`OnnxError::FeatureShape`] if `rows` does not hold `n * feature_dim` values or either is 0, and
    /// [`OnnxError::NotFinite`] with the row's index.
    pub fn from_host(rows: Vec<f32>, n: usize, feature_dim: usize) -> Result<Self, OnnxError> {
        if n == 0 || feature_dim == 0 || n.checked_mul(feature_dim) != Some(rows.len()) {
            return Err(OnnxError::FeatureShape { expected_dim: feature_dim, n, feature_dim, len: rows.len() });
        }
        check_finite(&rows, feature_dim)?;
        Ok(Self { rows: Rows::Host(rows), n, feature_dim })
    }

    /// The caller has checked the shape.
    pub(super) fn new(rows: Rows, n: usize, feature_dim: usize) -> Self {
        Self { rows, n, feature_dim }
    }

    /// How many rows.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Values in a row.
    #[must_use]
    pub fn feature_dim(&self) -> usize {
        self.feature_dim
    }

    /// Whether the rows are in device memory, where reading them costs a copy.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        matches!(self.rows, Rows::Device(_))
    }

    /// These rows and then those of `after`, on the host. Both are of one backbone.
    ///
    /// # Errors
    /// Those of [`Features::to_host`].
    pub fn join(&self, after: &Self) -> Result<Self, OnnxError> {
        let rows = [self.to_host()?, after.to_host()?].concat();
        Ok(Self::new(Rows::Host(rows), self.n + after.n, self.feature_dim))
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The rows on the host: borrowed if they are there, else copied from the device. Those that a backbone computed may hold NaN
    /// and infinity.
    ///
    /// # Errors
    /// [`OnnxError::Run`] if the copy fails.
    pub fn to_host(&self) -> Result<Cow<'_, [f32]>, OnnxError> {
        match &self.rows {
            Rows::Host(rows) => Ok(Cow::Borrowed(rows)),
            Rows::Device(tensor) => {
                let run_error = |source| OnnxError::Run { n: self.n, source };
                // By a small session that `ort` makes once and keeps: `Backbone::warm_up` sees to it that it is there.
                let copy = tensor.to(AllocationDevice::CPU, 0).map_err(run_error)?;
                let (_, rows) = copy.try_extract_tensor::<f32>().map_err(run_error)?;
                let rows = rows.get(..self.n * self.feature_dim).unwrap_or(rows);
                Ok(Cow::Owned(rows.to_vec()))
            }
        }
    }
}

/// # Errors
/// [`OnnxError::NotFinite`] with the index of the first row that holds NaN or infinity.
fn check_finite(rows: &[f32], row_len: usize) -> Result<(), OnnxError> {
    match rows.chunks_exact(row_len.max(1)).position(|row| !row.iter().all(|x| x.is_finite())) {
        Some(image) => Err(OnnxError::NotFinite { image }),
        None => Ok(()),
    }
}
