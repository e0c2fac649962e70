//! Row norms of a linear head, and whether tau-normalisation has anything to work on.

use std::fmt;

/// Below this coefficient of variation the norms count as near equal.
///
/// At tau 1 the classes' scales vary by as much as their norms: below 5 % only pairs of classes whose logits are within
/// some 5 % of each other can change places. Heads with normalised weights are at 1e-7, those of joint training with SGD
/// on long-tailed data well above.
pub const NEAR_EQUAL_VARIATION: f64 = 0.05;

/// Below this correlation the norms count as not following the counts: less than a quarter of their variance is
/// explained, and dividing by them corrects something else than the imbalance.
pub const FOLLOWING_CORRELATION: f64 = 0.5;

/// What the row norms of a linear head look like, beside the training counts.
#[derive(Clone, Debug, PartialEq)]
pub struct NormStatistics {
    /// The class with the smallest norm, and that.
    pub smallest: (usize, f64),
    /// The class with the largest norm, and that.
    pub largest: (usize, f64),
    /// The mean norm.
    pub mean: f64,
    /// Standard deviation over mean; `None` if every norm is 0.
    pub variation: Option<f64>,
    /// Pearson's correlation of ln(count) and norm, over the classes with a count above 0; `None` without counts, with
    /// fewer than three such classes, or if either of the two does not vary.
    pub count_correlation: Option<f64>,
    /// Classes whose norm is 0: tau leaves them as they are.
    pub num_zero: usize,
}

/// A reason why tau-normalisation will not do what it is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormWarning {
    /// The norms hardly differ.
    NearEqual {
        /// Their coefficient of variation.
        variation: f64,
    },
    /// The norms are not larger for the classes with more samples.
    NotFollowingCounts {
        /// The correlation of log count and norm.
        correlation: f64,
    },
    /// Some classes have no weights.
    ZeroRows {
        /// How many.
        num_zero: usize,
    },
}

impl fmt::Display for NormWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NearEqual { variation } => {
                let percent = 100.0 * variation;
                write!(f, "the row norms are near equal (they vary by {percent:.2} %): tau-norm has nothing to do")
            }
            Self::NotFollowingCounts { correlation } => write!(
                f,
                "the row norms do not follow the training counts (correlation with log count {correlation:.2}): tau-norm \
                 may not help the rare classes"
            ),
            Self::ZeroRows { num_zero } => write!(f, "{num_zero} classes have a weight vector of zeros"),
        }
    }
}

impl NormStatistics {
    /// The statistics of `norms` `[C]` and, if known, `train_counts` `[C]`; `None` without a class, or if the two are not
    /// equally many.
    ///
    /// ```
    /// use equipoise::heads::NormStatistics;
    /// let statistics = NormStatistics::new(&[3.0, 2.0, 1.0], Some(&[100, 10, 1])).expect("as many counts as norms");
    /// assert_eq!((statistics.smallest, statistics.largest), ((2, 1.0), (0, 3.0)));
    /// assert!((statistics.count_correlation.expect("both vary") - 1.0).abs() < 1e-12);
    /// assert!(statistics.warnings().is_empty());
    /// ```
    ///
    /// # Reference
    /// Kang et al., ICLR 2020, section 4.2: the norms correlate with the counts. Menon et al., ICLR 2021, figure 1: with
    /// Adam they need not.
    pub fn new(norms: &[f64], train_counts: Option<&[u64]>) -> Option<Self> {
        if train_counts.is_some_and(|counts| counts.len() != norms.len()) {
            return None;
        }
        let by_norm = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1);
        let classes = || norms.iter().copied().enumerate();
        // Of equal ones the lower class, for both.
        let (smallest, largest) = (classes().min_by(by_norm)?, classes().rev().max_by(by_norm)?);
        let mean = norms.iter().sum::<f64>() / norms.len() as f64;
        let variance = norms.iter().map(|norm| (norm - mean).powi(2)).sum::<f64>() / norms.len() as f64;
        let pairs: Vec<(f64, f64)> = train_counts
            .unwrap_or_default()
            .iter()
            .zip(norms)
            .filter(|(count, _)| **count > 0)
            .map(|(&count, &norm)| ((count as f64).ln(), norm))
            .collect();
        Some(Self {
            smallest,
            largest,
            mean,
            variation: (mean > 0.0).then(|| variance.sqrt() / mean),
            count_correlation: correlation(&pairs),
            num_zero: norms.iter().filter(|&&norm| norm == 0.0).count(),
        })
    }

    /// What tau-normalisation should be warned of; a head with near-equal norms is not also said to disregard the counts.
    pub fn warnings(&self) -> Vec<NormWarning> {
        let near_equal = self.variation.filter(|&variation| variation < NEAR_EQUAL_VARIATION);
        let unrelated = self.count_correlation.filter(|&correlation| correlation < FOLLOWING_CORRELATION);
        let of_norms = match (near_equal, unrelated) {
            (Some(variation), _) => Some(NormWarning::NearEqual { variation }),
            (None, Some(correlation)) => Some(NormWarning::NotFollowingCounts { correlation }),
            (None, None) => None,
        };
        let zero_rows = (self.num_zero > 0).then_some(NormWarning::ZeroRows { num_zero: self.num_zero });
        of_norms.into_iter().chain(zero_rows).collect()
    }
}

/// Pearson's correlation; `None` for fewer than three pairs, or if one side does not vary.
fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 3 {
        return None;
    }
    let n = pairs.len() as f64;
    let mean_x = pairs.iter().map(|(x, _)| x).sum::<f64>() / n;
    let mean_y = pairs.iter().map(|(_, y)| y).sum::<f64>() / n;
    let sum = |of: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|&(x, y)| of(x - mean_x, y - mean_y)).sum::<f64>();
    let (xx, yy, xy) = (sum(&|x, _| x * x), sum(&|_, y| y * y), sum(&|x, y| x * y));
    // What rounding leaves of equal values is no variation.
    let varies = |squares: f64, mean: f64| squares > n * (1e-12 * mean).powi(2);
    (varies(xx, mean_x) && varies(yy, mean_y)).then(|| (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn warnings(norms: &[f64], counts: Option<&[u64]>) -> Vec<NormWarning> {
        NormStatistics::new(norms, counts).expect("as many counts as norms").warnings()
    }

    #[test]
    fn the_statistics_are_those_worked_by_hand() {
        let statistics = NormStatistics::new(&[2.0, 4.0, 4.0, 2.0], Some(&[1, 10, 100, 0])).expect("equally many");
        assert_eq!((statistics.smallest, statistics.largest), ((0, 2.0), (1, 4.0)));
        assert_eq!((statistics.mean, statistics.variation), (3.0, Some(1.0 / 3.0)));
        // Of (0, 2), (1, 4), (2, 4), in units of ln 10: 2 / √(2 · 8/3).
        let expected = 2.0 / (2.0f64 * 8.0 / 3.0).sqrt();
        assert!((statistics.count_correlation.expect("both vary") - expected).abs() < 1e-12);
    }

    #[test]
    fn near_equal_norms_are_warned_of_and_nothing_else_is_said() {
        assert!(matches!(
            warnings(&[1.0, 1.0, 1.0], Some(&[9, 5, 1]))[..],
            [NormWarning::NearEqual { variation: 0.0 }]
        ));
        assert!(matches!(warnings(&[1.0, 1.01, 1.02], Some(&[9, 5, 1]))[..], [NormWarning::NearEqual { .. }]));
        assert!(warnings(&[1.2, 1.1, 1.0], Some(&[9, 5, 1])).is_empty());
    }

    #[test]
    fn norms_that_do_not_follow_the_counts_are_warned_of() {
        assert!(matches!(
            warnings(&[1.0, 2.0, 3.0], Some(&[100, 10, 1]))[..],
            [NormWarning::NotFollowingCounts { correlation }] if correlation == -1.0
        ));
        assert!(warnings(&[1.0, 2.0, 3.0], Some(&[1, 10, 100])).is_empty());
    }

    #[test]
    fn without_counts_or_with_equal_ones_there_is_no_correlation() {
        for counts in [None, Some(&[7, 7, 7][..]), Some(&[0, 3, 9]), Some(&[0, 0, 0])] {
            let statistics = NormStatistics::new(&[1.0, 2.0, 3.0], counts).expect("equally many");
            assert_eq!(statistics.count_correlation, None, "{counts:?}");
            assert!(statistics.warnings().is_empty());
        }
        // 0.1 + 0.2 and the like: the mean of equal norms need not be that norm.
        let equal = NormStatistics::new(&[0.1; 7], Some(&[1, 2, 3, 4, 5, 6, 7])).expect("equally many");
        assert_eq!(equal.count_correlation, None);
    }

    #[test]
    fn zero_rows_are_counted_and_nothing_divides_by_zero() {
        assert!(matches!(warnings(&[0.0, 0.0], None)[..], [NormWarning::ZeroRows { num_zero: 2 }]));
        assert_eq!(NormStatistics::new(&[0.0], None).expect("one class").variation, None);
        assert_eq!(NormStatistics::new(&[], None), None);
        assert_eq!(NormStatistics::new(&[1.0], Some(&[1, 2])), None);
    }
}
