//! The other way: features and labels to a `.npz` that NumPy reads.

use std::io::{Error, ErrorKind, Result, Seek, Write};

use ndarray::ArrayView2;
use zip::{CompressionMethod, DateTime, ZipWriter, write::SimpleFileOptions};

use super::npy;

/// Writes a feature set row by row: `features` `[N, D]` float32 and `labels` `[N]` int64, stored. The same content gives
/// the same bytes: every member is dated 1980-01-01, the first day that zip knows.
#[derive(Debug)]
pub struct NpzWriter<W: Write + Seek> {
    archive: ZipWriter<W>,
    rows: usize,
    feature_dim: usize,
    rows_written: usize,
    block: Vec<u8>,
}

impl<W: Write + Seek> NpzWriter<W> {
    /// Begins a feature set of `rows` rows.
    ///
    /// # Errors
    /// Those of `out`, and `InvalidInput` if the size is beyond 64 bits.
    pub fn new(out: W, rows: usize, feature_dim: usize) -> Result<Self> {
        let mut archive = ZipWriter::new(out);
        start(&mut archive, "features", "<f4", &[rows, feature_dim], 4)?;
        Ok(Self { archive, rows, feature_dim, rows_written: 0, block: Vec::new() })
    }

    /// Writes the next row.
    ///
    /// # Errors
    /// Those of the file, and `InvalidInput` if the row has not `feature_dim` values, or is one too many.
    pub fn write_row(&mut self, row: &[f32]) -> Result<()> {
        if row.len() != self.feature_dim {
            return Err(invalid(format!("a row has {} values, and should have {}", row.len(), self.feature_dim)));
        }
        if self.rows_written == self.rows {
            return Err(invalid(format!("there are more than {} rows", self.rows)));
        }
        self.block.clear();
        self.block.extend(row.iter().flat_map(|value| value.to_le_bytes()));
        self.archive.write_all(&self.block)?;
        self.rows_written += 1;
        Ok(())
    }

    /// Writes the labels, and ends the file.
    ///
    /// # Errors
    /// Those of the file, and `InvalidInput` if there is not one label for each row, or rows are missing.
    pub fn finish(mut self, labels: &[u32]) -> Result<W> {
        if self.rows_written != self.rows || labels.len() != self.rows {
            let (rows, labels) = (self.rows_written, labels.len());
            return Err(invalid(format!("there are {rows} rows and {labels} labels, and should be {}", self.rows)));
        }
        start(&mut self.archive, "labels", "<i8", &[labels.len()], 8)?;
        for block in labels.chunks(1 << 13) {
            self.block.clear();
            self.block.extend(block.iter().flat_map(|&label| i64::from(label).to_le_bytes()));
            self.archive.write_all(&self.block)?;
        }
        self.end()
    }

    /// Ends the file without labels: rows for other uses than fitting and evaluating.
    ///
    /// # Errors
    /// Those of the file, and `InvalidInput` if rows are missing.
    pub fn finish_without_labels(self) -> Result<W> {
        if self.rows_written != self.rows {
            return Err(invalid(format!("there are {} rows, and should be {}", self.rows_written, self.rows)));
        }
        self.end()
    }

    fn end(self) -> Result<W> {
        let mut out = self.archive.finish()?;
        out.flush()?;
        Ok(out)
    }
}

/// Writes features `[N, D]` and labels `[N]` to `out`; see [`NpzWriter`].
///
/// ```
/// use equipoise::dataset::{FeatureSet, write_npz};
/// let set = FeatureSet::new(ndarray::array![[1.0, 0.5]], vec![2], 3)?;
/// let mut file = std::io::Cursor::new(Vec::new());
/// write_npz(&mut file, set.features(), set.labels())?;
/// file.set_position(0);
/// assert_eq!(FeatureSet::read_from(file, Some(3), 1 << 10)?, set);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of `out`, and `InvalidInput` if there is not one label for each row.
pub fn write_npz(out: impl Write + Seek, features: ArrayView2<'_, f32>, labels: &[u32]) -> Result<()> {
    let mut writer = NpzWriter::new(out, features.nrows(), features.ncols())?;
    for row in features.rows() {
        match row.as_slice() {
            Some(row) => writer.write_row(row)?,
            None => writer.write_row(&row.to_vec())?,
        }
    }
    writer.finish(labels).map(drop)
}

fn start<W: Write + Seek>(
    archive: &mut ZipWriter<W>,
    name: &str,
    descr: &str,
    shape: &[usize],
    element_size: u64,
) -> Result<()> {
    let n_bytes = shape.iter().try_fold(element_size, |product, &dim| product.checked_mul(dim as u64));
    let n_bytes = n_bytes.ok_or_else(|| invalid(format!("an array of shape {shape:?} is beyond 64 bits")))?;
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        // With room for the header.
        .large_file(n_bytes > u64::from(u32::MAX) - (1 << 10));
    archive.start_file(format!("{name}.npy"), options)?;
    npy::write_header(archive, descr, shape)
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
