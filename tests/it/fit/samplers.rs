//! Samplers: their probabilities against the formulas, their draws against their probabilities.

use std::collections::HashMap;

use equipoise::fit::{Sampler, Sampling, class_probabilities, stratified_holdout};
use proptest::prelude::*;

use super::{json, numbers};
use crate::seeded;

const COUNTS: [u64; 4] = [1280, 100, 20, 5];

const ALL: [Sampling; 6] = [
    Sampling::InstanceBalanced,
    Sampling::ClassBalanced,
    Sampling::ClassBalancedIid,
    Sampling::SquareRoot,
    Sampling::ProgressivelyBalanced,
    Sampling::Power(0.3),
];

/// Labels of `COUNTS`, the classes mixed.
fn labels() -> Vec<u32> {
    let mut labels: Vec<u32> =
        (0u32..).zip(COUNTS).flat_map(|(class, count)| vec![class; usize::try_from(count).unwrap()]).collect();
    let n = labels.len();
    for index in 0..n {
        labels.swap(index, (index * 7919) % n);
    }
    labels
}

#[test]
fn class_probabilities_have_the_worked_values() {
    let file = json("method/samplers.json");
    let close = |found: Vec<f64>, expected: &[f64]| {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
        }
        assert_eq!(found.len(), expected.len());
    };
    let at = |sampling: Sampling| sampling.class_probabilities(&COUNTS, 1, 1);
    close(at(Sampling::InstanceBalanced), &numbers(&file["instance_balanced_q1"]));
    close(at(Sampling::ClassBalanced), &numbers(&file["class_balanced_q0"]));
    close(at(Sampling::SquareRoot), &numbers(&file["square_root_q0.5"]));
    close(at(Sampling::Power(0.5)), &numbers(&file["square_root_q0.5"]));
    let table = file["progressive_reference_epoch_1based_lambda=(e-1)/(T-1)"].as_object().unwrap();
    for (epoch, expected) in table {
        let epoch = epoch.parse().unwrap();
        close(Sampling::ProgressivelyBalanced.class_probabilities(&COUNTS, epoch, 90), &numbers(expected));
    }
    close(class_probabilities(&[4, 0, 1], 0.5), &[2.0 / 3.0, 0.0, 1.0 / 3.0]);
}

/// Pearson's chi-squared statistic of draws over classes: with 3 degrees of freedom it is above 21.1 once in 10,000.
#[test]
fn classes_are_drawn_as_often_as_the_formula_says() {
    let labels = labels();
    let n = 40_000;
    for sampling in ALL {
        for (epoch, epochs) in [(1, 3), (2, 3), (3, 3)] {
            let mut sampler = Sampler::new(sampling, &labels, 4, 7);
            sampler.start_epoch(epoch, epochs);
            let mut batch = Vec::new();
            sampler.draw(n, &mut batch);
            let mut drawn = [0.0; 4];
            batch.iter().for_each(|&row| drawn[labels[row as usize] as usize] += 1.0);
            let probabilities = sampling.class_probabilities(&COUNTS, epoch, epochs);
            let chi_squared: f64 = drawn
                .iter()
                .zip(&probabilities)
                .map(|(drawn, p)| (drawn - p * n as f64).powi(2) / (p * n as f64))
                .sum();
            assert!(chi_squared < 21.1, "{sampling:?}, epoch {epoch}: {drawn:?} against {probabilities:?}");
        }
    }
}

#[test]
fn rows_of_a_class_are_drawn_alike() {
    let labels = labels();
    for sampling in ALL {
        let mut sampler = Sampler::new(sampling, &labels, 4, 3);
        sampler.start_epoch(2, 3);
        let mut batch = Vec::new();
        sampler.draw(200_000, &mut batch);
        let mut drawn: HashMap<u32, f64> = HashMap::new();
        batch.iter().filter(|&&row| labels[row as usize] == 1).for_each(|&row| *drawn.entry(row).or_default() += 1.0);
        let mean = drawn.values().sum::<f64>() / 100.0;
        let chi_squared: f64 = drawn.values().map(|drawn| (drawn - mean).powi(2) / mean).sum();
        assert_eq!(drawn.len(), 100, "{sampling:?}");
        // 99 degrees of freedom: above 161 once in 10,000.
        assert!(chi_squared < 161.0, "{sampling:?}: {chi_squared}");
    }
}

#[test]
fn instance_balanced_takes_every_row_once_a_round() {
    let labels = labels();
    let mut sampler = Sampler::new(Sampling::InstanceBalanced, &labels, 4, 0);
    for _ in 0..3 {
        let mut batch = Vec::new();
        sampler.draw(labels.len(), &mut batch);
        batch.sort_unstable();
        assert!(batch.iter().copied().eq(0..labels.len() as u32));
    }
}

#[test]
fn instance_balanced_epochs_of_whole_batches_hold_no_row_twice() {
    let (labels, mut batch) = (labels(), Vec::new());
    let mut sampler = Sampler::new(Sampling::InstanceBalanced, &labels, 4, 0);
    let mut first = Vec::new();
    for epoch in 1..=5 {
        sampler.start_epoch(epoch, 5);
        let mut drawn = Vec::new();
        // 1405 rows: two batches, and 381 rows that this epoch does not come to.
        for _ in 0..2 {
            sampler.draw(512, &mut batch);
            drawn.extend_from_slice(&batch);
        }
        if epoch == 1 {
            first.clone_from(&drawn);
        }
        drawn.sort_unstable();
        assert!(drawn.windows(2).all(|pair| pair[0] != pair[1]), "epoch {epoch}");
    }
    // The first epoch is the one of a sampler that nobody has told of epochs.
    Sampler::new(Sampling::InstanceBalanced, &labels, 4, 0).draw(1024, &mut batch);
    assert_eq!(batch, first);
}

#[test]
fn class_balanced_takes_four_rows_of_every_class_a_round() {
    let labels = labels();
    let mut sampler = Sampler::new(Sampling::ClassBalanced, &labels, 4, 0);
    let mut batch = Vec::new();
    sampler.draw(5 * 16, &mut batch);
    for round in batch.chunks(16) {
        let mut classes: Vec<u32> = round.chunks(4).map(|four| labels[four[0] as usize]).collect();
        for four in round.chunks(4) {
            assert!(four.iter().all(|&row| labels[row as usize] == labels[four[0] as usize]), "{four:?}");
        }
        classes.sort_unstable();
        assert_eq!(classes, [0, 1, 2, 3]);
    }
    // The five rows of the last class come once each before any comes again.
    let mut of_last: Vec<u32> = batch.iter().copied().filter(|&row| labels[row as usize] == 3).collect();
    assert_eq!(of_last.len(), 20);
    for cycle in of_last.chunks_mut(5) {
        cycle.sort_unstable();
        assert!(cycle.windows(2).all(|pair| pair[0] != pair[1]), "{cycle:?}");
    }
}

#[test]
fn the_first_epoch_is_instance_balanced_and_the_last_class_balanced_when_progressive() {
    let at = |epoch| Sampling::ProgressivelyBalanced.class_probabilities(&COUNTS, epoch, 10);
    assert_eq!(at(1), class_probabilities(&COUNTS, 1.0));
    assert_eq!(at(10), [0.25; 4]);
}

#[test]
fn a_seed_gives_the_same_draws_and_another_seed_others() {
    let labels = labels();
    let draw = |seed| {
        let mut batch = Vec::new();
        Sampler::new(Sampling::SquareRoot, &labels, 4, seed).draw(64, &mut batch);
        batch
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

proptest! {
    #![proptest_config(seeded(64))]

    #[test]
    fn only_rows_of_classes_that_have_some_are_drawn(
        labels in proptest::collection::vec(0u32..6, 1..40),
        which in 0usize..6,
        seed: u64,
    ) {
        let mut sampler = Sampler::new(ALL[which], &labels, 9, seed);
        let mut batch = Vec::new();
        for epoch in 1..=3 {
            sampler.start_epoch(epoch, 3);
            sampler.draw(17, &mut batch);
            prop_assert_eq!(batch.len(), 17);
            prop_assert!(batch.iter().all(|&row| (row as usize) < labels.len()));
        }
    }

    #[test]
    fn a_holdout_takes_its_share_of_every_class_and_never_all(
        labels in proptest::collection::vec(0u32..6, 1..80),
        share in 0.01f64..0.99,
        seed: u64,
    ) {
        let (kept, held_out) = stratified_holdout(&labels, 7, share, seed);
        let mut all = [kept.clone(), held_out.clone()].concat();
        all.sort_unstable();
        prop_assert!(all.iter().copied().eq(0..labels.len() as u32));
        for class in 0..7 {
            let of = |rows: &[u32]| rows.iter().filter(|&&row| labels[row as usize] == class).count();
            let n = of(&all);
            let expected = if n < 2 { 0 } else { ((share * n as f64).round() as usize).clamp(1, n - 1) };
            prop_assert_eq!(of(&held_out), expected);
        }
        prop_assert_eq!(stratified_holdout(&labels, 7, share, seed), (kept, held_out));
    }
}
