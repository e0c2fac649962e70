//! What is known of the training data: how many samples each class had, and which shot that makes it.

mod counts;
pub mod npy;

pub use counts::{CountsError, Shot, parse_train_counts};
