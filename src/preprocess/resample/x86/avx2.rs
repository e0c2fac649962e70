//! With AVX2, whose integer multiplication that it is good at (`vpmaddwd`) takes 16-bit factors.
//!
//! So each weight is split into `high * 2^15 + low`, both of which fit, and the two sums are put together at the end. All of it
//! is arithmetic modulo 2^32, and the whole sum fits, so nothing is lost however many taps there are.

use std::arch::x86_64::*;

use super::super::filter::{PRECISION_BITS, Windows};
use super::super::{Rows, View, scalar};
use super::{N_ROWS, ROUND, by_four_rows};

/// Bits of the low part of a weight. Positive, so one less than the 16 of a signed factor.
const LOW_BITS: u32 = 15;
const LOW_MASK: i32 = (1 << LOW_BITS) - 1;

/// Weights of four taps, in the lanes where the pixels of the four taps come to lie.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Taps {
    low: [i16; 16],
    high: [i16; 16],
}

/// Appends the weights of one output sample, four taps a group: taps 0 and 1 in the lower half, 2 and 3 in the upper, once for each of red, green, blue.
fn push_groups(weights: &[i32], groups: &mut Vec<Taps>) {
    for four in weights.chunks(4) {
        let mut taps = Taps { low: [0; 16], high: [0; 16] };
        for (tap, &weight) in four.iter().enumerate() {
            for channel in 0..3 {
                let lane = tap / 2 * 8 + channel * 2 + tap % 2;
                taps.low[lane] = (weight & LOW_MASK) as i16;
                taps.high[lane] = (weight >> LOW_BITS) as i16;
            }
        }
        groups.push(taps);
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn horizontal(source: View<'_>, windows: &Windows, out: &mut Rows) {
    by_four_rows(source, windows, out, push_groups, |rows, offset, groups| {
        // SAFETY: as much of each row may be read.
        unsafe { four_rows(rows, offset, groups) }
    });
}

/// One output pixel of each of four rows, as `0x00BBGGRR`.
///
/// # Safety
/// `offset + (groups.len() - 1) * 12 + 16` must not exceed the length of any row.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn four_rows(rows: &[&[u8]; N_ROWS], offset: usize, groups: &[Taps]) -> [u32; N_ROWS] {
    // Of the bytes R0 G0 B0 R1 G1 B1 R2 ...: pairs of taps for each channel, widened to 16 bits.
    let pairs = _mm256_setr_epi8(
        0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, //
        6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
    );
    // Once in each sum of two halves.
    let mut low = [_mm256_setr_epi32(ROUND, ROUND, ROUND, 0, 0, 0, 0, 0); N_ROWS];
    let mut high = [_mm256_setzero_si256(); N_ROWS];
    for (group, taps) in groups.iter().enumerate() {
        // SAFETY: `Taps` is 64 bytes, aligned to 32.
        let (low_weights, high_weights) =
            unsafe { (_mm256_load_si256(taps.low.as_ptr().cast()), _mm256_load_si256(taps.high.as_ptr().cast())) };
        for i in 0..N_ROWS {
            // SAFETY: the caller's promise.
            let bytes = unsafe { _mm_loadu_si128(rows[i].as_ptr().add(offset + group * 12).cast()) };
            let values = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), pairs);
            low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(values, low_weights));
            high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(values, high_weights));
        }
    }
    let sums: [__m256i; N_ROWS] =
        std::array::from_fn(|i| _mm256_add_epi32(low[i], _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[i])));
    // The halves of two rows, added: one row below, the next above.
    let of_two = |first: __m256i, second: __m256i| {
        let below = _mm256_permute2x128_si256::<0x20>(first, second);
        let above = _mm256_permute2x128_si256::<0x31>(first, second);
        _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(below, above))
    };
    // Both packs saturate, which clamps to 0..255.
    let words = _mm256_packs_epi32(of_two(sums[0], sums[1]), of_two(sums[2], sums[3]));
    let bytes = _mm256_packus_epi16(words, words);
    let of_half = |half: __m128i| (_mm_cvtsi128_si32(half) as u32, _mm_extract_epi32::<1>(half) as u32);
    let (even, odd) = (of_half(_mm256_castsi256_si128(bytes)), of_half(_mm256_extracti128_si256::<1>(bytes)));
    [even.0, odd.0, even.1, odd.1]
}

#[target_feature(enable = "avx2")]
pub(super) fn vertical(source: View<'_>, windows: &Windows, y: usize, out: &mut [u8]) {
    const BLOCK: usize = 32;
    let (start, weights) = windows.get(y);
    let first = &source.pixels[start * source.stride..];
    let n_vectors = out.len() / BLOCK;
    // The last row that is read must hold every block; it does, since a row has as many bytes as `out`.
    assert!((weights.len() - 1) * source.stride + n_vectors * BLOCK <= first.len(), "the rows lie in the source");
    for block in 0..n_vectors {
        // SAFETY: bytes `block * 32..` of 32 of each of `weights.len()` rows lie inside `first`, as just checked.
        let bytes = unsafe { column_block(first.as_ptr().add(block * BLOCK), source.stride, weights) };
        // SAFETY: the block lies inside `out`.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(block * BLOCK).cast(), bytes) };
    }
    scalar::vertical_columns(source, windows, y, n_vectors * BLOCK, out);
}

/// 32 bytes of one output row.
///
/// # Safety
/// From `first`, every `stride` bytes, 32 bytes must be readable, `weights.len()` times.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn column_block(first: *const u8, stride: usize, weights: &[i32]) -> __m256i {
    let zero = _mm256_setzero_si256();
    let mut low = [_mm256_set1_epi32(ROUND); 4];
    let mut high = [zero; 4];
    for (pair, two) in weights.chunks(2).enumerate() {
        // An odd last tap is paired with itself and the weight 0.
        let (weight, next_weight) = (two[0], two.get(1).copied().unwrap_or(0));
        // SAFETY: the caller's promise, for the rows `2 * pair` and `2 * pair + two.len() - 1`.
        let (row, next_row) = unsafe {
            let row = first.add(2 * pair * stride);
            let next_row = row.add((two.len() - 1) * stride);
            (_mm256_loadu_si256(row.cast()), _mm256_loadu_si256(next_row.cast()))
        };
        let low_weights = pair_of(weight & LOW_MASK, next_weight & LOW_MASK);
        let high_weights = pair_of(weight >> LOW_BITS, next_weight >> LOW_BITS);
        let (left, right) = (_mm256_unpacklo_epi8(row, next_row), _mm256_unpackhi_epi8(row, next_row));
        let values = [
            _mm256_unpacklo_epi8(left, zero),
            _mm256_unpackhi_epi8(left, zero),
            _mm256_unpacklo_epi8(right, zero),
            _mm256_unpackhi_epi8(right, zero),
        ];
        // `left` has value, next value, value, ... as bytes; widened they are the pairs that the multiplication wants.
        for i in 0..4 {
            low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(values[i], low_weights));
            high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(values[i], high_weights));
        }
    }
    let sums: [__m256i; 4] = std::array::from_fn(|i| {
        let sum = _mm256_add_epi32(low[i], _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[i]));
        _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(sum)
    });
    // Packing undoes the unpacking: both work within the 128-bit halves.
    _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]))
}

/// Two 16-bit weights, repeated over the vector.
#[target_feature(enable = "avx2")]
#[inline]
fn pair_of(weight: i32, next_weight: i32) -> __m256i {
    _mm256_set1_epi32((weight & 0xffff) | (next_weight << 16))
}
