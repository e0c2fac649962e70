//! The two matrix products of a step, tile by tile, with the vector instructions of x86-64.
//!
//! A tile is `Lanes::ROWS` rows of `2 · Lanes::N` columns whose sums stay in registers; each turn of its innermost loop loads
//! two vectors and as many single values as there are rows.

#![allow(unsafe_code)] // Intrinsics that load and store through pointers.

use std::arch::x86_64::*;

use super::Update;

/// A vector register of f32.
///
/// # Safety
/// What a method does is to be inlined into a function that has the instructions, on a processor that has them.
pub(super) unsafe trait Lanes: Copy {
    /// Values in one.
    const N: usize;
    /// Rows of a tile: as many as leave registers for what is loaded.
    const ROWS: usize;
    /// Features that one pass of the forward product takes: their weights of one tile's columns stay in the first cache.
    const DEPTH: usize;
    /// About as much of the features as may stay in the second cache while all columns go past it.
    const FEATURES_AT_ONCE_BYTES: usize;
    /// Whether the loops ask for what they need soon. With shorter vectors there are more instructions for as much work, and on an
    /// EPYC asking cost AVX2 more than waiting did.
    const ASKS_AHEAD: bool;
    /// `[value; N]`.
    unsafe fn splat(value: f32) -> Self;
    /// The `N` values from there on.
    unsafe fn load(from: *const f32) -> Self;
    /// Puts the `N` values there.
    unsafe fn store(self, to: *mut f32);
    /// `self + a · b`, rounded once.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

// SAFETY: AVX-512F.
unsafe impl Lanes for __m512 {
    const N: usize = 16;
    const ROWS: usize = 12;
    const DEPTH: usize = 192;
    const FEATURES_AT_ONCE_BYTES: usize = 384 << 10;
    const ASKS_AHEAD: bool = true;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }
}

// SAFETY: AVX and FMA.
unsafe impl Lanes for __m256 {
    const N: usize = 8;
    const ROWS: usize = 6;
    const DEPTH: usize = 192;
    const FEATURES_AT_ONCE_BYTES: usize = 256 << 10;
    const ASKS_AHEAD: bool = false;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }
}

/// Turns of the innermost loop from a load to its use: long enough for the second cache.
const TURNS_AHEAD: usize = 16;

/// Asks for the two vectors that a tile needs some turns after these.
///
/// # Safety
/// That of [`Lanes`]. Nothing is read, so the place may be beyond all memory.
#[inline(always)]
unsafe fn prefetch<L: Lanes>(columns: *const f32) {
    if !L::ASKS_AHEAD {
        return;
    }
    let ahead = columns.wrapping_add(TURNS_AHEAD * 2 * L::N);
    // SAFETY: the caller's.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(L::N).cast());
    }
}

/// `z += x w` of one tile: `z [ROWS, 2N]`, `w [panels · ROWS, 2N]`.
///
/// `x` starts at the tile's first row in its first panel; `stride` values further on is the next of `n_panels` panels, each
/// `[rows, ROWS]`.
///
/// # Safety
/// That of [`Lanes`].
#[inline(always)]
pub(super) unsafe fn forward_tile<L: Lanes, const ROWS: usize>(
    x: &[f32],
    stride: usize,
    n_panels: usize,
    w: &[f32],
    z: &mut [f32],
) {
    let columns = 2 * L::N;
    assert!(n_panels >= 1 && x.len() >= (n_panels - 1) * stride + ROWS * ROWS);
    assert!(w.len() >= n_panels * ROWS * columns && z.len() >= ROWS * columns);
    let (mut x, mut w, z) = (x.as_ptr(), w.as_ptr(), z.as_mut_ptr());
    // SAFETY: all that is read and written lies within the slices, by the assertions; the instructions are the caller's.
    unsafe {
        let mut sums = [[L::splat(0.0); 2]; ROWS];
        for (row, [first, second]) in sums.iter_mut().enumerate() {
            *first = L::load(z.add(row * columns));
            *second = L::load(z.add(row * columns + L::N));
        }
        for panel in 0..n_panels {
            for feature in 0..ROWS {
                prefetch::<L>(w);
                let (w0, w1) = (L::load(w), L::load(w.add(L::N)));
                for (row, [first, second]) in sums.iter_mut().enumerate() {
                    let value = L::splat(*x.add(row * ROWS + feature));
                    *first = first.add_product(value, w0);
                    *second = second.add_product(value, w1);
                }
                w = w.add(columns);
            }
            if panel + 1 < n_panels {
                x = x.add(stride);
            }
        }
        for (row, [first, second]) in sums.into_iter().enumerate() {
            first.store(z.add(row * columns));
            second.store(z.add(row * columns + L::N));
        }
    }
}

/// The gradient `xᵀ r` of one tile of weights, and the step along it, before the gradient leaves the registers.
///
/// `x [n, ROWS]` is a panel, `r [n, 2N]` the residuals of the tile's columns, `w` and `v` `[ROWS, 2N]` weights and velocities;
/// `n` is a multiple of `ROWS`.
///
/// # Safety
/// That of [`Lanes`].
#[inline(always)]
pub(super) unsafe fn update_tile<L: Lanes, const ROWS: usize>(
    x: &[f32],
    r: &[f32],
    n: usize,
    w: &mut [f32],
    v: &mut [f32],
    update: Update,
) {
    let columns = 2 * L::N;
    assert!(n.is_multiple_of(ROWS) && x.len() >= n * ROWS && r.len() >= n * columns);
    assert!(w.len() >= ROWS * columns && v.len() >= ROWS * columns);
    let (mut x, mut r, w, v) = (x.as_ptr(), r.as_ptr(), w.as_mut_ptr(), v.as_mut_ptr());
    // SAFETY: all that is read and written lies within the slices, by the assertions, and each pointer ends at most one past
    // its slice; the instructions are the caller's.
    unsafe {
        // What the step needs comes while the product is computed.
        for offset in (0..ROWS * columns).step_by(16) {
            _mm_prefetch::<_MM_HINT_T0>(w.add(offset).cast());
            _mm_prefetch::<_MM_HINT_T0>(v.add(offset).cast());
        }
        let mut sums = [[L::splat(0.0); 2]; ROWS];
        for _ in 0..n / ROWS {
            // Unrolled, so that the counting takes no share of what the core can begin in a cycle.
            for _ in 0..ROWS {
                prefetch::<L>(r);
                let (r0, r1) = (L::load(r), L::load(r.add(L::N)));
                for (row, [first, second]) in sums.iter_mut().enumerate() {
                    let value = L::splat(*x.add(row));
                    *first = first.add_product(value, r0);
                    *second = second.add_product(value, r1);
                }
                (x, r) = (x.add(ROWS), r.add(columns));
            }
        }
        let (against, momentum, decay) = (L::splat(-update.rate), L::splat(update.momentum), L::splat(update.decay));
        for (row, halves) in sums.into_iter().enumerate() {
            for (half, gradient) in halves.into_iter().enumerate() {
                let (w, v) = (w.add(row * columns + half * L::N), v.add(row * columns + half * L::N));
                let weight = L::load(w);
                let velocity = gradient.add_product(decay, weight).add_product(momentum, L::load(v));
                velocity.store(v);
                weight.add_product(against, velocity).store(w);
            }
        }
    }
}
