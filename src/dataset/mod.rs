//! Training counts with the shots that follow from them, and feature sets with the files that hold them.

mod converted;
mod counts;
mod elements;
mod feature_set;
mod feature_set_error;
pub mod npy;
mod npy_header;
mod npz;
mod npz_writer;
mod sink;
mod storage;
mod tensor_file;

pub use converted::FORMAT as FEATURES_FORMAT;
pub use counts::{CountsError, Shot, parse_train_counts};
pub(crate) use feature_set::class_counts;
pub use feature_set::{Expected, FeatureSet, MAX_CLASSES};
pub use feature_set_error::FeatureSetError;
pub use npz_writer::{NpzWriter, write_npz};
