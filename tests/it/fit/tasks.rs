//! Whole fits of small sets: what is refused, what is masked, what stays the same.

use std::ops::ControlFlow;

use equipoise::{
    dataset::{FeatureSet, Shot},
    evaluate::{Accuracies, warnings},
    fit::{
        FitError, FitTask, Fitted, PlainEngine, Recipe, RecipeError, Samples, Validation, Watch, fit, measure,
        stratified_holdout,
    },
    heads::{Head, HeadKind, Parameters, Scores, Settings, TrainPrior},
};
use ndarray::Array2;
use serde_json::{Value, json as value};

use super::{fit_plainly, icons30_set, joint_head, recipe};

/// 60 rows in 4 dimensions, of classes 0 to 2 with 40, 15 and 5 rows, and a class 3 without one. `shift` gives other rows.
fn small_set(shift: f32) -> FeatureSet {
    let mut labels = vec![0; 40];
    labels.extend([1; 15]);
    labels.extend([2; 5]);
    let feature = |(row, column): (usize, usize)| {
        let noise = ((row * 37 + column * 101) % 23) as f32 / 23.0 - 0.5;
        noise + shift + if column == labels[row] as usize { 2.0 } else { 0.0 }
    };
    FeatureSet::new(Array2::from_shape_fn((60, 4), feature), labels, 4).unwrap()
}

fn error(method: HeadKind, params: Value) -> String {
    Recipe::new(method, params.as_object().unwrap().clone()).unwrap_err().to_string()
}

#[test]
fn parameters_that_a_method_does_not_know_are_refused_by_name() {
    for (method, params, words) in [
        (HeadKind::Crt, value!({"epoch": 3}), "unknown field `epoch`"),
        (HeadKind::Crt, value!({"init": "ones"}), "unknown field `init`"),
        (HeadKind::Lws, value!({"bias": "scale"}), "unknown field `bias`"),
        (HeadKind::Lws, value!({"bias": "scale"}), "`seed`, `init`"),
        (HeadKind::Ncm, value!({"epochs": 3}), "unknown field `epochs`"),
        (HeadKind::TauNorm, value!({"weight_decay": 3}), "unknown field `weight_decay`"),
        (HeadKind::Joint, value!({"sampler": "balanced"}), "unknown variant `balanced`"),
        (HeadKind::Lws, value!({"init": "twos"}), "unknown variant `twos`"),
        (HeadKind::Crt, value!({"solver": null}), "null"),
        (HeadKind::Crt, value!({"epochs": 2.5}), "2.5"),
        (HeadKind::Crt, value!({"seed": -1}), "-1"),
        (HeadKind::Crt, value!({"epochs": 0}), "`epochs` must be from 1 to 100000, and is 0"),
        (HeadKind::Crt, value!({"batch_size": 0}), "`batch_size`"),
        (HeadKind::Crt, value!({"learning_rate": 0}), "`learning_rate` must be above 0 and at most 1000000, and is 0"),
        (HeadKind::Crt, value!({"learning_rate": 1e7}), "above 0 and at most 1000000, and is 10000000"),
        (HeadKind::Crt, value!({"momentum": 1}), "`momentum` must be from 0 to below 1"),
        (HeadKind::Crt, value!({"weight_decay": -0.1}), "`weight_decay` must be from 0 to 1000000"),
        (HeadKind::Crt, value!({"q": 3}), "`q` must be a number from -2 to 2"),
        (HeadKind::Crt, value!({"q": 0, "sampler": "square_root"}), "`sampler` and `q`"),
        (HeadKind::Crt, value!({"solver": "lbfgs", "sampler": "progressively_balanced"}), "progressively_balanced"),
        (HeadKind::Crt, value!({"solver": "lbfgs", "epochs": 3}), "`epochs` means nothing to the solver `lbfgs`"),
        (HeadKind::Lws, value!({"solver": "lbfgs", "momentum": 0.5}), "`momentum` means nothing"),
        (HeadKind::TauNorm, value!({"tau": []}), "`tau` must be a list"),
        (HeadKind::TauNorm, value!({"tau": [0.5, 5.1]}), "5.1"),
        (HeadKind::TauNorm, value!({"tau": 0.5}), "expected a list"),
        (HeadKind::TauNorm, value!({"bias": "none"}), "unknown variant `none`"),
        (HeadKind::Ncm, value!({"transform": "l2"}), "`transform` must be one of none, l2n, cl2n"),
        (HeadKind::Ncm, value!({"metric": "cos"}), "`metric` must be one of l2, cosine, dot"),
    ] {
        let found = error(method, params.clone());
        assert!(found.contains(words), "{method} {params}: {found}");
    }
    let unknown = Recipe::new(HeadKind::Crt, value!({"x": 1}).as_object().unwrap().clone()).unwrap_err();
    assert!(matches!(unknown, RecipeError::Params { method: HeadKind::Crt, .. }));
}

#[test]
fn the_same_fit_gives_the_same_bytes_and_another_seed_others() {
    let (set, other, joint) = (icons30_set("train"), icons30_set("val"), joint_head());
    for (method, params) in [
        (HeadKind::Crt, value!({"epochs": 2, "batch_size": 64})),
        (HeadKind::Joint, value!({"epochs": 1, "batch_size": 64, "sampler": "progressively_balanced"})),
        (HeadKind::Lws, value!({"epochs": 2, "batch_size": 64, "sampler": "square_root"})),
        (HeadKind::Crt, value!({"solver": "lbfgs", "weight_decay": 0.1})),
        (HeadKind::Ncm, value!({})),
        (HeadKind::TauNorm, value!({})),
    ] {
        let run = |seed: u64| {
            let mut params = params.clone();
            params["seed"] = value!(seed);
            fit_plainly(&recipe(method, params), &set, Validation::Set(&other), Some(&joint)).unwrap().file
        };
        assert!(run(1) == run(1), "{method}");
        assert!(run(1) != run(2), "{method}: the seed stands in the file at least");
    }
}

#[test]
fn a_class_without_a_sample_is_masked_and_nothing_is_nan() {
    let set = small_set(0.0);
    let joint =
        fit_plainly(&recipe(HeadKind::Joint, value!({"solver": "lbfgs"})), &set, Validation::None, None).unwrap();
    for (method, params) in [
        (HeadKind::Crt, value!({"batch_size": 8})),
        (HeadKind::Crt, value!({"solver": "lbfgs"})),
        (HeadKind::Lws, value!({"batch_size": 8, "init": "inverse_norm"})),
        (HeadKind::Lws, value!({"solver": "lbfgs"})),
        (HeadKind::Ncm, value!({})),
        (HeadKind::Ncm, value!({"transform": "none", "metric": "dot"})),
    ] {
        let what = format!("{method} {params}");
        let fitted = fit_plainly(&recipe(method, params), &set, Validation::None, Some(&joint.head)).unwrap();
        assert!(fitted.warnings.iter().any(|w| w.contains("1 of 4 classes") && w.contains("class 3")), "{what}");
        assert_eq!(fitted.head.train_counts(), Some(&[40, 15, 5, 0][..]), "{what}");
        assert!(fitted.head.weights().matrix().iter().all(|x| x.is_finite()), "{what}");
        let (raw, norms) = fitted.head.weights().raw_scores(set.features());
        let scoring = fitted.head.scoring(fitted.head.initial_settings());
        let mut n_right = 0;
        for (row, &label) in set.labels().iter().enumerate() {
            let scores =
                Scores { raw: raw.row(row).to_slice().unwrap(), squared_norm: norms.get(row).copied().unwrap_or(0.0) };
            let best = scoring.predict(scores, 4, &mut Vec::new()).unwrap();
            assert_eq!(best.len(), 3, "{what}");
            n_right += usize::from(best[0].class == label as usize);
        }
        assert!(n_right >= 55, "{what}: {n_right} of 60");
    }
}

/// Every row is the mean: what is left of it after centring is nothing, and not the rounding of something large.
#[test]
fn rows_that_are_the_mean_have_centroids_of_zeros() {
    let set =
        FeatureSet::new(Array2::from_shape_fn((11, 13), |(_, column)| 0.1 + column as f32), vec![0; 11], 1).unwrap();
    let params = value!({"transform": "cl2n"});
    let head = fit_plainly(&recipe(HeadKind::Ncm, params), &set, Validation::None, None).unwrap().head;
    assert!(head.weights().matrix().iter().all(|&x| x == 0.0), "{:?}", head.weights().matrix());
}

#[test]
fn the_prior_follows_the_sampler() {
    let set = small_set(0.0);
    for (method, params, prior) in [
        (HeadKind::Joint, value!({}), TrainPrior::Joint),
        (HeadKind::Crt, value!({}), TrainPrior::Uniform),
        (HeadKind::Crt, value!({"sampler": "instance_balanced"}), TrainPrior::Joint),
        (HeadKind::Crt, value!({"sampler": "square_root"}), TrainPrior::None),
        (HeadKind::Crt, value!({"q": 0.0}), TrainPrior::Uniform),
        (HeadKind::Ncm, value!({}), TrainPrior::Uniform),
    ] {
        let fitted = fit_plainly(&recipe(method, params.clone()), &set, Validation::None, None).unwrap();
        assert_eq!(fitted.head.train_prior(), prior, "{method} {params}");
        assert_eq!(fitted.head.provenance()["feature_set_digest"], set.digest().to_hex());
        assert!(fitted.report.is_none());
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let (set, same, other, joint) = (small_set(0.0), small_set(0.0), small_set(0.1), joint_head());
    let crt = recipe(HeadKind::Crt, value!({}));
    let tau = recipe(HeadKind::TauNorm, value!({}));
    let lws = recipe(HeadKind::Lws, value!({}));
    let narrow = FeatureSet::new(Array2::ones((2, 3)), vec![0, 1], 4).unwrap();
    let fewer = FeatureSet::new(Array2::ones((2, 4)), vec![0, 1], 2).unwrap();
    let single = FeatureSet::new(Array2::ones((1, 4)), vec![0], 4).unwrap();
    fn message(recipe: &Recipe, set: &FeatureSet, validation: Validation<'_>, base: Option<&Head>) -> String {
        fit_plainly(recipe, set, validation, base).unwrap_err().to_string()
    }
    for (found, words) in [
        (message(&lws, &set, Validation::None, None), "method lws needs a base head"),
        (message(&lws, &set, Validation::None, Some(&joint)), "the base has 96 features, and the feature set has 4"),
        (
            message(&crt, &set, Validation::Set(&narrow), None),
            "the validation set has 3 features, and the feature set has 4",
        ),
        (
            message(&crt, &set, Validation::Set(&fewer), None),
            "the validation set has 2 classes, and the feature set has 4",
        ),
        (message(&crt, &set, Validation::Set(&same), None), "the same content"),
        (message(&crt, &set, Validation::Holdout(0.0), None), "`holdout` must be above 0 and below 1"),
        (message(&crt, &set, Validation::Holdout(f64::NAN), None), "`holdout` must be above 0 and below 1"),
        (message(&crt, &single, Validation::Holdout(0.5), None), "holds out nothing"),
    ] {
        assert!(found.contains(words), "{found}");
    }
    let ncm = fit_plainly(&recipe(HeadKind::Ncm, value!({})), &set, Validation::None, None).unwrap().head;
    for recipe in [&lws, &tau] {
        let found = message(recipe, &set, Validation::Set(&other), Some(&ncm));
        assert!(found.contains("of kind ncm"), "{found}");
    }
    let linear = fit_plainly(&crt, &set, Validation::None, None).unwrap().head;
    assert!(matches!(
        fit_plainly(&tau, &set, Validation::None, Some(&linear)),
        Err(FitError::NoValidation { method: HeadKind::TauNorm })
    ));
    // With one setting there is nothing to choose.
    let one = recipe(HeadKind::TauNorm, value!({"tau": [0.5], "bias": "keep"}));
    let fitted = fit_plainly(&one, &set, Validation::None, Some(&linear)).unwrap();
    assert_eq!(fitted.head.initial_settings().tau, Some(0.5));
}

#[test]
fn a_diverging_fit_says_so() {
    let wild = recipe(HeadKind::Crt, value!({"learning_rate": 1e6, "batch_size": 4, "weight_decay": 1e6}));
    let found = fit_plainly(&wild, &small_set(0.0), Validation::None, None);
    assert!(matches!(found, Err(FitError::Diverged { .. })), "{found:?}");
}

/// 300 rows in 8 dimensions of 5 classes that overlap.
fn overlapping_set(scale: f32, offset: f32) -> FeatureSet {
    let labels: Vec<u32> = (0..300).map(|row| row % 5).collect();
    let feature = |(row, column): (usize, usize)| {
        let noise = (row as f32 * 7.3 + column as f32 * 3.1).sin();
        scale * (noise + if column == labels[row] as usize { 0.7 } else { 0.0 }) + offset
    };
    FeatureSet::new(Array2::from_shape_fn((300, 8), feature), labels, 5).unwrap()
}

/// A base with weights of this size, whose classes have norms that differ.
fn base_of_size(size: f32) -> Head {
    let weight = Array2::from_shape_fn((5, 8), |(class, column)| {
        let direction = (class as f32 * 1.7 + column as f32 * 2.3).cos();
        size * (direction * (1.0 + 0.3 * class as f32) + if column == class { 1.5 } else { 0.0 })
    });
    Head::new(HeadKind::Joint, Parameters::Linear { weight, bias: None, scale: None }, None)
}

fn warnings_of_lbfgs(fitted: &Fitted) -> Vec<&String> {
    fitted.warnings.iter().filter(|warning| warning.contains("L-BFGS")).collect()
}

#[test]
fn lbfgs_at_its_optimum_says_nothing_however_large_the_scores_are() {
    let (set, lws) = (overlapping_set(1.0, 0.0), recipe(HeadKind::Lws, value!({"solver": "lbfgs"})));
    let mut losses = Vec::new();
    for size in [1.0, 5.0, 20.0, 50.0, 100.0, 300.0, 1000.0] {
        let base = base_of_size(size);
        let fitted = fit_plainly(&lws, &set, Validation::None, Some(&base)).unwrap();
        assert!(warnings_of_lbfgs(&fitted).is_empty(), "{size}: {:?}", fitted.warnings);
        losses.push(mean_loss(&fitted.head, &set));
    }
    // The factors undo the size, and what they cost gets less with it: it is the same optimum that is reached.
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0] + 1e-4), "{losses:?}");
    assert!(losses[0] - losses[6] < 2e-3, "{losses:?}");
}

fn mean_loss(head: &Head, set: &FeatureSet) -> f64 {
    let (raw, _) = head.weights().raw_scores(set.features());
    let (scoring, mut logits) = (head.scoring(head.initial_settings()), Vec::new());
    let of_row = |(row, &label): (usize, &u32)| {
        let best = scoring
            .predict(Scores { raw: raw.row(row).to_slice().unwrap(), squared_norm: 0.0 }, 5, &mut logits)
            .unwrap();
        -best.iter().find(|best| best.class == label as usize).unwrap().probability.ln()
    };
    set.labels().iter().enumerate().map(of_row).sum::<f64>() / set.num_rows() as f64
}

#[test]
fn lbfgs_that_stops_before_its_optimum_says_so() {
    // What the classes differ by is what float32 rounds off.
    for offset in [1e3, 1e4] {
        let (set, crt) = (overlapping_set(1.0, offset), recipe(HeadKind::Crt, value!({"solver": "lbfgs"})));
        let fitted = fit_plainly(&crt, &set, Validation::None, None).unwrap();
        assert_eq!(warnings_of_lbfgs(&fitted).len(), 1, "{offset}: {:?}", fitted.warnings);
    }
}

#[test]
fn lbfgs_that_gains_nothing_is_an_error() {
    for method in [HeadKind::Crt, HeadKind::Lws] {
        let lbfgs = recipe(method, value!({"solver": "lbfgs"}));
        // With 1e37 scores are infinite; with 1e9 added the classes are the same numbers.
        for (scale, offset) in [(1e25, 0.0), (1e37, 0.0), (1.0, 1e9)] {
            let set = overlapping_set(scale, offset);
            let found =
                fit_plainly(&lbfgs, &set, Validation::None, Some(&base_of_size(1e2))).map(|fitted| fitted.warnings);
            assert!(matches!(found, Err(FitError::NothingGained { .. })), "{method} {scale} {offset}: {found:?}");
            let words = found.unwrap_err().to_string();
            assert!(words.contains("L-BFGS") && words.contains("standardise"), "{words}");
        }
    }
}

#[test]
fn what_a_head_file_says_of_a_fit_counts_the_rows_that_were_fitted() {
    let set = small_set(0.0);
    for (batch_size, learning_rate) in
        [(None, 0.2 * 48.0 / 512.0), (Some(56), 0.2 * 48.0 / 512.0), (Some(8), 0.2 / 64.0)]
    {
        let mut params = value!({"epochs": 1});
        if let Some(batch_size) = batch_size {
            params["batch_size"] = value!(batch_size);
        }
        // 32, 12 and 4 rows of the three classes.
        let fitted = fit_plainly(&recipe(HeadKind::Crt, params), &set, Validation::Holdout(0.2), None).unwrap();
        let provenance = fitted.head.provenance();
        assert_eq!(provenance["batch_size"], batch_size.unwrap_or(48).min(48).to_string());
        assert_eq!(provenance["learning_rate"], learning_rate.to_string());
        assert_eq!(fitted.head.train_counts(), Some(&[32, 12, 4, 0][..]));
    }
}

/// What tau is chosen on says nothing of what the weights were fitted on.
#[test]
fn tau_norm_has_the_counts_of_its_base_or_the_given_ones_and_never_those_of_its_rows() {
    let labels: Vec<u32> = [0; 22].into_iter().chain([1; 21]).chain([2; 19]).collect();
    let feature = |(row, column): (usize, usize)| {
        ((row * 37 + column * 101) % 23) as f32 / 23.0 + if column == labels[row] as usize { 2.0 } else { 0.0 }
    };
    let set = FeatureSet::new(Array2::from_shape_fn((62, 8), feature), labels.clone(), 3).unwrap();
    let base = base_of_size(1.0).weights().matrix().slice(ndarray::s![..3, ..]).to_owned();
    let recipe = recipe(HeadKind::TauNorm, value!({}));
    let (of_base, given): (&[u64], &[u64]) = (&[200, 30, 30], &[500, 5, 5]);
    for (of_base, given, of_head, groups) in [
        (None, None, None, [false, false, false]),
        (None, Some(given), Some(given), [true, false, true]),
        (Some(of_base), None, Some(of_base), [true, true, false]),
        (Some(of_base), Some(given), Some(of_base), [true, false, true]),
    ] {
        let parameters = Parameters::Linear { weight: base.clone(), bias: None, scale: None };
        let base = Head::new(HeadKind::Joint, parameters, of_base.map(<[u64]>::to_vec));
        let task = FitTask {
            recipe: &recipe,
            features: &set,
            validation: Validation::Holdout(0.1),
            base: Some(&base),
            train_counts: given,
            cache_bytes: 1 << 30,
        };
        let watch = &mut |_| ControlFlow::Continue(());
        let fitted = fit(&task, &mut PlainEngine::default(), &mut Watch::new(watch)).unwrap();
        assert_eq!(fitted.head.train_counts(), of_head);
        let Accuracies { many, medium, few, .. } = fitted.report.unwrap().report.accuracies;
        assert_eq!([many, medium, few].map(|share| share.is_some()), groups, "{of_base:?}, {given:?}");
    }
}

#[test]
fn training_counts_of_another_number_of_classes_are_refused() {
    let set = small_set(0.0);
    let task = FitTask {
        recipe: &recipe(HeadKind::Ncm, value!({})),
        features: &set,
        validation: Validation::None,
        base: None,
        train_counts: Some(&[1, 2, 3]),
        cache_bytes: 0,
    };
    let watch = &mut |_| ControlFlow::Continue(());
    let error = fit(&task, &mut PlainEngine::default(), &mut Watch::new(watch)).unwrap_err().to_string();
    assert_eq!(error, "the table of training counts has 3 classes, and the feature set has 4");
}

#[test]
fn a_fit_ends_when_its_watcher_says_so() {
    let (set, joint) = (icons30_set("train"), joint_head());
    for method in [HeadKind::Joint, HeadKind::Crt, HeadKind::Lws, HeadKind::Ncm, HeadKind::TauNorm] {
        let task = FitTask {
            recipe: &recipe(method, value!({})),
            features: &set,
            validation: Validation::Holdout(0.2),
            base: Some(&joint),
            train_counts: None,
            cache_bytes: 1 << 30,
        };
        let outcome = fit(&task, &mut PlainEngine::default(), &mut Watch::new(&mut |_| ControlFlow::Break(())));
        assert!(matches!(outcome, Err(FitError::Cancelled)), "{method}");
    }
}

#[test]
fn progress_goes_from_0_to_1_and_never_back() {
    let (set, joint) = (icons30_set("train"), joint_head());
    for (method, params) in [
        (HeadKind::Crt, value!({"epochs": 2})),
        (HeadKind::Lws, value!({"solver": "lbfgs"})),
        (HeadKind::Ncm, value!({"transform": "cl2n"})),
        (HeadKind::TauNorm, value!({})),
    ] {
        let task = FitTask {
            recipe: &recipe(method, params),
            features: &set,
            validation: Validation::Holdout(0.2),
            base: Some(&joint),
            train_counts: None,
            cache_bytes: 1 << 30,
        };
        let mut told = Vec::new();
        let mut on_progress = |progress: Option<equipoise::fit::Progress>| {
            told.extend(progress.map(|progress| progress.done));
            ControlFlow::Continue(())
        };
        fit(&task, &mut PlainEngine::default(), &mut Watch::new(&mut on_progress)).unwrap();
        assert!(!told.is_empty() && told.windows(2).all(|pair| pair[0] <= pair[1]), "{method}: {told:?}");
        assert!(told.iter().all(|done| (0.0..=1.0).contains(done)), "{method}: {told:?}");
    }
}

/// A set whose scores do not fit the cache is fitted all the same.
#[test]
fn lws_without_a_cache_gives_the_same_factors() {
    let (set, joint) = (icons30_set("train"), joint_head());
    for params in [value!({"epochs": 3, "batch_size": 64}), value!({"solver": "lbfgs"})] {
        let run = |cache_bytes| {
            let task = FitTask {
                recipe: &recipe(HeadKind::Lws, params.clone()),
                features: &set,
                validation: Validation::Holdout(0.2),
                base: Some(&joint),
                train_counts: None,
                cache_bytes,
            };
            fit(&task, &mut PlainEngine::default(), &mut Watch::new(&mut |_| ControlFlow::Continue(()))).unwrap()
        };
        assert!(run(0).file == run(1 << 30).file, "{params}");
    }
}

#[test]
fn a_recipe_that_takes_few_steps_is_warned_of() {
    let set = small_set(0.0);
    let fitted =
        fit_plainly(&recipe(HeadKind::Crt, value!({"batch_size": 512})), &set, Validation::None, None).unwrap();
    assert!(fitted.warnings.iter().any(|w| w.contains("`batch_size` is 60")), "{:?}", fitted.warnings);
    assert!(fitted.warnings.iter().any(|w| w.contains("10 steps")), "{:?}", fitted.warnings);
    assert_eq!(fitted.head.provenance()["batch_size"], "60");
}

/// Where it was fitted or chosen, as its provenance and an evaluation say it.
#[test]
fn a_head_was_chosen_on_a_set_only_if_something_was_chosen() {
    let (set, other, base) = (small_set(0.0), small_set(0.1), base_of_small_sets());
    let one = value!({"tau": [0.5], "bias": "keep"});
    for (method, params, is_fitted, chosen) in [
        (HeadKind::Crt, value!({"solver": "lbfgs"}), true, vec![]),
        (HeadKind::Ncm, value!({}), true, vec![]),
        (HeadKind::Crt, value!({"epochs": 1, "batch_size": 8}), true, vec![]),
        (HeadKind::Crt, value!({"epochs": 2, "batch_size": 8}), true, vec!["epoch"]),
        (HeadKind::TauNorm, one, false, vec![]),
        (HeadKind::TauNorm, value!({"bias": "keep"}), false, vec!["tau"]),
    ] {
        let (what, recipe) = (format!("{method} {params}"), recipe(method, params));
        for (validation, validated_on) in [(Validation::Set(&other), &other), (Validation::Holdout(0.2), &set)] {
            let Fitted { head, report, .. } = fit_plainly(&recipe, &set, validation, Some(&base)).unwrap();
            let report = report.unwrap();
            assert_eq!(report.chosen_on_this_set, chosen, "{what}");
            assert_eq!(report.epoch.is_some(), chosen == ["epoch"], "{what}");
            let expected = (!chosen.is_empty()).then(|| validated_on.digest().to_hex());
            assert_eq!(head.provenance().get("validation_set_digest"), expected.as_ref(), "{what}");
            let found = warnings(&head, "it", validated_on).join(" ");
            assert_eq!(found.contains("it was chosen on this very set"), !chosen.is_empty(), "{what}: {found}");
            let found = warnings(&head, "it", &set).join(" ");
            assert_eq!(found.contains("it was fitted on this very set"), is_fitted, "{what}: {found}");
        }
    }
}

/// A linear head that fits small sets and was fitted nowhere.
fn base_of_small_sets() -> Head {
    Head::new(HeadKind::Joint, Parameters::Linear { weight: Array2::eye(4), bias: None, scale: None }, None)
}

#[test]
fn what_a_base_has_met_is_no_test_of_what_is_made_of_it() {
    let (a, b, c) = (small_set(0.0), small_set(0.1), small_set(0.2));
    let lbfgs = |method| recipe(method, value!({"solver": "lbfgs"}));
    let tau = recipe(HeadKind::TauNorm, value!({}));
    let fitted = |recipe: &Recipe, set, validation, base: Option<&Head>| {
        let Fitted { head, warnings, .. } = fit_plainly(recipe, set, validation, base).unwrap();
        (head, warnings.into_iter().filter(|words| words.contains("the base was fitted")).count())
    };
    let (crt, _) = fitted(&lbfgs(HeadKind::Crt), &a, Validation::None, None);
    let (lws, n_warnings) = fitted(&lbfgs(HeadKind::Lws), &b, Validation::Set(&c), Some(&crt));
    assert_eq!(n_warnings, 0);
    let of_base = "the base of it was fitted on this very set: on samples that it has never met it gets less right";
    assert_eq!(warnings(&lws, "it", &a), [of_base]);
    assert_eq!(warnings(&lws, "it", &b), [of_base.trim_start_matches("the base of ")]);
    assert!(warnings(&lws, "it", &c).is_empty());
    // Two steps on, of a fitted head or one that is derived, they have met what they have met.
    let derived = lws.derive(HeadKind::TauNorm, *lws.initial_settings()).unwrap();
    assert_eq!(warnings(&derived, "it", &a), [of_base]);
    let (of_lws, _) = fitted(&tau, &b, Validation::Set(&c), Some(&lws));
    assert_eq!((warnings(&of_lws, "it", &a).len(), warnings(&of_lws, "it", &b)), (1, vec![of_base.to_owned()]));
    // What is derived of one whose tau alone was chosen has not been fitted there.
    let derived =
        fitted(&tau, &c, Validation::Set(&b), Some(&crt)).0.derive(HeadKind::TauNorm, *lws.initial_settings());
    assert!(warnings(&derived.unwrap(), "it", &c).is_empty());

    // Choosing on what the base was fitted on.
    for (recipe, set, validation, n) in [
        (&tau, &a, Validation::Holdout(0.2), 1),
        (&tau, &b, Validation::Set(&a), 1),
        (&tau, &a, Validation::Set(&b), 0),
        (&lbfgs(HeadKind::Lws), &a, Validation::Holdout(0.2), 1),
    ] {
        assert_eq!(fitted(recipe, set, validation, Some(&crt)).1, n, "{recipe:?} {validation:?}");
    }
    // The same rows are held out again, and others.
    let (crt, _) = fitted(&lbfgs(HeadKind::Crt), &a, Validation::Holdout(0.2), None);
    for (share, n) in [(0.2, 0), (0.3, 1)] {
        assert_eq!(fitted(&tau, &a, Validation::Holdout(share), Some(&crt)).1, n, "{share}");
    }
}

#[test]
fn a_row_whose_logits_are_not_finite_is_named_with_its_set_and_the_setting() {
    let (set, other) = (small_set(0.0), small_set(0.1));
    let dot = recipe(HeadKind::Ncm, value!({"transform": "none", "metric": "dot"}));
    let with_large_row = |set: &FeatureSet, row: usize| {
        let mut features = set.features().to_owned();
        features.row_mut(row).fill(3e38);
        FeatureSet::new(features, set.labels().to_vec(), 4).unwrap()
    };
    let error = |recipe: &Recipe, set: &FeatureSet, validation, base: Option<&Head>| {
        fit_plainly(recipe, set, validation, base).unwrap_err().to_string()
    };
    let large = with_large_row(&other, 7);
    let found = error(&dot, &set, Validation::Set(&large), None);
    assert_eq!(found, "the logits of row 7 of the validation set are not finite");
    let (_, held_out) = stratified_holdout(set.labels(), 4, 0.2, 0);
    let row = held_out[3];
    let found = error(&dot, &with_large_row(&set, row as usize), Validation::Holdout(0.2), None);
    assert_eq!(found, format!("the logits of row {row} of the feature set are not finite"));

    let weight = Array2::eye(4) * 1e-10;
    let tiny = Head::new(HeadKind::Joint, Parameters::Linear { weight, bias: None, scale: None }, None);
    let tau = recipe(HeadKind::TauNorm, value!({"tau": [5], "bias": "drop"}));
    let found = error(&tau, &set, Validation::Set(&other), Some(&tiny));
    assert_eq!(found, "the logits of row 0 of the validation set are not finite at tau 5");
}

/// What one value of tau needs for each class would be too much for many values at once.
#[test]
fn many_settings_of_many_classes_are_tried_in_groups_with_the_same_result() {
    const N_CLASSES: usize = 140_000;
    let features = Array2::from_shape_fn((6, 2), |(row, column)| (row * 7 + column * 5) as f32 % 4.0 - 1.0);
    let set = FeatureSet::new(features.clone(), vec![0, 1, 2, 0, 1, 2], N_CLASSES).unwrap();
    let other = FeatureSet::new(features * 2.0, vec![0, 1, 2, 0, 1, 2], N_CLASSES).unwrap();
    let weight = Array2::from_shape_fn((N_CLASSES, 2), |(class, column)| 1.0 / (1 + class + column) as f32);
    let base = Head::new(HeadKind::Joint, Parameters::Linear { weight, bias: None, scale: None }, None);
    let curve = |params: Value| {
        let task = FitTask {
            recipe: &recipe(HeadKind::TauNorm, params),
            features: &set,
            validation: Validation::Set(&other),
            base: Some(&base),
            train_counts: None,
            cache_bytes: 0,
        };
        let mut told = Vec::new();
        let mut on_progress = |progress: Option<equipoise::fit::Progress>| {
            told.extend(progress.map(|progress| progress.done));
            ControlFlow::Continue(())
        };
        let fitted = fit(&task, &mut PlainEngine::default(), &mut Watch::new(&mut on_progress)).unwrap();
        assert!(told.windows(2).all(|pair| pair[0] <= pair[1]) && told.last() == Some(&1.0), "{told:?}");
        (fitted.report.unwrap().curve.unwrap(), fitted.head)
    };
    let tau: Vec<f64> = (0..=10).map(|step| f64::from(step) / 2.0).collect();
    let (all, head) = curve(value!({"tau": tau}));
    let by_bias = ["drop", "keep", "scale"].map(|bias| curve(value!({"tau": tau, "bias": bias})).0);
    assert_eq!(all, by_bias.concat());

    let evaluate = |settings: &[Settings]| {
        let (samples, mut nobody) = (Samples::all(&other), |_| ControlFlow::Continue(()));
        let (shots, mut watch) = ([Shot::Unknown; N_CLASSES], Watch::new(&mut nobody));
        let evaluations = measure(&samples, &head, settings, &shots, &mut PlainEngine::default(), &mut watch);
        evaluations.unwrap().iter().map(|evaluation| evaluation.report()).collect::<Vec<_>>()
    };
    let tried = [0.0, 5.0].map(|tau| Settings { tau: Some(tau), ..*head.initial_settings() });
    assert_eq!(evaluate(&tried), tried.map(|settings| evaluate(&[settings])).concat());
}
