//! The one integration binary.

#[cfg(feature = "server")]
mod preprocess;
