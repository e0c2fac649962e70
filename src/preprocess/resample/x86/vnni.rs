//! With AVX-512 and its VNNI: `vpdpbusd` multiplies four bytes with four signed ones and adds all four products to 32 bits.
//!
//! So each weight is split into three signed digits, `d₀ + d₁ · 2^8 + d₂ · 2^16`, and three sums are put together at the end.
//! All of it is arithmetic modulo 2^32, and the whole sum fits, so nothing is lost however many taps there are.

use std::arch::x86_64::*;

use super::super::filter::{PRECISION_BITS, Windows};
use super::super::{Rows, View};
use super::{N_ROWS, ROUND, by_four_rows};

/// Digits of a weight. Three hold up to 1.99 · 2^22, and the largest weight is 1.29 · 2^22, of Lanczos at an edge.
const N_DIGITS: usize = 3;

/// The digits of up to four weights, the least first; those of weights that are not there are 0.
fn digits(weights: &[i32]) -> [[i8; 4]; N_DIGITS] {
    let mut digits = [[0; 4]; N_DIGITS];
    for (tap, &weight) in weights.iter().enumerate() {
        let mut rest = weight;
        for digit in &mut digits {
            // The low byte, from -128 on; what is taken from it is in the next digit.
            digit[tap] = rest as i8;
            rest = (rest - i32::from(digit[tap])) >> 8;
        }
        debug_assert_eq!(rest, 0, "{weight} has more digits");
    }
    digits
}

/// Weights of four taps by their digits, once for each of red, green, blue, and zeros.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Taps([[[i8; 4]; 4]; N_DIGITS]);

/// Appends the weights of one output sample, four taps a group.
fn push_groups(weights: &[i32], groups: &mut Vec<Taps>) {
    groups.extend(weights.chunks(4).map(|four| Taps(digits(four).map(|digit| [digit, digit, digit, [0; 4]]))));
}

/// The weights of one output row, four taps a group: four digits in one number.
fn packed(weights: &[i32]) -> Vec<[i32; N_DIGITS]> {
    weights.chunks(4).map(|four| digits(four).map(|digit| i32::from_le_bytes(digit.map(|tap| tap as u8)))).collect()
}

#[target_feature(enable = "avx512bw,avx512vnni")]
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
#[target_feature(enable = "avx512bw,avx512vnni")]
#[inline]
unsafe fn four_rows(rows: &[&[u8]; N_ROWS], offset: usize, groups: &[Taps]) -> [u32; N_ROWS] {
    // Of the bytes R0 G0 B0 R1 G1 B1 R2 ...: the four taps of each channel.
    let by_channel = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    let mut sums = [_mm512_set1_epi32(ROUND), _mm512_setzero_si512(), _mm512_setzero_si512()];
    for (group, taps) in groups.iter().enumerate() {
        // SAFETY: the caller's promise.
        let load = |row: &[u8]| unsafe { _mm_loadu_si128(row.as_ptr().add(offset + group * 12).cast()) };
        let two = |low, high| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(low)), load(high));
        let bytes = _mm512_castsi256_si512(two(rows[0], rows[1]));
        let bytes = _mm512_inserti64x4::<1>(bytes, two(rows[2], rows[3]));
        let values = _mm512_shuffle_epi8(bytes, by_channel);
        for (sum, digit) in sums.iter_mut().zip(&taps.0) {
            // SAFETY: a digit is 16 bytes, and all of them are aligned to as many.
            let weights = _mm512_broadcast_i32x4(unsafe { _mm_load_si128(digit.as_ptr().cast()) });
            *sum = _mm512_dpbusd_epi32(*sum, values, weights);
        }
    }
    let whole = _mm512_max_epi32(put_together(sums), _mm512_setzero_si512());
    // Saturates, which clamps to 255; the fourth of each pixel is 0.
    let pixels = _mm512_cvtusepi32_epi8(whole);
    let mut values = [0; N_ROWS];
    // SAFETY: four values are 16 bytes.
    unsafe { _mm_storeu_si128(values.as_mut_ptr().cast(), pixels) };
    values
}

#[target_feature(enable = "avx512bw,avx512vnni")]
pub(super) fn vertical(source: View<'_>, windows: &Windows, y: usize, out: &mut [u8]) {
    const BLOCK: usize = 64;
    let (start, weights) = windows.get(y);
    let first = &source.pixels[start * source.stride..];
    assert!((weights.len() - 1) * source.stride + out.len() <= first.len(), "the rows lie in the source");
    let groups = packed(weights);
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let part = u64::MAX >> (BLOCK - out.len());
        // SAFETY: these bytes of each of `weights.len()` rows lie inside `first`, as just checked, and those inside `out`.
        unsafe {
            let first = first.as_ptr().add(block * BLOCK);
            let bytes = column_block(first, source.stride, weights.len(), &groups, part);
            _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), part, bytes);
        }
    }
}

/// 64 bytes of one output row, or those that are in `part`.
///
/// # Safety
/// From `first`, every `stride` bytes, these bytes must be readable, `n_taps` times.
#[target_feature(enable = "avx512bw,avx512vnni")]
#[inline]
unsafe fn column_block(
    first: *const u8,
    stride: usize,
    n_taps: usize,
    groups: &[[i32; N_DIGITS]],
    part: __mmask64,
) -> __m512i {
    let mut sums = [[_mm512_set1_epi32(ROUND); 4], [_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]];
    for (group, digits) in groups.iter().enumerate() {
        // Taps that are not there have the weight 0, on the last row once more.
        let row = |tap: usize| (group * 4 + tap).min(n_taps - 1);
        // SAFETY: the caller's promise.
        let load = |tap: usize| unsafe { _mm512_maskz_loadu_epi8(part, first.add(row(tap) * stride).cast()) };
        let (a, b, c, d) = (load(0), load(1), load(2), load(3));
        let (left, right) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let (next_left, next_right) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
        // The four taps of each column side by side.
        let values = [
            _mm512_unpacklo_epi16(left, next_left),
            _mm512_unpackhi_epi16(left, next_left),
            _mm512_unpacklo_epi16(right, next_right),
            _mm512_unpackhi_epi16(right, next_right),
        ];
        for (sums, &digit) in sums.iter_mut().zip(digits) {
            let weights = _mm512_set1_epi32(digit);
            for (sum, values) in sums.iter_mut().zip(values) {
                *sum = _mm512_dpbusd_epi32(*sum, values, weights);
            }
        }
    }
    let [low, middle, high] = sums;
    let sum = |i: usize| put_together([low[i], middle[i], high[i]]);
    // Packing undoes the unpacking: both work within the 128-bit quarters. It saturates, which clamps to 0..255.
    _mm512_packus_epi16(_mm512_packs_epi32(sum(0), sum(1)), _mm512_packs_epi32(sum(2), sum(3)))
}

/// The sum of the digits' sums, without what is behind the point.
#[target_feature(enable = "avx512bw")]
#[inline]
fn put_together([low, middle, high]: [__m512i; N_DIGITS]) -> __m512i {
    let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(middle), _mm512_slli_epi32::<16>(high));
    _mm512_srai_epi32::<PRECISION_BITS>(_mm512_add_epi32(low, sum))
}
