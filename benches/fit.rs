//! What fits cost at the size of ImageNet-LT, beside what the machine can do and beside numpy and torch on the same files.
//!
//! ```text
//! make bench-fit                  all of it; makes an environment with numpy and torch for the other side
//! cargo bench --bench fit         this side alone
//! EQUIPOISE_BENCH_ROWS=20000 ...  a smaller set
//! ```
//!
//! The features are made here from a seed: rectified noise around class means, with the class counts of a long tail of
//! imbalance 256. They are written to `.work/bench-fit/` once, about 1 GB, and read from there by both sides.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufWriter,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use equipoise::{
    config::cores,
    dataset::FeatureSet,
    fit::{Engine, FitTask, Random, Recipe, Rows, Validation, Watch, fit},
    heads::{Head, HeadKind, Parameters, TensorView, Weights, write_safetensors},
    onnx::{self, DeviceChoice, FitEngine, SessionOptions},
};
use ndarray::{Array1, Array2};
use serde_json::{Value, json};

const DIM: usize = 2048;
const N_CLASSES: usize = 1000;
const IMBALANCE: f64 = 256.0;

fn main() {
    onnx::init(None).unwrap();
    let n_rows: usize = std::env::var("EQUIPOISE_BENCH_ROWS").map_or(115_846, |rows| rows.parse().unwrap());
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".work/bench-fit");
    std::fs::create_dir_all(&folder).unwrap();
    let train_file = folder.join(format!("train-{n_rows}.safetensors"));
    let val_file = folder.join("val-20000.safetensors");
    make(&train_file, n_rows, IMBALANCE, 1);
    make(&val_file, 20_000, 1.0, 2);
    let open = |file: &Path| FeatureSet::read(file, Some(N_CLASSES), 1 << 36).unwrap();
    let (train, val) = (open(&train_file), open(&val_file));
    let gigabytes = (train.num_rows() * DIM * 4) as f64 / 1e9;
    println!("{} x {DIM} features ({gigabytes:.2} GB), {N_CLASSES} classes, {} cores", train.num_rows(), cores());

    let options = SessionOptions { device: DeviceChoice::Cpu, threads: cores(), ..SessionOptions::default() };
    let mut engine = FitEngine::new(&options).unwrap();
    let mut random = Random::new(0, 9);
    let weight = Array2::from_shape_fn((N_CLASSES, DIM), |_| (random.unit() - 0.5) as f32 / 20.0);
    let weights = Weights::new(weight.clone(), equipoise::heads::FeatureMap::Identity, false);
    let bias = Some(Array1::zeros(N_CLASSES));
    let base = Head::new(HeadKind::Joint, Parameters::Linear { weight, bias, scale: None }, None);

    let mut rows = Vec::new();
    let mut row = |what: &str, seconds: f64, beside: &str, of: f64| {
        println!("{what}: {seconds:.2} s; {:.2} of {beside}", seconds / of);
        rows.push((what.to_owned(), seconds));
    };
    let sum = best_of(3, || _ = std::hint::black_box(plain_sum(&train)));
    row("plain sum of the array", sum, "itself", sum);
    let product = best_of(2, || products(&mut engine, &train, &weights));
    row("one matrix product, training set", product, "itself", product);
    let product_of_val = best_of(2, || products(&mut engine, &val, &weights));
    row("one matrix product, validation set", product_of_val, "itself", product_of_val);
    let mut run = |what: &str, method: HeadKind, params: Value, validation: Validation<'_>, times: usize| {
        let recipe = Recipe::new(method, params.as_object().unwrap().clone()).unwrap();
        let task = FitTask {
            recipe: &recipe,
            features: &train,
            validation,
            base: Some(&base),
            shots: None,
            cache_bytes: 768 << 20,
        };
        let before = memory("VmRSS");
        reset_peak();
        let seconds = best_of(times, || {
            fit(&task, &mut engine, &mut Watch::new(&mut |_| ControlFlow::Continue(()))).unwrap();
        });
        println!("  {what}: at most {:.2} GB beside what was there", memory("VmHWM") - before);
        seconds
    };
    for transform in ["none", "l2n", "cl2n"] {
        let params = json!({"transform": transform, "metric": "l2"});
        let seconds = run("ncm", HeadKind::Ncm, params, Validation::None, 2);
        row(&format!("NCM, {transform}"), seconds, "the plain sum", sum);
    }
    let tau: Vec<f64> = (0..=100).map(|step| f64::from(step) / 50.0).collect();
    let params = json!({"tau": tau, "bias": "drop"});
    let seconds = run("tau", HeadKind::TauNorm, params, Validation::Set(&val), 2);
    row("tau-norm, 101 values, validation set, with the report", seconds, "its product", product_of_val);
    let pass = best_of(2, || _ = std::hint::black_box(passes(train.num_rows())));
    row("five passes over the logits", pass, "the product", product);
    let seconds = run("lws", HeadKind::Lws, json!({"epochs": 5}), Validation::None, 1);
    row("LWS, 5 epochs", seconds, "product and five passes", product + pass);
    let seconds = run("crt", HeadKind::Crt, json!({"epochs": 10}), Validation::None, 1);
    row("cRT, 10 epochs", seconds, "20 products", 20.0 * product);

    let Some(python) = std::env::var_os("EQUIPOISE_BENCH_PYTHON") else {
        println!("numpy and torch were not run: `make bench-fit` does");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/fit_baseline.py");
    let output = Command::new(python).arg(script).arg(&train_file).arg(&val_file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let others: BTreeMap<String, f64> = serde_json::from_slice(&output.stdout).unwrap();
    println!("\n| what | equipoise s | other s | other is | ratio |\n|---|---|---|---|---|");
    for (what, seconds) in rows {
        for (other, other_seconds) in &others {
            if let Some(name) = other.strip_prefix(&format!("{what}: ")) {
                println!("| {what} | {seconds:.2} | {other_seconds:.2} | {name} | {:.2} |", seconds / other_seconds);
            }
        }
    }
}

fn best_of(times: usize, mut work: impl FnMut()) -> f64 {
    let mut timed = || {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..times).map(|_| timed()).fold(f64::INFINITY, f64::min)
}

/// Reads every value once, on all cores.
fn plain_sum(set: &FeatureSet) -> f32 {
    let features = set.features();
    let values = features.as_slice().unwrap();
    std::thread::scope(|scope| {
        let parts: Vec<_> = values
            .chunks(values.len().div_ceil(cores()))
            .map(|part| {
                scope.spawn(move || {
                    let mut sums = [0.0f32; 16];
                    for chunk in part.chunks_exact(16) {
                        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
                    }
                    sums.iter().sum::<f32>()
                })
            })
            .collect();
        parts.into_iter().map(|part| part.join().unwrap()).sum()
    })
}

fn products(engine: &mut FitEngine, set: &FeatureSet, weights: &Weights) {
    for start in (0..set.num_rows()).step_by(2048) {
        let end = (start + 2048).min(set.num_rows());
        engine.raw_scores(set.features(), Rows::Range { start, end }, weights).unwrap();
    }
}

/// Five times a softmax over as many logits as the set has: what LWS does with its scores, at the least.
fn passes(n_rows: usize) -> f32 {
    let mut logits = vec![0.5f32; 2048 * N_CLASSES];
    let mut total = 0.0;
    for _ in 0..5 * n_rows.div_ceil(2048) {
        let rows: Vec<&mut [f32]> = logits.chunks_mut(N_CLASSES * 2048_usize.div_ceil(cores())).collect();
        total += std::thread::scope(|scope| {
            let parts: Vec<_> = rows
                .into_iter()
                .map(|rows| {
                    scope.spawn(move || {
                        let mut total = 0.0;
                        for row in rows.chunks_mut(N_CLASSES) {
                            let max = row.iter().copied().fold(f32::MIN, f32::max);
                            let sum: f32 = row.iter().map(|x| (x - max).exp()).sum();
                            row.iter_mut().for_each(|x| *x = 0.9 * *x + 0.1 / sum);
                            total += sum;
                        }
                        total
                    })
                })
                .collect();
            parts.into_iter().map(|part| part.join().unwrap()).sum::<f32>()
        });
    }
    total
}

/// Writes a set whose class counts fall off exponentially, unless it is there.
fn make(file: &Path, n_rows: usize, imbalance: f64, seed: u64) {
    if file.exists() {
        return;
    }
    let share = |class: usize| imbalance.powf(-(class as f64) / (N_CLASSES - 1) as f64);
    let total: f64 = (0..N_CLASSES).map(share).sum();
    // The largest class last: it takes the rest, or gives way.
    let mut labels: Vec<i64> = (0..N_CLASSES)
        .rev()
        .flat_map(|class| vec![class as i64; (share(class) / total * n_rows as f64).round().max(1.0) as usize])
        .collect();
    labels.resize(n_rows, 0);
    let mut random = Random::new(seed, 0);
    random.shuffle(&mut labels);
    let mut of_means = Random::new(0, 1);
    let means: Vec<f32> = (0..N_CLASSES * DIM).map(|_| of_means.unit() as f32).collect();
    let mut features = Vec::with_capacity(n_rows * DIM);
    for &label in &labels {
        let mean = &means[label as usize * DIM..(label as usize + 1) * DIM];
        features.extend(mean.iter().map(|mean| (mean + 3.0 * (random.unit() as f32 - 0.5)).max(0.0)));
    }
    let tensors = [
        ("features".to_owned(), TensorView::F32(&features, vec![n_rows, DIM])),
        ("labels".to_owned(), TensorView::I64(&labels, vec![n_rows])),
    ];
    let temporary = file.with_extension("tmp");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary).unwrap());
    write_safetensors(&mut out, &BTreeMap::new(), &tensors.into()).unwrap();
    drop(out);
    std::fs::rename(temporary, file).unwrap();
}

/// A line of `/proc/self/status`, in GB; 0 where there is none.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1))
        .map_or(0.0, |kilobytes| kilobytes.parse::<f64>().unwrap() / 1e6)
}

/// Makes the peak start from what is there now.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
