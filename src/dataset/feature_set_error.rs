//! What can be wrong with a feature set.

use std::io;

use super::MAX_CLASSES;

/// Why a feature set is refused. Rows, columns and bytes are counted from 0.
#[derive(Debug, thiserror::Error)]
pub enum FeatureSetError {
    /// The operating system would not give the file.
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Neither an npz nor a safetensors file, or a damaged one.
    #[error("not a readable {format} file: {reason}")]
    Container {
        /// `npz` or `safetensors`.
        format: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No features.
    #[error("neither `features` nor `feats` is there")]
    MissingFeatures,
    /// No labels.
    #[error("`labels` is missing")]
    MissingLabels,
    /// An array is there twice.
    #[error("`{member}` is there twice")]
    DuplicateMember {
        /// The array.
        member: &'static str,
    },
    /// Two members of an archive have one name.
    #[error("two members of the archive have the same name")]
    DuplicateNames,
    /// Both names of the features are taken.
    #[error("both `features` and `feats` are there: it must be one of them")]
    BothNames,
    /// A password would be needed.
    #[error("`{member}` is encrypted")]
    Encrypted {
        /// The array.
        member: &'static str,
    },
    /// Packed in another way than stored or deflated.
    #[error("`{member}` is compressed with {method}, and must be stored or deflated")]
    Compression {
        /// The array.
        member: &'static str,
        /// Its compression method.
        method: String,
    },
    /// The bytes of an array cannot be unpacked, or do not have their checksum.
    #[error("`{member}` is damaged: {reason}")]
    Damaged {
        /// The array.
        member: &'static str,
        /// What the reader says.
        reason: String,
    },
    /// Not a header of the NumPy format.
    #[error("`{member}` has no readable npy header: {problem} at byte {byte}")]
    NpyHeader {
        /// The array.
        member: &'static str,
        /// What is wrong.
        problem: &'static str,
        /// Where.
        byte: usize,
    },
    /// Elements that are not of the right sort.
    #[error("`{member}` has elements of type `{found}`, and must have {expected}")]
    ElementType {
        /// The array.
        member: &'static str,
        /// What its elements are.
        found: String,
        /// What they may be.
        expected: &'static str,
    },
    /// Another number of dimensions.
    #[error("`{member}` has shape {found:?}, and must have {expected}")]
    Dimensions {
        /// The array.
        member: &'static str,
        /// Its shape.
        found: Vec<u64>,
        /// What it must have.
        expected: &'static str,
    },
    /// No row, or no column.
    #[error("a feature set needs at least one row and one column, and this has shape [{rows}, {feature_dim}]")]
    Empty {
        /// N.
        rows: u64,
        /// D.
        feature_dim: u64,
    },
    /// More than the limit, by what the file itself declares. Nothing of it has been read.
    #[error("`{member}` declares {bytes} bytes, and the limit is {max_bytes}")]
    TooLarge {
        /// The array.
        member: &'static str,
        /// Its size, unpacked or held as float32, with what was read before it.
        bytes: u128,
        /// The limit.
        max_bytes: u64,
    },
    /// Less data than the shape asks for.
    #[error("`{member}` needs {expected} bytes of data for its shape, and has {found}")]
    Short {
        /// The array.
        member: &'static str,
        /// What the shape asks for.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// More data than the shape asks for.
    #[error("`{member}` has bytes after its data")]
    TrailingBytes {
        /// The array.
        member: &'static str,
    },
    /// Not one label for each row.
    #[error("there are {rows} rows of features and {labels} labels")]
    LengthMismatch {
        /// N of the features.
        rows: u64,
        /// N of the labels.
        labels: u64,
    },
    /// Not as many columns as were asked for.
    #[error("the features have {found} columns, and the model has {expected} features")]
    FeatureDim {
        /// D of the features.
        found: u64,
        /// What it must be.
        expected: usize,
    },
    /// NaN, an infinity, or a number beyond float32.
    #[error("the features of row {row} are not finite float32 numbers: see column {column}")]
    NotFinite {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
    },
    /// A label that is no class.
    #[error("the label of row {row} is {label}, and {allowed}", allowed = allowed(*num_classes))]
    LabelOutOfRange {
        /// The row.
        row: usize,
        /// Its label.
        label: i128,
        /// C; `None` if the labels are to make it.
        num_classes: Option<usize>,
    },
    /// A number of classes that cannot be.
    #[error("its metadata say that it has `{found}` classes, which must be from 1 to {max}")]
    Classes {
        /// What stands there.
        found: String,
        /// The most.
        max: usize,
    },
    /// The content is not what it was when its digest was taken.
    #[error("its content has the SHA-256 {found}, and its metadata say {expected}")]
    Digest {
        /// Of the content.
        found: String,
        /// What the metadata say.
        expected: String,
    },
    /// A file that can be read, and cannot be mapped.
    #[error("it cannot be mapped: {reason}")]
    NotMappable {
        /// Why.
        reason: &'static str,
    },
}

/// What a label may be.
fn allowed(num_classes: Option<usize>) -> String {
    match num_classes {
        Some(num_classes) => format!("there are {num_classes} classes"),
        None => format!("a label is from 0 to {}", MAX_CLASSES - 1),
    }
}
