//! The passes with the vector instructions that the processor has; the same sums as the plain ones, so the same bytes.

#![allow(unsafe_code)] // Functions that need instructions. Nothing else here needs it.

mod avx2;
mod vnni;

use super::filter::{PRECISION_BITS, Windows};
use super::{Rows, View, scalar};

const ROUND: i32 = 1 << (PRECISION_BITS - 1);

/// Rows that share one load of the weights.
const N_ROWS: usize = 4;

/// By what a pass is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Instructions {
    Vnni,
    Avx2,
}

impl Instructions {
    /// Those that the processor has, the fastest first.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Self::Vnni, Self::Avx2].into_iter().filter(|instructions| match instructions {
            Self::Vnni => is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni"),
            Self::Avx2 => is_x86_feature_detected!("avx2"),
        })
    }

    pub(super) fn horizontal(self, source: View<'_>, windows: &Windows, out: &mut Rows) {
        // SAFETY: there are no instructions that the processor has not.
        unsafe {
            match self {
                Self::Vnni => vnni::horizontal(source, windows, out),
                Self::Avx2 => avx2::horizontal(source, windows, out),
            }
        }
    }

    pub(super) fn vertical(self, source: View<'_>, windows: &Windows, y: usize, out: &mut [u8]) {
        // SAFETY: there are no instructions that the processor has not.
        unsafe {
            match self {
                Self::Vnni => vnni::vertical(source, windows, y, out),
                Self::Avx2 => avx2::vertical(source, windows, y, out),
            }
        }
    }
}

/// Resamples every row of `source` along x into the rows of `out`.
pub(super) fn horizontal(source: View<'_>, windows: &Windows, out: &mut Rows) {
    match Instructions::all().next() {
        Some(instructions) => instructions.horizontal(source, windows, out),
        None => scalar::horizontal(source, windows, out),
    }
}

/// Row `y` of `source` resampled along y.
pub(super) fn vertical(source: View<'_>, windows: &Windows, y: usize, out: &mut [u8]) {
    match Instructions::all().next() {
        Some(instructions) => instructions.vertical(source, windows, y, out),
        None => scalar::vertical(source, windows, y, out),
    }
}

/// The pass along x, four rows at a time: `push_groups` appends the weights of an output sample, four taps a group, and
/// `four_rows` makes one output pixel of each of four rows, as `0x00BBGGRR`. Of each row it may read 16 bytes at
/// `offset + 12 g` for every group `g`.
#[inline(always)]
fn by_four_rows<G>(
    source: View<'_>,
    windows: &Windows,
    out: &mut Rows,
    push_groups: impl Fn(&[i32], &mut Vec<G>),
    four_rows: impl Fn(&[&[u8]; N_ROWS], usize, &[G]) -> [u32; N_ROWS],
) {
    let last = source.height() - 1;
    let n_groups = (0..windows.len()).map(|x| windows.get(x).1.len().div_ceil(4)).sum();
    let mut groups = Vec::with_capacity(n_groups);
    let mut ends = Vec::with_capacity(windows.len() + 1);
    ends.push(0);
    for x in 0..windows.len() {
        push_groups(windows.get(x).1, &mut groups);
        ends.push(groups.len());
    }

    for top in (0..=last).step_by(N_ROWS) {
        // In the last round rows may repeat; they are then written twice, with the same bytes.
        let ys: [usize; N_ROWS] = std::array::from_fn(|i| (top + i).min(last));
        // The whole of the buffer behind the first pixel of each row, not only the row: loads may run past its end.
        let rows: [&[u8]; N_ROWS] = ys.map(|y| &source.pixels[y * source.stride..]);
        let places = ys.map(|y| y * out.stride);
        let shortest = rows[N_ROWS - 1].len();
        for x in 0..windows.len() {
            let offset = windows.get(x).0 * 3;
            let groups = &groups[ends[x]..ends[x + 1]];
            if offset + (groups.len() - 1) * 12 + 16 <= shortest {
                for (value, place) in four_rows(&rows, offset, groups).into_iter().zip(places) {
                    // Four bytes for three: the fourth is the next pixel's, written next, or padding.
                    out.bytes[place + x * 3..][..4].copy_from_slice(&value.to_le_bytes());
                }
            } else {
                for &y in &ys {
                    scalar::horizontal_row(source.row(y), windows, x..x + 1, out.row_mut(y));
                }
            }
        }
    }
}
