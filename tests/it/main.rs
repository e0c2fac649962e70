//! The one integration binary.

#[cfg(feature = "server")]
mod preprocess;
#[cfg(feature = "server")]
mod preprocess_hostile;
