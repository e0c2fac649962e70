//! The nearest class mean.

use multiversion::multiversion;
use ndarray::{Array1, Array2};

use super::{FitError, NcmOptions, Progress, Samples, Watch, measure::each_in_parallel, samples::rows_by_class};
use crate::heads::{NORM_EPSILON, Parameters, Transform};

/// Rows whose sum is one piece of work; fixed, so that the sums do not depend on the number of threads.
const ROWS_PER_PIECE: usize = 256;
/// Pieces between two looks at whether anybody still wants the result.
const PIECES_AT_ONCE: usize = 512;

/// `cⱼ = mean of g(x) over the rows of class j`, not normalised again, with `g` one of `x`, `x/‖x‖`, `(x − μ)/‖x − μ‖` and μ
/// the mean of all rows. A class without a row gets zeros, and is masked by its count.
///
/// # Reference
/// Kang et al., ICLR 2020, section 4.2; the reference code's `feat_type` and its instance mean.
pub(super) fn fit(
    options: &NcmOptions,
    samples: &Samples<'_>,
    n_threads: usize,
    watch: &mut Watch<'_>,
) -> Result<Parameters, FitError> {
    let (counts, dim) = (samples.class_counts(), samples.feature_dim());
    let n_passes = if options.transform == Transform::Cl2n { 2.0 } else { 1.0 };
    let mut passes_done = 0.0;
    let mut of_classes = |map: &Map<'_>, take: &mut dyn FnMut(usize, &[f64])| {
        let before = passes_done;
        passes_done += 1.0;
        class_sums(samples, map, n_threads, take, |share| {
            let done = (before + share) / n_passes;
            let samples_seen = (done * n_passes * samples.len() as f64) as usize;
            watch.tell(Progress { done, epoch: 0, epochs: 0, loss: None, samples_seen })
        })
    };
    let origin = vec![0.0; dim];
    let mean = match options.transform {
        Transform::Cl2n => {
            let mut total = Array1::<f64>::zeros(dim);
            of_classes(&Map { center: None }, &mut |_, sum| {
                total.iter_mut().zip(sum).for_each(|(total, sum)| *total += sum);
            })?;
            Some((total / samples.len() as f64).mapv(|value| value as f32))
        }
        Transform::None | Transform::L2n => None,
    };
    let center = match options.transform {
        Transform::None => None,
        Transform::L2n => Some(origin.as_slice()),
        Transform::Cl2n => mean.as_ref().and_then(|mean| mean.as_slice()),
    };
    let mut centroids = Array2::zeros((samples.num_classes(), dim));
    of_classes(&Map { center }, &mut |class, sum| {
        let n = counts[class].max(1) as f64;
        centroids.row_mut(class).iter_mut().zip(sum).for_each(|(mean, sum)| *mean = (sum / n) as f32);
    })?;
    Ok(Parameters::Ncm { centroids, mean, transform: options.transform, metric: options.metric })
}

/// `g(x)`: `x`, or `(x − center) / max(‖x − center‖, 1e-12)`, so that a row of zeros stays one.
struct Map<'a> {
    /// `[D]`.
    center: Option<&'a [f32]>,
}

/// Hands over the sum of `g(x)` over the rows of each class that has any, `[D]` in f64, one class after the other.
///
/// The rows are visited class by class: the sum of one class stays in the nearest cache, where that of all would be read and
/// written for every row.
fn class_sums(
    samples: &Samples<'_>,
    map: &Map<'_>,
    n_threads: usize,
    take: &mut dyn FnMut(usize, &[f64]),
    mut tell: impl FnMut(f64) -> Result<(), FitError>,
) -> Result<(), FitError> {
    let dim = samples.feature_dim();
    let by_class = rows_by_class(samples.labels(), samples.num_classes());
    let of_class = |(class, rows)| <[u32]>::chunks(rows, ROWS_PER_PIECE).map(move |rows| (class, rows));
    let pieces: Vec<(usize, &[u32])> = by_class.iter().map(Vec::as_slice).enumerate().flat_map(of_class).collect();
    let table = samples.table();
    let values = table.as_slice().unwrap_or_default();
    let row = |sample: u32| {
        let row = samples.row(sample) as usize;
        &values[row * dim..(row + 1) * dim]
    };
    let mut parts = vec![Vec::<f64>::new(); PIECES_AT_ONCE.min(pieces.len())];
    let mut sum = Vec::new();
    let mut n_done = 0;
    for (turn, some) in pieces.chunks(PIECES_AT_ONCE).enumerate() {
        each_in_parallel(n_threads, some.iter().zip(&mut parts), |((_, rows), part)| {
            part.clear();
            part.resize(dim, 0.0);
            // Four at once: the rows of a class lie all over the file, and one alone would wait for the memory each time.
            // While four are added the next four are on their way.
            let (fours, rest) = rows.as_chunks::<4>();
            for (index, four) in fours.iter().enumerate() {
                let next = fours.get(index + 1).unwrap_or(four);
                add_mapped(four.map(row), next.map(row), map, part);
            }
            rest.iter().for_each(|&one| add_mapped([row(one)], [row(one)], map, part));
        });
        for (index, ((class, rows), part)) in (turn * PIECES_AT_ONCE..).zip(some.iter().zip(&mut parts)) {
            let is_of_class = |&(other, _): &(usize, &[u32])| other == *class;
            if index.checked_sub(1).and_then(|before| pieces.get(before)).is_some_and(is_of_class) {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += *part);
            } else {
                std::mem::swap(&mut sum, part);
            }
            if !pieces.get(index + 1).is_some_and(is_of_class) {
                take(*class, &sum);
            }
            n_done += rows.len();
        }
        tell(n_done as f64 / samples.len() as f64)?;
    }
    Ok(())
}

/// Adds `g(x)` of some rows to a sum, and has the next ones fetched meanwhile.
fn add_mapped<const N: usize>(rows: [&[f32]; N], next: [&[f32]; N], map: &Map<'_>, sum: &mut [f64]) {
    let Some(center) = map.center else { return add(rows, next, sum) };
    let squared = squared_distances(rows, center);
    // Beyond these the squares, or the scales, leave the range of f32; below the first a row counts as this long.
    let safe = f64::from(NORM_EPSILON).powi(2)..1e30;
    if squared.iter().all(|squared| safe.contains(squared)) {
        return add_scaled(rows, next, center, squared.map(|squared| squared.sqrt().recip() as f32), sum);
    }
    for row in rows {
        let differences = || row.iter().zip(center).map(|(&x, &center)| f64::from(x) - f64::from(center));
        let squared: f64 = differences().map(|difference| difference * difference).sum();
        let norm = squared.sqrt().max(f64::from(NORM_EPSILON));
        sum.iter_mut().zip(differences()).for_each(|(sum, difference)| *sum += difference / norm);
    }
}

/// Adds `Σₙ xₙ`.
#[multiversion(targets("x86_64+avx2"))]
fn add<const N: usize>(rows: [&[f32]; N], next: [&[f32]; N], sum: &mut [f64]) {
    let dim = sum.len();
    let (sums, rest_of_sum) = sum.as_chunks_mut::<LINE>();
    for (line, sums) in sums.iter_mut().enumerate() {
        prefetch(next, line);
        let mut added = [0.0; LINE];
        for row in &rows {
            for (added, &x) in added.iter_mut().zip(&row[line * LINE..][..LINE]) {
                *added += f64::from(x);
            }
        }
        for (sum, added) in sums.iter_mut().zip(added) {
            *sum += added;
        }
    }
    for row in &rows {
        for (sum, &x) in rest_of_sum.iter_mut().zip(&row[dim / LINE * LINE..]) {
            *sum += f64::from(x);
        }
    }
}

/// Adds `Σₙ sₙ (xₙ − μ)` of a few vectors that these scales bring to length 1: float32 has room for them, and twice as many
/// of its numbers go into a register. The difference comes first: of a row next to μ nothing else would be left but rounding.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn add_scaled<const N: usize>(rows: [&[f32]; N], next: [&[f32]; N], center: &[f32], scales: [f32; N], sum: &mut [f64]) {
    let dim = sum.len();
    let (sums, rest_of_sum) = sum.as_chunks_mut::<LINE>();
    let (centers, rest_of_center) = center.as_chunks::<LINE>();
    for (line, (sums, center)) in sums.iter_mut().zip(centers).enumerate() {
        prefetch(next, line);
        let mut added = [0.0f32; LINE];
        for (row, scale) in rows.iter().zip(scales) {
            for ((added, &x), center) in added.iter_mut().zip(&row[line * LINE..][..LINE]).zip(center) {
                *added += scale * (x - center);
            }
        }
        for (sum, added) in sums.iter_mut().zip(added) {
            *sum += f64::from(added);
        }
    }
    for (row, scale) in rows.iter().zip(scales) {
        let rest = row[dim / LINE * LINE..].iter().zip(rest_of_center);
        for (sum, (&x, center)) in rest_of_sum.iter_mut().zip(rest) {
            *sum += f64::from(scale * (x - center));
        }
    }
}

/// Numbers in a line of the cache.
const LINE: usize = 16;

/// Asks for this line of each row.
#[inline(always)]
fn prefetch<const N: usize>(rows: [&[f32]; N], line: usize) {
    #[cfg(target_arch = "x86_64")]
    for row in rows {
        // An address, and no more than that: it need not be in the row.
        let place = row.as_ptr().wrapping_add(line * LINE);
        // SAFETY: a prefetch reads nothing that the program can see, and no address is wrong for it.
        #[allow(unsafe_code)]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(place.cast());
        }
    }
}

/// `‖xₙ − μ‖²`, to 1e-7 of itself if no square leaves the range of f32.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn squared_distances<const N: usize>(rows: [&[f32]; N], center: &[f32]) -> [f64; N] {
    // Sums side by side: one alone would wait for each addition to end. None of them takes more than eight squares in f32.
    const LANES: usize = 16;
    const AT_ONCE: usize = 8;
    let (centers, rest_of_center) = center.as_chunks::<LANES>();
    let mut squared = [0.0; N];
    // A loop, not `map`: what that calls is compiled for any processor.
    for (squared, row) in squared.iter_mut().zip(rows) {
        let (xs, rest) = row[..center.len()].as_chunks::<LANES>();
        let mut sums = [0.0f64; LANES];
        for (xs, centers) in xs.chunks(AT_ONCE).zip(centers.chunks(AT_ONCE)) {
            let mut lanes = [0.0f32; LANES];
            for (x, center) in xs.iter().zip(centers) {
                for lane in 0..LANES {
                    let difference = x[lane] - center[lane];
                    lanes[lane] += difference * difference;
                }
            }
            for lane in 0..LANES {
                sums[lane] += f64::from(lanes[lane]);
            }
        }
        let rest = rest.iter().zip(rest_of_center).map(|(x, center)| f64::from(x - center).powi(2));
        *squared = sums.into_iter().chain(rest).sum();
    }
    squared
}
