//! The way of an image to its tensor.
fn main() {}
