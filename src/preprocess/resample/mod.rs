//! Pillow's resampling, value for value.
//!
//! Two passes over 8-bit values, along x and along y, each a weighted sum with coefficients of 22 bits behind the point,
//! rounded and clamped to 8 bits between the passes as well. A side that keeps its length is not touched. Only
//! the pixels that the crop keeps are computed, and only the rows that they need are read.
//!
//! # Why not a resampling crate?
//!
//! Because a model sees in production what it saw in training, or its accuracy drops. `fast_image_resize` rounds its
//! coefficients to 16 bits and is off by one in some pixels; the passes here are off by none. They take 0.9 to 1.5 times its
//! time, by processor and filter, which beside decoding is a few percent (docs/BENCHMARKS.md).
//!
//! # Reference
//! Pillow, `src/libImaging/Resample.c` (the algorithm; this is not a copy of its code), version 13.

mod filter;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(not(target_arch = "x86_64"))]
use scalar as passes;
#[cfg(target_arch = "x86_64")]
use x86 as passes;

use std::fmt;

use super::config::Interpolation;
use filter::{Filter, Windows};

/// A decoded image: rows from the top, three bytes a pixel, red first.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    pixels: Vec<u8>,
    height: usize,
    width: usize,
}

impl RgbImage {
    /// Takes `height * width * 3` bytes; `None` if there are not exactly so many, or no pixel.
    pub fn new(pixels: Vec<u8>, height: usize, width: usize) -> Option<Self> {
        let n_bytes = height.checked_mul(width)?.checked_mul(3)?;
        (n_bytes > 0 && pixels.len() == n_bytes).then_some(Self { pixels, height, width })
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The bytes, `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    pub(super) fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// All of it, to read from.
    pub fn view(&self) -> View<'_> {
        View { pixels: &self.pixels, stride: self.width * 3, height: self.height, width: self.width }
    }
}

impl fmt::Debug for RgbImage {
    /// The size alone; nobody reads a million bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RgbImage").field("height", &self.height).field("width", &self.width).finish_non_exhaustive()
    }
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// Rows above it.
    pub top: usize,
    /// Columns left of it.
    pub left: usize,
    /// Its rows.
    pub height: usize,
    /// Its columns.
    pub width: usize,
}

/// A rectangle of an image, borrowed.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// From the first pixel of the first row to the end of the image: may go on behind the view.
    pixels: &'a [u8],
    stride: usize,
    height: usize,
    width: usize,
}

impl<'a> View<'a> {
    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The part of it inside `rect`; `None` if that is not wholly inside.
    pub fn crop(&self, rect: Rect) -> Option<View<'a>> {
        let inside = rect.top.checked_add(rect.height)? <= self.height
            && rect.left.checked_add(rect.width)? <= self.width
            && rect.height > 0
            && rect.width > 0;
        inside.then(|| View {
            pixels: &self.pixels[rect.top * self.stride + rect.left * 3..],
            stride: self.stride,
            height: rect.height,
            width: rect.width,
        })
    }

    fn row(&self, y: usize) -> &'a [u8] {
        &self.pixels[y * self.stride..][..self.width * 3]
    }
}

/// Rows of bytes that a pass writes, padded so that a vector may be stored at any pixel.
struct Rows {
    bytes: Vec<u8>,
    stride: usize,
    height: usize,
    width: usize,
}

impl Rows {
    /// Bytes that may be written behind the last one of a row.
    const PADDING: usize = 32;

    fn new(height: usize, width: usize) -> Self {
        let stride = (width * 3 + Self::PADDING).next_multiple_of(Self::PADDING);
        Self { bytes: vec![0; stride * height], stride, height, width }
    }

    /// A row with its padding.
    fn row_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.bytes[y * self.stride..][..self.stride]
    }

    fn view(&self) -> View<'_> {
        View { pixels: &self.bytes, stride: self.stride, height: self.height, width: self.width }
    }
}

/// What to make of an image: resample it to `height` x `width`, and keep `window` of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Rows after resampling.
    pub height: usize,
    /// Columns after resampling.
    pub width: usize,
    /// What is kept; must lie inside.
    pub window: Rect,
}

impl Target {
    /// A target of which everything is kept.
    pub fn whole(height: usize, width: usize) -> Self {
        Self { height, width, window: Rect { top: 0, left: 0, height, width } }
    }
}

/// Resamples `source` and keeps the window: what `image.resize(...).crop(...)` gives in Pillow.
///
/// # Panics
/// If the window is empty or not inside the target.
///
/// ```
/// use equipoise::preprocess::{Interpolation, RgbImage, Target, resample};
///
/// let image = RgbImage::new(vec![7; 4 * 6 * 3], 4, 6).unwrap();
/// let half = resample(image.view(), Interpolation::Bicubic, &Target::whole(2, 3));
/// assert_eq!(half.pixels(), [7; 2 * 3 * 3]);
/// ```
pub fn resample(source: View<'_>, interpolation: Interpolation, target: &Target) -> RgbImage {
    let (height, width) = (target.window.height, target.window.width);
    let mut pixels = Vec::with_capacity(height * width * 3);
    resample_rows(source, interpolation, target, |row| pixels.extend_from_slice(row));
    RgbImage { pixels, height, width }
}

/// Like [`resample`], but gives the rows away one by one, each while it is still in the cache.
pub(super) fn resample_rows(
    source: View<'_>,
    interpolation: Interpolation,
    target: &Target,
    mut each_row: impl FnMut(&[u8]),
) {
    let window = target.window;
    assert!(window.height > 0 && window.top + window.height <= target.height, "the window's rows lie in the target");
    assert!(window.width > 0 && window.left + window.width <= target.width, "the window's columns lie in the target");
    let (kept_rows, kept_columns) = (window.top..window.top + window.height, window.left..window.left + window.width);
    let same_height = source.height == target.height;
    let same_width = source.width == target.width;
    let Some(filter) = Filter::of(interpolation).filter(|_| !(same_height && same_width)) else {
        return nearest_rows(source, target, each_row);
    };

    let mut columns = Windows::new(filter, source.width, target.width, kept_columns);
    let mut rows = Windows::new(filter, source.height, target.height, kept_rows);
    if same_height {
        let part = Rect { top: window.top, left: 0, height: window.height, width: source.width };
        return horizontal_rows(inside(source, part), &columns, each_row);
    }
    if !same_width && is_vertical_first(source, target) {
        let touched = columns.touched();
        let part = Rect { top: 0, left: touched.start, height: source.height, width: touched.len() };
        let mut flat = Rows::new(window.height, touched.len());
        for y in 0..window.height {
            passes::vertical(inside(source, part), &rows, y, &mut flat.row_mut(y)[..touched.len() * 3]);
        }
        columns.count_from(touched.start);
        return horizontal_rows(flat.view(), &columns, each_row);
    }
    let touched = rows.touched();
    rows.count_from(touched.start);
    let mut narrow;
    let narrow = if same_width {
        let part = Rect { top: touched.start, left: window.left, height: touched.len(), width: window.width };
        inside(source, part)
    } else {
        let part = Rect { top: touched.start, left: 0, height: touched.len(), width: source.width };
        narrow = Rows::new(touched.len(), window.width);
        passes::horizontal(inside(source, part), &columns, &mut narrow);
        narrow.view()
    };
    let mut row = vec![0; window.width * 3];
    for y in 0..window.height {
        passes::vertical(narrow, &rows, y, &mut row);
        each_row(&row);
    }
}

/// Whether the rows are combined before the columns.
///
/// Rounding to 8 bits between the passes makes their order visible, by 1 in a few values. Pillow 13 takes the columns
/// first unless the height shrinks by more than twice what the width does; Pillow 12 and older always did.
fn is_vertical_first(source: View<'_>, target: &Target) -> bool {
    let shrinks_by = |from: usize, to: usize| from as i64 - to as i64;
    let height = shrinks_by(source.height, target.height);
    height > 0 && height > 2 * shrinks_by(source.width, target.width)
}

/// The pass along x as the last one.
fn horizontal_rows(source: View<'_>, columns: &Windows, mut each_row: impl FnMut(&[u8])) {
    let mut out = Rows::new(source.height, columns.len());
    passes::horizontal(source, columns, &mut out);
    for y in 0..source.height {
        each_row(out.view().row(y));
    }
}

/// Picks pixels; also what is left of any interpolation when no side changes.
fn nearest_rows(source: View<'_>, target: &Target, mut each_row: impl FnMut(&[u8])) {
    let window = target.window;
    let columns = filter::nearest_indices(source.width, target.width, window.left..window.left + window.width);
    let rows = filter::nearest_indices(source.height, target.height, window.top..window.top + window.height);
    let mut out = vec![0; window.width * 3];
    for y in rows {
        let row = source.row(y);
        for (out, &x) in out.chunks_exact_mut(3).zip(&columns) {
            out.copy_from_slice(&row[x * 3..x * 3 + 3]);
        }
        each_row(&out);
    }
}

/// A part that is known to lie inside.
fn inside<'a>(source: View<'a>, rect: Rect) -> View<'a> {
    source.crop(rect).unwrap_or(source)
}

#[cfg(test)]
mod tests;
