//! The sizes of batches on a device: few, so that each can be run once before the first request comes.

use super::device::Provider;

/// To which size a batch of `n` is padded on a device: the next power of two, at most `max`. A larger batch stays as it is.
pub(super) fn padded(n: usize, max: usize) -> usize {
    if max <= n { n } else { n.checked_next_power_of_two().map_or(max, |size| size.min(max)) }
}

/// Batch sizes to run once before a model is ready: 1 and `max`; on a device all that batches are padded to as well.
///
/// 1 and `max` come first: TensorRT then builds for all sizes between them at once, and an arena that has held the largest
/// batch need not grow for the others.
#[must_use]
pub fn sizes_to_warm(provider: Provider, max: usize) -> Vec<usize> {
    let mut sizes = vec![1];
    sizes.extend((1 < max).then_some(max));
    if provider != Provider::Cpu {
        let powers = (1..usize::BITS).map(|exponent| 1 << exponent).take_while(|&size: &usize| size < max);
        sizes.extend(powers.collect::<Vec<_>>().into_iter().rev());
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUDA: Provider = Provider::Cuda { index: 0 };

    #[test]
    fn batches_are_padded_to_powers_of_two_and_the_maximum() {
        let padded_to = |max| (1..=8).map(|n| padded(n, max)).collect::<Vec<_>>();
        assert_eq!(padded_to(8), [1, 2, 4, 4, 8, 8, 8, 8]);
        assert_eq!(padded_to(6), [1, 2, 4, 4, 6, 6, 7, 8]);
        assert_eq!(padded_to(1), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(padded(usize::MAX - 1, usize::MAX), usize::MAX);
    }

    #[test]
    fn every_size_that_a_batch_is_padded_to_is_warmed() {
        for max in 1..70 {
            let warmed = sizes_to_warm(CUDA, max);
            assert!((1..=max).all(|n| warmed.contains(&padded(n, max))), "{max}: {warmed:?}");
            assert!(warmed.iter().all(|&n| padded(n, max) == n), "{max}: {warmed:?}");
        }
        assert_eq!(sizes_to_warm(CUDA, 32), [1, 32, 16, 8, 4, 2]);
        assert_eq!(sizes_to_warm(CUDA, 12), [1, 12, 8, 4, 2]);
        assert_eq!(sizes_to_warm(Provider::TensorRt { index: 0 }, 4), [1, 4, 2]);
        assert_eq!(sizes_to_warm(Provider::Cpu, 32), [1, 32]);
        assert_eq!([CUDA, Provider::Cpu].map(|provider| sizes_to_warm(provider, 1)), [[1], [1]]);
    }
}
