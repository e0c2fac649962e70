//! The sizes of batches on a device: two, so that each can be run once before the first request comes.

/// To which size a batch of `n` is padded on a device: a single image stays one, more become `max`. A larger batch stays as it is.
pub(super) fn padded(n: usize, max: usize) -> usize {
    if n == 1 { 1 } else { n.max(max) }
}

/// Batch sizes to run once before a model is ready: 1 and `max`, which on a device are all that there are. TensorRT then has built
/// for all sizes between them.
#[must_use]
pub fn sizes_to_warm(max: usize) -> Vec<usize> {
    if 1 < max { vec![1, max] } else { vec![1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_image_stays_one_and_other_batches_are_padded_to_the_maximum() {
        let padded_to = |max| (1..=8).map(|n| padded(n, max)).collect::<Vec<_>>();
        assert_eq!(padded_to(8), [1, 8, 8, 8, 8, 8, 8, 8]);
        assert_eq!(padded_to(6), [1, 6, 6, 6, 6, 6, 7, 8]);
        assert_eq!(padded_to(1), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn every_size_that_a_batch_is_padded_to_is_warmed() {
        for max in 1..70 {
            let warmed = sizes_to_warm(max);
            assert!((1..=max).all(|n| warmed.contains(&padded(n, max))), "{max}: {warmed:?}");
            assert!(warmed.iter().all(|&n| padded(n, max) == n), "{max}: {warmed:?}");
        }
    }
}
