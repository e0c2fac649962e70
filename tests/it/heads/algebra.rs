//! Properties of the algebra, for heads of every kind.

use equipoise::heads::{
    BiasMode, Head, HeadKind, MAX_TAU, Metric, Parameters, RawRow, Scores, Scoring, SettingsPatch, Transform, softmax,
    top_k,
};
use ndarray::{Array1, Array2, Axis};
use proptest::prelude::*;

use crate::seeded;

use super::{assert_close, linear, logits, logits_with, ncm, plain, tau_settings};

const BIAS_MODES: [BiasMode; 3] = [BiasMode::Drop, BiasMode::Keep, BiasMode::Scale];
const TRANSFORMS: [Transform; 3] = [Transform::None, Transform::L2n, Transform::Cl2n];
const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::Dot];

/// Numbers for a head of any kind, and features for it.
#[derive(Clone, Debug)]
struct Case {
    weight: Array2<f32>,
    bias: Array1<f32>,
    scale: Array1<f32>,
    mean: Array1<f32>,
    features: Array2<f32>,
}

impl Case {
    fn num_classes(&self) -> usize {
        self.weight.nrows()
    }

    fn joint(&self) -> Head {
        linear(HeadKind::Joint, &self.weight, Some(&self.bias), None)
    }

    fn lws(&self) -> Head {
        linear(HeadKind::Lws, &self.weight, Some(&self.bias), Some(&self.scale))
    }

    fn tau_norm(&self) -> Head {
        self.joint().derive(HeadKind::TauNorm, plain(HeadKind::TauNorm)).unwrap()
    }

    /// Every kind under every setting that changes the formula, with a name.
    fn all(&self, tau: f64) -> Vec<(String, Head, equipoise::heads::Settings)> {
        let mut all = vec![
            ("joint".to_owned(), self.joint(), plain(HeadKind::Joint)),
            ("no bias".to_owned(), linear(HeadKind::Crt, &self.weight, None, None), plain(HeadKind::Crt)),
            ("lws".to_owned(), self.lws(), plain(HeadKind::Lws)),
        ];
        for mode in BIAS_MODES {
            let settings = tau_settings(tau, mode);
            all.push((format!("tau {tau} {mode:?}"), self.tau_norm(), settings));
            all.push((
                format!("tau {tau} {mode:?} of lws"),
                self.lws().derive(HeadKind::TauNorm, settings).unwrap(),
                settings,
            ));
        }
        for (transform, metric) in TRANSFORMS.into_iter().flat_map(|t| METRICS.map(|m| (t, m))) {
            let head = ncm(&self.weight, Some(&self.mean), transform, metric);
            all.push((format!("ncm {transform} {metric}"), head, plain(HeadKind::Ncm)));
        }
        all
    }

    fn with_classes(&self, order: &[usize]) -> Self {
        Self {
            weight: self.weight.select(Axis(0), order),
            bias: self.bias.select(Axis(0), order),
            scale: self.scale.select(Axis(0), order),
            ..self.clone()
        }
    }
}

fn case_of(values: std::ops::Range<f32>) -> impl Strategy<Value = Case> {
    (1usize..8, 1usize..8, 1usize..4).prop_flat_map(move |(c, d, n)| {
        let list = |len: usize| prop::collection::vec(values.clone(), len);
        (list(c * d), list(c), list(c), list(d), list(n * d)).prop_map(move |(weight, bias, scale, mean, features)| {
            Case {
                weight: Array2::from_shape_vec((c, d), weight).unwrap(),
                bias: bias.into(),
                scale: scale.into(),
                mean: mean.into(),
                features: Array2::from_shape_vec((n, d), features).unwrap(),
            }
        })
    })
}

fn ordinary() -> impl Strategy<Value = Case> {
    case_of(-3.0..3.0)
}

/// Weight rows far enough from zero for float32 to keep what is compared.
fn away_from_zero() -> impl Strategy<Value = Case> {
    case_of(0.05..3.0).prop_map(|case| Case { weight: case.weight.mapv(|x| if x > 1.5 { -x } else { x }), ..case })
}

fn tau() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1.0), Just(MAX_TAU), 0.0..MAX_TAU]
}

/// Agreement of two float32 computations of logits that are as large as `expected`.
fn tolerance(expected: &[Vec<f64>]) -> f64 {
    2e-5 * expected.iter().flatten().fold(1.0, |max: f64, x| max.max(x.abs()))
}

proptest! {
    #![proptest_config(seeded(64))]

    #[test]
    fn tau_0_with_the_bias_kept_is_the_base(case in ordinary()) {
        for base in [case.joint(), case.lws()] {
            let expected = logits(&base, &plain(base.kind()), &case.features);
            for mode in [BiasMode::Keep, BiasMode::Scale] {
                let derived = base.derive(HeadKind::TauNorm, tau_settings(0.0, mode)).unwrap();
                prop_assert_eq!(&logits(&derived, derived.initial_settings(), &case.features), &expected);
            }
        }
    }

    #[test]
    fn tau_norm_scales_with_a_row_to_the_power_of_1_less_tau(case in away_from_zero(), factor in 0.1f32..10.0, tau in tau()) {
        let mut scaled = case.clone();
        let row = case.num_classes() / 2;
        scaled.weight.row_mut(row).mapv_inplace(|x| x * factor);
        let settings = tau_settings(tau, BiasMode::Drop);
        let mut expected = logits(&case.tau_norm(), &settings, &case.features);
        for logits in &mut expected {
            logits[row] *= f64::from(factor).powf(1.0 - tau);
        }
        assert_close(&logits(&scaled.tau_norm(), &settings, &case.features), &expected, tolerance(&expected), "scaled row");
    }

    #[test]
    fn permuted_classes_have_permuted_logits(case in ordinary(), tau in tau(), seed in any::<u64>()) {
        let mut order: Vec<usize> = (0..case.num_classes()).collect();
        order.sort_by_key(|&class| (class as u64 + 1).wrapping_mul(seed | 1));
        let permuted = case.with_classes(&order);
        for ((name, head, settings), (_, other, _)) in case.all(tau).into_iter().zip(permuted.all(tau)) {
            let expected: Vec<Vec<f64>> = logits(&head, &settings, &case.features)
                .into_iter()
                .map(|row| order.iter().map(|&class| row[class]).collect())
                .collect();
            assert_close(&logits(&other, &settings, &case.features), &expected, tolerance(&expected), &name);
        }
    }

    #[test]
    fn scaled_features_leave_normalising_heads_as_they_are(case in away_from_zero(), factor in 0.01f32..100.0) {
        let scaled = case.features.mapv(|x| x * factor);
        let heads = [
            (Transform::L2n, Metric::L2),
            (Transform::L2n, Metric::Dot),
            (Transform::L2n, Metric::Cosine),
            (Transform::None, Metric::Cosine),
        ];
        for (transform, metric) in heads {
            let head = ncm(&case.weight, None, transform, metric);
            let expected = logits(&head, &plain(HeadKind::Ncm), &case.features);
            let actual = logits(&head, &plain(HeadKind::Ncm), &scaled);
            assert_close(&actual, &expected, tolerance(&expected), &format!("{transform} {metric}"));
        }
    }

    #[test]
    fn zeros_give_numbers(case in ordinary(), tau in tau(), zero_rows in any::<u8>(), tiny in any::<bool>()) {
        let mut case = case;
        for class in (0..case.num_classes()).filter(|class| zero_rows >> class & 1 == 1) {
            case.weight.row_mut(class).fill(if tiny { f32::from_bits(1) } else { 0.0 });
            case.scale[class] = if tiny { f32::from_bits(1) } else { 0.0 };
        }
        case.features.row_mut(0).fill(0.0);
        for (name, head, settings) in case.all(tau) {
            let all = logits(&head, &settings, &case.features);
            prop_assert!(all.iter().flatten().all(|logit| !logit.is_nan()), "{}: {:?}", name, all);
            prop_assert!(all[0].iter().all(|logit| logit.is_finite()), "{}: {:?}", name, all);
        }
    }

    #[test]
    fn lws_folded_into_a_linear_head_is_the_same(case in ordinary(), tau in tau()) {
        let by_class = case.scale.clone().insert_axis(Axis(1));
        let folded = Case { weight: &case.weight * &by_class, bias: &case.bias * &case.scale, ..case.clone() };
        let expected = logits(&folded.joint(), &plain(HeadKind::Joint), &case.features);
        assert_close(&logits(&case.lws(), &plain(HeadKind::Lws), &case.features), &expected, tolerance(&expected), "lws");
        for mode in BIAS_MODES {
            let settings = tau_settings(tau, mode);
            let expected = logits(&folded.tau_norm(), &settings, &case.features);
            let derived = case.lws().derive(HeadKind::TauNorm, settings).unwrap();
            assert_close(&logits(&derived, &settings, &case.features), &expected, tolerance(&expected), "tau of lws");
        }
    }

    #[test]
    fn a_masked_class_is_never_predicted(case in ordinary(), masked in any::<u8>(), k in 1usize..12, temperature in 0.1f64..10.0) {
        let counts: Vec<u64> = (0..case.num_classes()).map(|class| u64::from(class == 0 || masked >> class & 1 == 0)).collect();
        let parameters = Parameters::Linear { weight: case.weight.clone(), bias: Some(case.bias.clone()), scale: None };
        let head = Head::new(HeadKind::Joint, parameters, Some(counts.clone()));
        let patch = SettingsPatch { temperature: Some(temperature), ..SettingsPatch::default() };
        let scoring = head.scoring(&plain(HeadKind::Joint).with(patch, HeadKind::Joint).unwrap());
        let n_unmasked = counts.iter().filter(|&&count| count > 0).count();
        prop_assert_eq!(scoring.num_unmasked(), n_unmasked);
        for row in logits_with(&head, &scoring, &case.features) {
            let probabilities = softmax(&row);
            for (probability, count) in probabilities.iter().zip(&counts) {
                prop_assert_eq!(*probability == 0.0, *count == 0);
            }
            prop_assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        }
        let (raw, _) = head.weights().raw_scores(case.features.view());
        for raw in raw.rows() {
            let raw = raw.to_vec();
            let best = scoring.predict(Scores { raw: &raw, squared_norm: 0.0 }, k, &mut Vec::new()).unwrap();
            prop_assert_eq!(best.len(), k.min(n_unmasked));
            prop_assert!(best.iter().all(|best| counts[best.class] > 0));
        }
    }

    /// Logits that differ by less than f32 can tell, and logits beyond it, are still told apart as f64 has them.
    #[test]
    fn the_best_class_is_the_first_largest_logit(
        rows in prop::collection::vec((0u8..4, -3i8..4, 0u64..3), 1..100), size in -60i32..60, shifted: bool,
    ) {
        let size = 10f64.powi(size);
        let near_one = |step: i8| 1.0 + f64::from(step) * 3e-8;
        let raw: Vec<f32> = rows.iter().map(|row| f32::from(row.0 / 3) + 1.0).collect();
        let scale: Vec<f64> = rows.iter().map(|row| near_one(row.1) * size).collect();
        let shift: Vec<f64> = rows.iter().map(|row| if shifted { near_one(-row.1) * size } else { 0.0 }).collect();
        let counts: Vec<u64> = rows.iter().map(|row| row.2).collect();
        let logits = (0..rows.len()).map(|class| (class, scale[class] * f64::from(raw[class]) + shift[class]));
        let expected = logits
            .filter(|&(class, _)| counts[class] > 0)
            .fold(None, |best: Option<(usize, f64)>, one| if best.is_none_or(|best| one.1 > best.1) { Some(one) } else { best });
        let scoring = Scoring::new(scale.clone(), shift.clone(), 1.0, Some(&counts));
        let raw = RawRow::new(&raw);
        for class in 0..rows.len() {
            prop_assert_eq!(scoring.is_best(&raw, class), expected.is_some_and(|best| best.0 == class), "{}", class);
        }
    }

    #[test]
    fn top_k_is_the_head_of_a_full_sort(raw in prop::collection::vec(prop_oneof![-2i8..2, any::<i8>()], 0..60), k in 0usize..70) {
        let values: Vec<f64> = raw.iter().map(|&x| f64::from(x) / 4.0).collect();
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| raw[b].cmp(&raw[a]).then(a.cmp(&b)));
        order.truncate(k);
        let best = top_k(&values, k);
        prop_assert_eq!(best.iter().map(|best| best.class).collect::<Vec<_>>(), order);
        let sum: f64 = values.iter().map(|x| x.exp()).sum();
        for best in best {
            prop_assert_eq!(best.logit, values[best.class]);
            prop_assert!((best.probability - values[best.class].exp() / sum).abs() < 1e-6);
        }
    }

    #[test]
    fn softmax_agrees_with_f64(logits in prop::collection::vec(-50.0f64..50.0, 1..40)) {
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        let expected: Vec<f64> = logits.iter().map(|x| x.exp() / sum).collect();
        assert_close(&[softmax(&logits)], &[expected], 1e-6, "softmax");
    }
}

#[test]
fn features_whose_norm_is_beyond_float32_are_still_normalised() {
    let weight = Array2::from_shape_vec((2, 2), vec![1.0, 1.0, 1.0, -1.0]).unwrap();
    let features = Array2::from_elem((1, 2), 3e38);
    for transform in [Transform::None, Transform::L2n] {
        let head = ncm(&weight, None, transform, Metric::Cosine);
        assert_close(&logits(&head, &plain(HeadKind::Ncm), &features), &[vec![1.0, 0.0]], 1e-6, "huge features");
    }
    let head = ncm(&Array2::from_elem((1, 2), 3e38), None, Transform::None, Metric::Cosine);
    let ones = Array2::ones((1, 2));
    assert_close(&logits(&head, &plain(HeadKind::Ncm), &ones), &[vec![1.0]], 1e-6, "huge centroid");
}

#[test]
fn an_overflowing_product_is_no_prediction() {
    let head = linear(HeadKind::Joint, &Array2::ones((2, 2)), None, None);
    let (raw, _) = head.weights().raw_scores(Array2::from_elem((1, 2), 3e38).view());
    let raw = raw.row(0).to_vec();
    assert_eq!(
        head.scoring(&plain(HeadKind::Joint)).predict(Scores { raw: &raw, squared_norm: 0.0 }, 2, &mut vec![]),
        None
    );
}
