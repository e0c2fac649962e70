//! Features with their labels, checked once.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use ndarray::{Array2, ArrayView2};
use sha2::{Digest as _, Sha256};

use super::{
    FeatureSetError, converted,
    converted::Converter,
    elements::{Budget, Class},
    npz,
    sink::{InMemory, Sink},
    storage::{Matrix, Values, map},
    tensor_file::{self, Header},
};
use crate::heads::{Digest, hash_values};

/// The most classes that a feature set may have when nothing else bounds them: what is kept for each class is allocated
/// from the largest label.
pub const MAX_CLASSES: usize = 1 << 24;

/// Numbers that are checked and hashed while they are at hand.
const BLOCK_VALUES: usize = 1 << 14;

/// What a file of features must be to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// C, which every label must be below; without it, the largest label makes it, and must be below [`MAX_CLASSES`].
    pub num_classes: Option<usize>,
    /// D, if only one will do.
    pub feature_dim: Option<usize>,
    /// Bytes that the two arrays may unpack to, and that they may take as float32 and uint32.
    pub max_bytes: u64,
}

/// Backbone features with their labels: at least one row and one column, every value finite, every label below
/// `num_classes`. They lie in memory, or in a file that is mapped and not loaded; a clone shares them.
///
/// ```
/// use equipoise::dataset::FeatureSet;
/// let features = ndarray::array![[1.0, 0.5], [0.0, 0.0]];
/// let set = FeatureSet::new(features, vec![1, 0], 3)?;
/// assert_eq!((set.num_rows(), set.feature_dim(), set.num_classes()), (2, 2, 3));
/// assert_eq!((set.class_counts(), set.num_zero_rows()), (vec![1, 1, 0], 1));
/// # Ok::<(), equipoise::dataset::FeatureSetError>(())
/// ```
#[derive(Clone, Debug)]
pub struct FeatureSet {
    content: Arc<Content>,
    num_classes: usize,
    num_zero_rows: usize,
    digest: Digest,
}

#[derive(Debug)]
struct Content {
    features: Matrix,
    labels: Values<u32>,
}

impl PartialEq for FeatureSet {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
            && self.num_classes == other.num_classes
            && self.labels() == other.labels()
            && self.features() == other.features()
    }
}

impl FeatureSet {
    /// Checks features `[N, D]` and labels `[N]` and puts them together.
    ///
    /// # Errors
    /// [`FeatureSetError`]: `Empty`, `LengthMismatch`, `NotFinite` or `LabelOutOfRange`.
    pub fn new(features: Array2<f32>, labels: Vec<u32>, num_classes: usize) -> Result<Self, FeatureSetError> {
        let (rows, columns) = features.dim();
        check_shape(rows as u64, columns as u64, labels.len() as u64)?;
        let features =
            if features.is_standard_layout() { features } else { features.as_standard_layout().into_owned() };
        let (mut values, offset) = features.into_raw_vec_and_offset();
        // What is left of a larger array may begin inside of it.
        values.drain(..offset.unwrap_or(0));
        values.truncate(rows * columns);
        Self::in_memory(values, columns, labels, Some(num_classes))
    }

    /// Reads a `.npz` or a safetensors file: arrays `features` or `feats` `[N, D]`, and `labels` `[N]`; others are ignored
    /// unread. With `num_classes` each label must be below it; without, the largest label makes the number of classes, and
    /// must be below [`MAX_CLASSES`].
    ///
    /// Features may be float16, float32 or float64 and are held as float32; labels may be any integers. `max_bytes` bounds
    /// what the two arrays unpack to and what they are held in; sizes are compared before anything is read or allocated.
    /// What [`map`](Self::map) takes is mapped and not held: then only labels that are held count.
    ///
    /// # Errors
    /// [`FeatureSetError`] names the array, the row or the byte.
    pub fn read(path: &Path, num_classes: Option<usize>, max_bytes: u64) -> Result<Self, FeatureSetError> {
        let mut file = File::open(path)?;
        match Self::of_map(&mut file, num_classes, max_bytes) {
            Err(FeatureSetError::NotMappable { .. }) => {
                file.seek(SeekFrom::Start(0))?;
                Self::read_from(BufReader::new(file), num_classes, max_bytes)
            }
            mapped => mapped,
        }
    }

    /// Maps a safetensors file whose features are float32 and begin at a multiple of four bytes; labels that are uint32 and
    /// do so too are mapped with them, others are read. Every check of [`read`](Self::read) is made; for a file that
    /// [`convert`](Self::convert) wrote, the digest of the content is compared with what its metadata say, and without
    /// `num_classes` its own number of classes holds.
    ///
    /// Nobody may write to the file or cut it short while the set or a clone of it lives: the numbers would change, or the
    /// process be ended by the system.
    ///
    /// # Errors
    /// [`FeatureSetError::NotMappable`] if it is a feature set that can only be read; others as [`read`](Self::read).
    pub fn map(path: &Path, num_classes: Option<usize>) -> Result<Self, FeatureSetError> {
        Self::of_map(&mut File::open(path)?, num_classes, u64::MAX)
    }

    fn of_map(file: &mut File, num_classes: Option<usize>, max_held_bytes: u64) -> Result<Self, FeatureSetError> {
        let not_mappable = |reason| FeatureSetError::NotMappable { reason };
        if Container::of(file)? != Container::Safetensors {
            return Err(not_mappable("it is no safetensors file"));
        }
        let Header { features, labels, metadata } = tensor_file::read_header(file)?;
        let is_word = |member: &tensor_file::Member, class| {
            member.layout.element.is_some_and(|element| element.class == class && element.size == 4)
        };
        let map_labels = is_word(&labels, Class::Unsigned) && labels.start.is_multiple_of(4);
        let mut unlimited = Budget::new(u64::MAX);
        let mut held = if map_labels { unlimited } else { Budget::new(max_held_bytes) };
        let checked_labels = labels.layout.check_labels(labels.n_bytes, &mut held)?;
        let any = Expected { num_classes, feature_dim: None, max_bytes: u64::MAX };
        let checked = features.layout.check_features(checked_labels.rows(), features.n_bytes, &any, &mut unlimited)?;
        if !is_word(&features, Class::Float) {
            return Err(not_mappable("its features are not float32"));
        }
        let shape = checked.shape()?;
        let map = map(file).map_err(|_| not_mappable("the operating system does not map it"))?;
        let matrix = Values::mapped(&map, features.start, shape.n_elements() as u64)
            .and_then(|values| Matrix::new(values, shape.rows, shape.columns))
            .ok_or_else(|| not_mappable("its features do not begin at a multiple of four bytes"))?;

        let of_ours = metadata.get("format").is_some_and(|format| format == converted::FORMAT);
        let num_classes = match metadata.get("classes").filter(|_| of_ours && num_classes.is_none()) {
            Some(classes) => Some(own_classes(classes)?),
            None => num_classes,
        };
        let labels = if map_labels {
            Values::mapped(&map, labels.start, shape.rows as u64)
                .ok_or_else(|| not_mappable("its labels do not begin at a multiple of four bytes"))?
        } else {
            let mut sink = InMemory::default();
            file.seek(SeekFrom::Start(labels.start))?;
            checked_labels.read_labels(&mut BufReader::new(file.take(labels.n_bytes)), num_classes, &mut sink)?;
            Values::Owned(sink.labels)
        };
        let set = Self::from_values(matrix, labels, num_classes)?;
        match metadata.get("digest").filter(|_| of_ours) {
            Some(expected) if *expected != set.digest.to_hex() => {
                // It may be anything.
                let expected = expected.chars().take(64).collect();
                Err(FeatureSetError::Digest { found: set.digest.to_hex(), expected })
            }
            _ => Ok(set),
        }
    }

    /// Reads a `.npz` or safetensors file as [`read`](Self::read) does, writes it to `destination` in the form that
    /// [`map`](Self::map) takes, and maps it. Neither file is ever held in memory as a whole. `destination` appears whole
    /// or not at all, and is on the disk when this returns.
    ///
    /// The file is safetensors: `labels` uint32 `[N]`, `features` float32 `[N, D]`, and metadata `format`
    /// ([`FEATURES_FORMAT`](super::FEATURES_FORMAT)), `classes`, `digest` and `zero_rows`. The same content and number of
    /// classes give the same bytes.
    ///
    /// # Errors
    /// [`FeatureSetError`] names the array, the row or the byte; `FeatureDim` if D is not the expected one.
    pub fn convert(source: impl Read + Seek, expected: &Expected, destination: &Path) -> Result<Self, FeatureSetError> {
        Self::convert_admitted(source, expected, destination, |_| Ok(()))
    }

    /// [`convert`](Self::convert), with `admit` asked for the bytes of the new file before they are written.
    pub(crate) fn convert_admitted(
        source: impl Read + Seek,
        expected: &Expected,
        destination: &Path,
        admit: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<Self, FeatureSetError> {
        let mut converter = Converter::create(destination, admit)?;
        read_into(source, expected, &mut converter)?;
        converter.finish(expected.num_classes)
    }

    /// [`read`](Self::read) of something else than a file.
    ///
    /// # Errors
    /// [`FeatureSetError`] names the array, the row or the byte.
    pub fn read_from(
        source: impl Read + Seek,
        num_classes: Option<usize>,
        max_bytes: u64,
    ) -> Result<Self, FeatureSetError> {
        let mut sink = InMemory::default();
        read_into(source, &Expected { num_classes, feature_dim: None, max_bytes }, &mut sink)?;
        Self::in_memory(sink.features, sink.columns, sink.labels, num_classes)
    }

    fn in_memory(
        features: Vec<f32>,
        columns: usize,
        labels: Vec<u32>,
        num_classes: Option<usize>,
    ) -> Result<Self, FeatureSetError> {
        let rows = labels.len();
        let found = features.len() as u64 * 4;
        let short = || FeatureSetError::Short { member: "features", expected: (rows * columns) as u64 * 4, found };
        let matrix = Matrix::new(Values::Owned(features), rows, columns).ok_or_else(short)?;
        Self::from_values(matrix, Values::Owned(labels), num_classes)
    }

    /// Checks every number, and takes the digest in the same pass.
    pub(super) fn from_values(
        features: Matrix,
        labels: Values<u32>,
        num_classes: Option<usize>,
    ) -> Result<Self, FeatureSetError> {
        let limit = num_classes.unwrap_or(MAX_CLASSES);
        let mut hasher = Sha256::new();
        hasher.update((features.rows() as u64).to_le_bytes());
        hasher.update((features.columns() as u64).to_le_bytes());
        let mut num_zero_rows = 0;
        let rows_of_block = (BLOCK_VALUES / features.columns()).max(1);
        for (index, block) in features.as_slice().chunks(rows_of_block * features.columns()).enumerate() {
            if let Some(at) = block.iter().position(|value| !value.is_finite()) {
                let row = index * rows_of_block + at / features.columns();
                return Err(FeatureSetError::NotFinite { row, column: at % features.columns() });
            }
            let rows = block.chunks_exact(features.columns());
            num_zero_rows += rows.filter(|row| row.iter().all(|&value| value == 0.0)).count();
            hash_values(&mut hasher, block);
        }
        let mut bytes = Vec::new();
        let mut max_label = 0;
        for (index, block) in labels.as_slice().chunks(BLOCK_VALUES).enumerate() {
            let is_out_of_range = |label: u32| usize::try_from(label).map_or(true, |label| label >= limit);
            if let Some(at) = block.iter().position(|&label| is_out_of_range(label)) {
                let row = index * BLOCK_VALUES + at;
                return Err(FeatureSetError::LabelOutOfRange { row, label: block[at].into(), num_classes });
            }
            max_label = max_label.max(block.iter().copied().max().unwrap_or(0));
            bytes.clear();
            bytes.extend(block.iter().flat_map(|label| label.to_le_bytes()));
            hasher.update(&bytes);
        }
        Ok(Self {
            content: Arc::new(Content { features, labels }),
            num_classes: num_classes.unwrap_or(max_label as usize + 1),
            num_zero_rows,
            digest: Digest::finish(hasher),
        })
    }

    /// Whether the features lie in a file that is mapped: then they take no memory that cannot be had back.
    pub fn is_mapped(&self) -> bool {
        self.content.features.is_mapped()
    }

    /// `[N, D]`, in row-major order.
    pub fn features(&self) -> ArrayView2<'_, f32> {
        self.content.features.view()
    }

    /// `[N]`, each below [`num_classes`](Self::num_classes).
    pub fn labels(&self) -> &[u32] {
        self.content.labels.as_slice()
    }

    /// N, at least 1.
    pub fn num_rows(&self) -> usize {
        self.content.features.rows()
    }

    /// D, at least 1.
    pub fn feature_dim(&self) -> usize {
        self.content.features.columns()
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
        class_counts(self.labels(), self.num_classes)
    }

    /// SHA-256 of N and D as u64, the features as float32 and the labels as u32, all little-endian: the same content has
    /// the same digest whatever file it came in.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// How many classes a converted file says it has: memory is taken for each of them.
fn own_classes(found: &str) -> Result<usize, FeatureSetError> {
    let classes = found.parse().ok().filter(|classes| (1..=MAX_CLASSES).contains(classes));
    classes.ok_or_else(|| FeatureSetError::Classes { found: found.chars().take(64).collect(), max: MAX_CLASSES })
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

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Npz,
    /// One array of NumPy.
    Npy,
    /// A safetensors file begins with the length of its header, so that it may begin with anything; what is nothing else is
    /// taken for one. The magic of the others would be a header of 64 MiB, and none so long is taken.
    Safetensors,
}

impl Container {
    fn of(source: &mut (impl Read + Seek)) -> io::Result<Self> {
        let mut magic = Vec::new();
        source.by_ref().take(6).read_to_end(&mut magic)?;
        source.seek(SeekFrom::Start(0))?;
        Ok(match magic.as_slice() {
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Self::Npz,
            b"\x93NUMPY" => Self::Npy,
            _ => Self::Safetensors,
        })
    }
}

fn read_into(mut source: impl Read + Seek, expected: &Expected, sink: &mut impl Sink) -> Result<(), FeatureSetError> {
    match Container::of(&mut source)? {
        Container::Npz => npz::read(source, expected, sink),
        Container::Npy => {
            let reason = "it is one bare npy array, and labels are needed too".to_owned();
            Err(FeatureSetError::Container { format: "npz", reason })
        }
        Container::Safetensors => tensor_file::read(source, expected, sink),
    }
}

/// How often each label occurs, `[C]`; each must be below `num_classes`.
pub(crate) fn class_counts(labels: &[u32], num_classes: usize) -> Vec<u64> {
    let mut counts = vec![0; num_classes];
    for &label in labels {
        counts[label as usize] += 1;
    }
    counts
}
