//! Products of f32 matrices with the bf16 tiles of AMX, at the accuracy of f32.
//!
//! Everything is in blocks of 32 × 32. A value is the sum of three bf16, `x = x₁ + x₂ + x₃`, each of which holds 8 of its 24
//! bits, and a product is the sum of those six of the nine products that reach into its 24 bits:
//!
//! ```text
//! a b ≈ a₁b₁ + a₁b₂ + a₂b₁ + a₂b₂ + a₁b₃ + a₃b₁
//! ```
//!
//! Products of bf16 are exact in f32, and sums are rounded as those of f32. Parts smaller than the smallest normal f32 count as 0.
//!
//! The compiler has no AMX of its own on stable Rust, so that the instructions are written out here. What is left in a tile
//! is of no use to anyone after the piece of assembly that it came from.

#![allow(unsafe_code)] // Instructions that not every processor has.

use std::{
    arch::{asm, x86_64::*},
    marker::PhantomData,
};

/// Rows and columns of a block.
pub(super) const SIDE: usize = 32;
/// Rows of a tile, and its columns of four bytes.
const TILE: usize = SIDE / 2;
/// Bytes that a product of two factors asks for ahead of their use, of each of two things.
pub(super) const BYTES_AHEAD: usize = 512;
/// bf16 that add up to an f32.
const PLANES: usize = 3;

/// f32 `[row, column]`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [[f32; SIDE]; SIDE]);

impl Block {
    pub(super) const ZERO: Self = Self([[0.0; SIDE]; SIDE]);
}

/// Values `[row, k]` as the left factor of a product, or `[k, column]` as the right one: `[plane, half, row of a tile]`.
///
/// A row of a left tile is one row, a row of a right tile is two `k` of sixteen columns, side by side. These are `k` and
/// `k + 16`, in both factors: their order does not matter, and two vectors are put together in this one without permuting.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Factor([[[[u16; SIDE]; TILE]; 2]; PLANES]);

impl Factor {
    pub(super) const ZERO: Self = Self([[[[0; SIDE]; TILE]; 2]; PLANES]);
}

/// That the processor has the instructions, and that the system lets this process use them.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Amx(());

impl Amx {
    /// `None` if one of the two is not so.
    pub(in super::super) fn new() -> Option<Self> {
        (has_vectors() && has_tiles() && may_use_tiles()).then_some(Self(()))
    }

    /// Sets up the tiles of this thread, for as long as what is given back lives.
    pub(super) fn tiles(self) -> Tiles {
        /// As the instruction reads it: palette 1, and how many bytes a row of each tile has, and how many rows it has.
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..8].fill(TILE as u8);
        // SAFETY: the instruction is there, and reads the 64 bytes of this. All is as it demands: of eight tiles, each has
        // sixteen rows of 64 bytes, and what is reserved is 0.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly, preserves_flags))
        };
        Tiles(PhantomData)
    }
}

/// All but AMX that is used here.
fn has_vectors() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma")
}

fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    __get_cpuid_max(0).0 >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILE) == BF16 | TILE
}

/// Asks Linux for the tiles, which hold more than it keeps of a thread unless somebody does. Other systems are not asked.
fn may_use_tiles() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
        const TILE_DATA: libc::c_ulong = 18;
        // SAFETY: it touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The tiles of this thread, set up as [`multiply`](Self::multiply) wants them. There is one at a time in a thread.
#[derive(Debug)]
pub(super) struct Tiles(PhantomData<*const ()>);

impl Drop for Tiles {
    /// A thread without tiles in use is cheaper to switch from and to.
    fn drop(&mut self) {
        // SAFETY: the instruction is there.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

impl Tiles {
    /// `c [row, column] += Σ a[i] [row, k] · b[i] [k, column]`.
    ///
    /// Four tiles hold the sums. Of the others two hold a plane of `a`, and two one of `b`. The six products of planes are in
    /// an order in which one of the factors stays where it is from each to the next, and the small ones are about first.
    ///
    /// All the while it asks for what is needed `soon`, right after this and then later: from each of both places on
    /// [`BYTES_AHEAD`] with each `i`. So many requests at once would be in the way of the loads.
    pub(super) fn multiply(&self, a: &[Factor], b: &[Factor], c: &mut Block, soon: [*const Block; 2]) {
        let n = a.len();
        assert_eq!(b.len(), n);
        if n == 0 {
            return;
        }
        // SAFETY: the instructions are there, and this thread has its tiles. What is read are the `n` factors of each slice, at
        // least one; what is read and written is the block. What is asked for need not be memory.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + 2*{row}]",
                "tileloadd tmm1, [{c} + 2*{row} + 64]",
                "tileloadd tmm2, [{c} + 2*{row} + 2048]",
                "tileloadd tmm3, [{c} + 2*{row} + 2112]",
                "2:",
                // a₁ b₃
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm6, [{b} + {row} + 4096]",
                "tileloadd tmm5, [{a} + {row} + 1024]",
                "tileloadd tmm7, [{b} + {row} + 5120]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "prefetcht1 [{later} + 0]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm6, [{b} + {row} + 2048]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "prefetcht0 [{soon} + 0]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{later} + 64]",
                "tileloadd tmm7, [{b} + {row} + 3072]",
                // a₁ b₂
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "prefetcht0 [{soon} + 64]",
                "tileloadd tmm4, [{a} + {row} + 2048]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "prefetcht1 [{later} + 128]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm5, [{a} + {row} + 3072]",
                // a₂ b₂
                "tdpbf16ps tmm0, tmm4, tmm6",
                "prefetcht0 [{soon} + 128]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "prefetcht1 [{later} + 192]",
                "tileloadd tmm6, [{b} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht0 [{soon} + 192]",
                "tileloadd tmm7, [{b} + {row} + 1024]",
                // a₂ b₁
                "tdpbf16ps tmm0, tmm4, tmm6",
                "prefetcht1 [{later} + 256]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm4, [{a} + {row} + 4096]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "prefetcht0 [{soon} + 256]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht1 [{later} + 320]",
                "tileloadd tmm5, [{a} + {row} + 5120]",
                // a₃ b₁
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "prefetcht0 [{soon} + 320]",
                "tileloadd tmm4, [{a} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "prefetcht1 [{later} + 384]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm5, [{a} + {row} + 1024]",
                // a₁ b₁
                "tdpbf16ps tmm0, tmm4, tmm6",
                "prefetcht0 [{soon} + 384]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "prefetcht1 [{later} + 448]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "prefetcht0 [{soon} + 448]",
                "add {a}, {factor}",
                "add {b}, {factor}",
                "add {soon}, {ahead}",
                "add {later}, {ahead}",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c} + 2*{row}], tmm0",
                "tilestored [{c} + 2*{row} + 64], tmm1",
                "tilestored [{c} + 2*{row} + 2048], tmm2",
                "tilestored [{c} + 2*{row} + 2112], tmm3",
                a = inout(reg) a.as_ptr() => _,
                b = inout(reg) b.as_ptr() => _,
                factor = const size_of::<Factor>(),
                soon = inout(reg) soon[0] => _,
                later = inout(reg) soon[1] => _,
                ahead = const BYTES_AHEAD,
                c = in(reg) c,
                n = inout(reg) n => _,
                // Bytes from a row of a tile to the next, in a factor; in a block they are twice as many.
                row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// The planes of sixteen values, each as the high halves of f32.
///
/// The nearest bf16 leaves at most 16 bits, and the nearest bf16 of these at most 8, so that nothing is lost. What is not
/// finite, or rounds to what is not, leaves NaN behind, or both infinities, which add up to NaN: rounding may carry a NaN out
/// of its exponent, but the last plane is not rounded.
#[target_feature(enable = "avx512f")]
#[inline]
fn planes(values: __m512) -> [__m512i; PLANES] {
    let (first, rest) = nearest(values);
    let (second, rest) = nearest(rest);
    [first, second, _mm512_castps_si512(rest)]
}

/// The nearest bf16 of each value, as f32, and what that leaves.
#[target_feature(enable = "avx512f")]
#[inline]
fn nearest(values: __m512) -> (__m512i, __m512) {
    let up = _mm512_add_epi32(_mm512_castps_si512(values), _mm512_set1_epi32(0x8000));
    let rounded = _mm512_and_si512(up, _mm512_set1_epi32(!0xffff));
    (rounded, _mm512_sub_ps(values, _mm512_castsi512_ps(rounded)))
}

/// `k` and `k + 16`, side by side.
#[target_feature(enable = "avx512f")]
#[inline]
fn pair(low: __m512i, high: __m512i) -> __m512i {
    // What is left of values too small for it reaches into the lower half, which is the other's.
    let upper = _mm512_and_si512(high, _mm512_set1_epi32(!0xffff));
    _mm512_or_si512(_mm512_srli_epi32::<16>(low), upper)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(row: &[f32; SIDE]) -> [__m512; 2] {
    // SAFETY: the row has as many values.
    unsafe { [_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row.as_ptr().add(TILE))] }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(values: __m512i, row: &mut [u16; SIDE]) {
    // SAFETY: the row has as many bytes.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), values) }
}

/// `[row, k]` as a left factor.
#[target_feature(enable = "avx512f")]
pub(super) fn left_factor(block: &Block, factor: &mut Factor) {
    let [first, second, third] = &mut factor.0;
    let planes_of = first.as_flattened_mut().iter_mut().zip(second.as_flattened_mut()).zip(third.as_flattened_mut());
    for (row, ((first, second), third)) in block.0.iter().zip(planes_of) {
        let [low, high] = load(row).map(|half| planes(half));
        store(pair(low[0], high[0]), first);
        store(pair(low[1], high[1]), second);
        store(pair(low[2], high[2]), third);
    }
}

/// `[k, column]` as a right factor.
#[target_feature(enable = "avx512f")]
pub(super) fn right_factor(block: &Block, factor: &mut Factor) {
    let (low, high) = block.0.split_at(TILE);
    for (row, (low, high)) in low.iter().zip(high).enumerate() {
        let (low, high) = (load(low), load(high));
        for half in 0..2 {
            let (low, high) = (planes(low[half]), planes(high[half]));
            for plane in 0..PLANES {
                store(pair(low[plane], high[plane]), &mut factor.0[plane][half][row]);
            }
        }
    }
}

/// `[column, k]` as a right factor.
#[target_feature(enable = "avx512f")]
pub(super) fn transposed_right_factor(block: &Block, factor: &mut Factor) {
    for (half, columns) in block.0.as_chunks::<TILE>().0.iter().enumerate() {
        let mut pairs = [[_mm512_setzero_si512(); TILE]; PLANES];
        for (column, values) in columns.iter().enumerate() {
            let [low, high] = load(values).map(|half| planes(half));
            for plane in 0..PLANES {
                pairs[plane][column] = pair(low[plane], high[plane]);
            }
        }
        for (columns, plane) in pairs.iter().zip(&mut factor.0) {
            for (values, row) in transpose(columns).into_iter().zip(&mut plane[half]) {
                store(values, row);
            }
        }
    }
}

/// Of sixteen rows of sixteen pairs of values, the columns.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(rows: &[__m512i; TILE]) -> [__m512i; TILE] {
    let mut pairs = *rows;
    for i in (0..TILE).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // `fours[4 i + j]` has, in its 128-bit lane `l`, the column `4 l + j` of rows `4 i..4 i + 4`.
    let mut fours = pairs;
    for i in (0..TILE).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = fours;
    for j in 0..4 {
        let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
        let (ab_low, cd_low) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        let (ab_high, cd_high) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(ab_low, cd_low);
        columns[4 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_low, cd_low);
        columns[8 + j] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high);
    }
    columns
}
