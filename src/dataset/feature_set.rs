//! Features with their labels, checked once.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use ndarray::{Array2, ArrayView2};
use sha2::{Digest as _, Sha256};

use super::{FeatureSetError, npz, tensor_file};
use crate::heads::{Digest, hash_values};

/// The most classes that a feature set may have when nothing else bounds them: what is kept for each class is allocated
/// from the largest label.
pub const MAX_CLASSES: usize = 1 << 24;

/// Backbone features with their labels: at least one row and one column, every value finite, every label below
/// `num_classes`.
///
/// ```
/// use equipoise::dataset::FeatureSet;
/// let features = ndarray::array![[1.0, 0.5], [0.0, 0.0]];
/// let set = FeatureSet::new(features, vec![1, 0], 3)?;
/// assert_eq!((set.num_rows(), set.feature_dim(), set.num_classes()), (2, 2, 3));
/// assert_eq!((set.class_counts(), set.num_zero_rows()), (vec![1, 1, 0], 1));
/// # Ok::<(), equipoise::dataset::FeatureSetError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSet {
    features: Array2<f32>,
    labels: Vec<u32>,
    num_classes: usize,
    num_zero_rows: usize,
    digest: Digest,
}

impl FeatureSet {
    /// Checks features `[N, D]` and labels `[N]` and puts them together.
    ///
    /// # Errors
    /// [`FeatureSetError`]: `Empty`, `LengthMismatch`, `NotFinite` or `LabelOutOfRange`.
    pub fn new(features: Array2<f32>, labels: Vec<u32>, num_classes: usize) -> Result<Self, FeatureSetError> {
        check_shape(features.nrows() as u64, features.ncols() as u64, labels.len() as u64)?;
        if let Some(((row, column), _)) = features.indexed_iter().find(|(_, value)| !value.is_finite()) {
            return Err(FeatureSetError::NotFinite { row, column });
        }
        let in_range = |label: u32| usize::try_from(label).is_ok_and(|label| label < num_classes);
        if let Some(row) = labels.iter().position(|&label| !in_range(label)) {
            return Err(FeatureSetError::LabelOutOfRange { row, label: labels[row].into(), num_classes });
        }
        Ok(Self::from_checked(features, labels, num_classes))
    }

    /// Reads a `.npz` or a safetensors file: arrays `features` or `feats` `[N, D]`, and `labels` `[N]`; others are ignored
    /// unread. With `num_classes` each label must be below it; without, the largest label makes the number of classes, and
    /// must be below [`MAX_CLASSES`].
    ///
    /// Features may be float16, float32 or float64 and are held as float32; labels may be any integers. `max_bytes` bounds
    /// what the two arrays unpack to and what they are held in; sizes are compared before anything is read or allocated.
    ///
    /// # Errors
    /// [`FeatureSetError`] names the array, the row or the byte.
    pub fn read(path: &Path, num_classes: Option<usize>, max_bytes: u64) -> Result<Self, FeatureSetError> {
        Self::read_from(BufReader::new(File::open(path)?), num_classes, max_bytes)
    }

    /// [`read`](Self::read) of something else than a file.
    ///
    /// # Errors
    /// [`FeatureSetError`] names the array, the row or the byte.
    pub fn read_from(
        mut source: impl Read + Seek,
        num_classes: Option<usize>,
        max_bytes: u64,
    ) -> Result<Self, FeatureSetError> {
        let mut magic = Vec::new();
        source.by_ref().take(6).read_to_end(&mut magic)?;
        source.seek(SeekFrom::Start(0))?;
        // A safetensors file begins with the length of its header: these four bytes would be one of 64 MiB, and none so long
        // is taken.
        let (features, labels) = match magic.as_slice() {
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => npz::read(source, num_classes, max_bytes)?,
            b"\x93NUMPY" => {
                let reason = "it is one bare npy array, and labels are needed too".to_owned();
                return Err(FeatureSetError::Container { format: "npz", reason });
            }
            _ => tensor_file::read(source, num_classes, max_bytes)?,
        };
        let from_labels = || labels.iter().max().map_or(0, |&label| label as usize + 1);
        let num_classes = num_classes.unwrap_or_else(from_labels);
        Ok(Self::from_checked(features, labels, num_classes))
    }

    fn from_checked(features: Array2<f32>, labels: Vec<u32>, num_classes: usize) -> Self {
        let features =
            if features.is_standard_layout() { features } else { features.as_standard_layout().into_owned() };
        let num_zero_rows = features.rows().into_iter().filter(|row| row.iter().all(|&value| value == 0.0)).count();
        let mut hasher = Sha256::new();
        hasher.update((features.nrows() as u64).to_le_bytes());
        hasher.update((features.ncols() as u64).to_le_bytes());
        hash_values(&mut hasher, features.iter());
        for label in &labels {
            hasher.update(label.to_le_bytes());
        }
        Self { features, labels, num_classes, num_zero_rows, digest: Digest::finish(hasher) }
    }

    /// `[N, D]`, in row-major order.
    pub fn features(&self) -> ArrayView2<'_, f32> {
        self.features.view()
    }

    /// `[N]`, each below [`num_classes`](Self::num_classes).
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// N, at least 1.
    pub fn num_rows(&self) -> usize {
        self.features.nrows()
    }

    /// D, at least 1.
    pub fn feature_dim(&self) -> usize {
        self.features.ncols()
    }

    /// C. Not every class need occur.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// How many rows are zero throughout: no direction can be had of them.
    pub fn num_zero_rows(&self) -> usize {
        self.num_zero_rows
    }

    /// How many rows each class has, `[C]`.
    pub fn class_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.num_classes];
        for &label in &self.labels {
            counts[label as usize] += 1;
        }
        counts
    }

    /// SHA-256 of N and D as u64, the features as float32 and the labels as u32, all little-endian: the same content has
    /// the same digest whatever file it came in.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// Checks what can be told from the shapes alone.
pub(super) fn check_shape(rows: u64, feature_dim: u64, labels: u64) -> Result<(), FeatureSetError> {
    if rows != labels {
        return Err(FeatureSetError::LengthMismatch { rows, labels });
    }
    if rows == 0 || feature_dim == 0 {
        return Err(FeatureSetError::Empty { rows, feature_dim });
    }
    Ok(())
}
