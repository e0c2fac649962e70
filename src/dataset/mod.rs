//! Training counts with the shots that follow from them, and feature sets with the files that hold them.

mod counts;
mod elements;
mod feature_set;
mod feature_set_error;
pub mod npy;
mod npy_header;
mod npz;
mod npz_writer;
mod tensor_file;

pub use counts::{CountsError, Shot, parse_train_counts};
pub use feature_set::{FeatureSet, MAX_CLASSES};
pub use feature_set_error::FeatureSetError;
pub use npz_writer::{NpzWriter, write_npz};
