//! Every engine computes what the plain one does.

use std::sync::Arc;

use equipoise::{
    fit::{Batch, Engine, Gradient, PlainEngine, Rows},
    heads::{FeatureMap, Weights},
};
use ndarray::{Array1, Array2};
use proptest::prelude::*;

use super::golden::engines;
use crate::seeded;

/// Relative to the largest entry: sums of up to 40 float32 products, in another order.
const TOLERANCE: f32 = 2e-5;

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    let largest = a.iter().fold(1e-3f32, |largest, x| largest.max(x.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= TOLERANCE * largest)
}

proptest! {
    #![proptest_config(seeded(48))]

    #[test]
    fn gradients_and_scores_agree(
        n in 1usize..40, d in 1usize..9, c in 1usize..7, seed: u64, indexed: bool,
    ) {
        let table = Array2::from_shape_vec((n, d), random(seed, n * d)).unwrap();
        let rows: Vec<u32> = (0..n as u32).map(|row| (row * 7 + 3) % n as u32).collect();
        let rows = if indexed { Rows::Index(&rows) } else { Rows::Range { start: n / 3, end: n } };
        let labels: Vec<u32> = (0..rows.len() as u32).map(|row| (row * 5 + 1) % c as u32).collect();
        let row_weights: Vec<f32> = random(seed ^ 1, rows.len()).into_iter().map(|x| x.abs() / n as f32).collect();
        let (weight, bias, scale) = (random(seed ^ 2, c * d), random(seed ^ 3, c), random(seed ^ 4, c));
        let scores = Array2::from_shape_vec((n, c), random(seed ^ 5, n * c)).unwrap();
        let of_features = Batch { table: table.view(), rows, labels: &labels, row_weights: &row_weights };
        let of_scores = Batch { table: scores.view(), ..of_features };
        let mean = Array1::from_vec(random(seed ^ 6, d));
        let maps = [FeatureMap::Identity, FeatureMap::L2Normalize, FeatureMap::CenterL2Normalize { mean }];
        let weights: Vec<Arc<Weights>> = maps
            .into_iter()
            .map(|map| Arc::new(Weights::new(Array2::from_shape_vec((c, d), weight.clone()).unwrap(), map, true)))
            .collect();

        let all = |engine: &mut dyn Engine| {
            engine.hold(table.view()).unwrap();
            let mut found = Vec::new();
            let mut keep = |gradient: Gradient<'_>| found.extend([vec![gradient.loss as f32], gradient.parts.concat()]);
            keep(engine.linear_gradient(&of_features, &weight, &bias).unwrap());
            keep(engine.scale_gradient(&of_scores, &scale).unwrap());
            for weights in &weights {
                let scores = engine.raw_scores(table.view(), rows, weights).unwrap();
                found.extend([scores.raw, scores.squared_norms.unwrap()]);
            }
            found
        };
        let expected = all(&mut PlainEngine::default());
        for (name, mut engine) in engines() {
            for (index, (found, expected)) in all(&mut *engine).iter().zip(&expected).enumerate() {
                prop_assert!(close(found, expected), "{} {}: {:?}, expected {:?}", name, index, found, expected);
            }
        }
    }
}
