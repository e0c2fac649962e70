//! The passes in plain Rust: what runs where there are no vector instructions for them, and what those are tested against.

use super::filter::{PRECISION_BITS, Windows};
use super::{Rows, View};

/// One half before the point is dropped: rounding.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resamples every row of `source` along x into the rows of `out`.
pub(super) fn horizontal(source: View<'_>, windows: &Windows, out: &mut Rows) {
    for y in 0..source.height() {
        horizontal_row(source.row(y), windows, 0..windows.len(), out.row_mut(y));
    }
}

/// Output samples `kept` of one row.
pub(super) fn horizontal_row(source: &[u8], windows: &Windows, kept: std::ops::Range<usize>, out: &mut [u8]) {
    for x in kept {
        let (start, weights) = windows.get(x);
        let (mut red, mut green, mut blue) = (HALF, HALF, HALF);
        for (pixel, &weight) in source[start * 3..].chunks_exact(3).zip(weights) {
            red += i32::from(pixel[0]) * weight;
            green += i32::from(pixel[1]) * weight;
            blue += i32::from(pixel[2]) * weight;
        }
        out[x * 3] = to_u8(red);
        out[x * 3 + 1] = to_u8(green);
        out[x * 3 + 2] = to_u8(blue);
    }
}

/// Row `y` of `source` resampled along y.
pub(super) fn vertical(source: View<'_>, windows: &Windows, y: usize, out: &mut [u8]) {
    vertical_columns(source, windows, y, 0, out);
}

/// Like [`vertical`], for the bytes of a row from `first` on.
pub(super) fn vertical_columns(source: View<'_>, windows: &Windows, y: usize, first: usize, out: &mut [u8]) {
    let (start, weights) = windows.get(y);
    // Blocks keep the sums in registers while the rows go by.
    const BLOCK: usize = 32;
    for (block, out) in out[first..].chunks_mut(BLOCK).enumerate() {
        let offset = first + block * BLOCK;
        let mut sums = [HALF; BLOCK];
        for (tap, &weight) in weights.iter().enumerate() {
            let row = &source.row(start + tap)[offset..offset + out.len()];
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = to_u8(sum);
        }
    }
}
