//! The one form in which a feature set is kept: a safetensors file that is mapped as it lies.
//!
//! ```text
//! header   format, classes, digest, zero_rows; padded to a length that is known before they are
//! labels   U32 [N]
//! features F32 [N, D], row-major
//! ```

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{
    FeatureSet, FeatureSetError,
    elements::{FEATURES, LABELS},
    sink::{Shape, Sink},
    storage::{Matrix, Scatter, Values, map},
};

/// The value of the metadata key `format` of a converted feature set.
pub const FORMAT: &str = "equipoise-features/1";

/// Zeros are written in pieces of this.
const BLOCK_BYTES: usize = 1 << 16;

/// Writes a converted file beside its destination, and moves it there when it is whole.
pub(super) struct Converter<A> {
    destination: PathBuf,
    temporary: Temporary,
    file: File,
    /// Asked with the size of the file before anything of that size is written.
    admit: A,
    layout: Option<Layout>,
    scatter: Option<Scatter>,
    n_features: usize,
    block: Vec<u8>,
}

/// Where everything lies.
#[derive(Clone, Copy)]
struct Layout {
    shape: Shape,
    labels_start: u64,
    features_start: u64,
    end: u64,
}

impl Layout {
    fn new(shape: Shape) -> Self {
        // No header is longer than that of the longest numbers.
        let longest = header(shape, usize::MAX, usize::MAX, &"f".repeat(64));
        let labels_start = (8 + longest.len() as u64).next_multiple_of(64);
        let features_start = labels_start + 4 * shape.rows as u64;
        Self { shape, labels_start, features_start, end: features_start + 4 * shape.n_elements() as u64 }
    }
}

fn header(shape: Shape, classes: usize, zero_rows: usize, digest: &str) -> String {
    let Shape { rows, columns, .. } = shape;
    let (labels_end, end) = (4 * rows as u64, 4 * rows as u64 + 4 * shape.n_elements() as u64);
    json!({
        "__metadata__": {
            "format": FORMAT,
            "classes": classes.to_string(),
            "zero_rows": zero_rows.to_string(),
            "digest": digest,
        },
        LABELS: { "dtype": "U32", "shape": [rows], "data_offsets": [0, labels_end] },
        FEATURES[0]: { "dtype": "F32", "shape": [rows, columns], "data_offsets": [labels_end, end] },
    })
    .to_string()
}

impl<A: FnMut(u64) -> io::Result<()>> Converter<A> {
    pub(super) fn create(destination: &Path, admit: A) -> io::Result<Self> {
        let mut temporary = destination.as_os_str().to_owned();
        temporary.push(".tmp");
        let path = PathBuf::from(temporary);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        Ok(Self {
            destination: destination.to_owned(),
            temporary: Temporary { path: Some(path) },
            file,
            admit,
            layout: None,
            scatter: None,
            n_features: 0,
            block: Vec::new(),
        })
    }

    /// Writes the header, moves the file to its destination, and maps it.
    pub(super) fn finish(mut self, num_classes: Option<usize>) -> Result<FeatureSet, FeatureSetError> {
        if let Some(scatter) = self.scatter.take() {
            scatter.flush()?;
        }
        let layout = self.layout.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let shape = layout.shape;
        let map = map(&self.file)?;
        let labels = Values::mapped(&map, layout.labels_start, shape.rows as u64);
        let features = Values::mapped(&map, layout.features_start, shape.n_elements() as u64);
        let matrix = features.and_then(|features| Matrix::new(features, shape.rows, shape.columns));
        let (Some(labels), Some(matrix)) = (labels, matrix) else {
            // A machine that keeps its numbers the other way round.
            return Err(io::Error::from(io::ErrorKind::Unsupported).into());
        };
        let set = FeatureSet::from_values(matrix, labels, num_classes)?;

        let mut text = header(shape, set.num_classes(), set.num_zero_rows(), &set.digest().to_hex());
        while (8 + text.len() as u64) < layout.labels_start {
            text.push(' ');
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&(text.len() as u64).to_le_bytes())?;
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()?;
        self.temporary.rename(&self.destination)?;
        Ok(set)
    }

    fn write_block(&mut self) -> io::Result<()> {
        self.file.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    fn write_zeros(&mut self, n_bytes: u64) -> io::Result<()> {
        let zeros = [0; BLOCK_BYTES];
        let mut left = n_bytes;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
            self.file.write_all(&zeros[..n])?;
            left -= n as u64;
        }
        Ok(())
    }
}

impl<A: FnMut(u64) -> io::Result<()>> Sink for Converter<A> {
    fn begin(&mut self, shape: Shape) -> Result<(), FeatureSetError> {
        let layout = Layout::new(shape);
        (self.admit)(layout.end)?;
        self.write_zeros(layout.labels_start)?;
        self.layout = Some(layout);
        Ok(())
    }

    fn put_labels(&mut self, labels: &[u32]) -> Result<(), FeatureSetError> {
        self.block.extend(labels.iter().flat_map(|label| label.to_le_bytes()));
        Ok(self.write_block()?)
    }

    fn put_features(&mut self, values: &[f32]) -> Result<(), FeatureSetError> {
        match self.layout {
            Some(Layout { shape, features_start, end, .. }) if shape.by_column => {
                if self.scatter.is_none() {
                    // Every block is there before it is mapped; see `Scatter::new`.
                    self.write_zeros(end - features_start)?;
                    self.scatter = Some(Scatter::new(&self.file, features_start)?);
                }
                if let Some(scatter) = &mut self.scatter {
                    for (offset, &value) in values.iter().enumerate() {
                        scatter.put(shape.place(self.n_features + offset), value)?;
                    }
                }
                self.n_features += values.len();
            }
            _ => {
                self.block.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                self.write_block()?;
            }
        }
        Ok(())
    }
}

/// A file that is removed unless it gets its name.
struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    /// Gives the file its name, and sees to it that the folder keeps it.
    fn rename(&mut self, destination: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, destination)?;
        }
        self.path = None;
        let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_data()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed now is removed when the store is opened the next time.
            let _ = fs::remove_file(path);
        }
    }
}
