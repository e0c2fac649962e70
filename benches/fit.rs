//! What fits cost at the size of ImageNet-LT, or of iNaturalist 2018, beside what the machine can do and beside numpy and torch on
//! the same files.
//!
//! ```text
//! make bench-fit                  all of it; makes an environment with numpy and torch for the other side
//! cargo bench --bench fit         this side alone
//! cargo bench --bench fit -- cRT  only what has that in its name
//! EQUIPOISE_BENCH_SIZE=inaturalist-2018 ...  8142 classes and 437,513 rows: hours on two cores
//! EQUIPOISE_BENCH_ROWS=20000 ...  a smaller set
//! ```
//!
//! The features are made here from a seed: rectified noise around class means, with class counts that fall off exponentially from the
//! largest to the smallest of the data set that the size is of. They are written to `.work/bench-fit/` once, about 1 GB of the smaller
//! size, and read from there by both sides, which take turns, for the speed of a machine drifts: of short work each time the best
//! time counts, and long fits alternate by epochs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Instant,
};

use equipoise::{
    config::cores,
    dataset::FeatureSet,
    fit::{Engine, FitTask, Progress, Random, Recipe, Rows, Validation, Watch, fit},
    heads::{Head, HeadKind, Parameters, TensorView, Weights, write_safetensors},
    onnx::{self, DeviceChoice, FitEngine, SessionOptions},
};
use ndarray::{Array1, Array2};
use serde_json::{Value, json};

const DIM: usize = 2048;

/// Of a data set, and of its features.
struct Size {
    name: &'static str,
    n_rows: usize,
    n_val_rows: usize,
    n_classes: usize,
    /// Rows of the largest class for each of the smallest.
    imbalance: f64,
}

const SIZES: [Size; 2] = [
    Size { name: "imagenet-lt", n_rows: 115_846, n_val_rows: 20_000, n_classes: 1000, imbalance: 256.0 },
    Size { name: "inaturalist-2018", n_rows: 437_513, n_val_rows: 24_426, n_classes: 8142, imbalance: 500.0 },
];

impl Size {
    /// The one that the environment asks for.
    fn asked() -> &'static Self {
        let Ok(name) = std::env::var("EQUIPOISE_BENCH_SIZE") else { return &SIZES[0] };
        let names = SIZES.each_ref().map(|size| size.name).join(" or ");
        SIZES.iter().find(|size| size.name == name).unwrap_or_else(|| panic!("EQUIPOISE_BENCH_SIZE is {names}"))
    }
}

fn main() {
    onnx::init(None).unwrap();
    let &Size { name, n_rows, n_val_rows, n_classes, imbalance } = Size::asked();
    let n_rows: usize = std::env::var("EQUIPOISE_BENCH_ROWS").map_or(n_rows, |rows| rows.parse().unwrap());
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".work/bench-fit");
    std::fs::create_dir_all(&folder).unwrap();
    let train_file = folder.join(format!("{name}-train-{n_rows}.safetensors"));
    let val_file = folder.join(format!("{name}-val-{n_val_rows}.safetensors"));
    make(&train_file, n_rows, n_classes, imbalance, 1);
    make(&val_file, n_val_rows, n_classes, 1.0, 2);
    let open = |file: &Path| FeatureSet::read(file, Some(n_classes), 1 << 36).unwrap();
    let (train, val) = (open(&train_file), open(&val_file));
    let gigabytes = (train.num_rows() * DIM * 4) as f64 / 1e9;
    println!("{} x {DIM} features ({gigabytes:.2} GB), {n_classes} classes, {} cores", train.num_rows(), cores());

    let options = SessionOptions { device: DeviceChoice::Cpu, threads: cores(), ..SessionOptions::default() };
    let mut engine = FitEngine::new(&options).unwrap();
    let mut random = Random::new(0, 9);
    let weight = Array2::from_shape_fn((n_classes, DIM), |_| (random.unit() - 0.5) as f32 / 20.0);
    let weights = Weights::new(weight.clone(), equipoise::heads::FeatureMap::Identity, false);
    let bias = Some(Array1::zeros(n_classes));
    let base = Head::new(HeadKind::Joint, Parameters::Linear { weight, bias, scale: None }, None);

    let only = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    let mut table = Table { only, others: Others::start(&train_file, &val_file, n_classes), rows: Vec::new() };
    let sum = table.row("plain sum of the array", &[], 3, || _ = std::hint::black_box(plain_sum(&train)));
    let product = table.row("one matrix product, training set", &[], 2, || products(&mut engine, &train, &weights));
    let product_of_val =
        table.row("one matrix product, validation set", &[], 2, || products(&mut engine, &val, &weights));
    let mut engine = FitEngine::new(&options).unwrap();
    let mut run = |method: HeadKind, params: &Value, validation: Validation<'_>, watch: &mut Watch<'_>| {
        let recipe = Recipe::new(method, params.as_object().unwrap().clone()).unwrap();
        let task = FitTask {
            recipe: &recipe,
            features: &train,
            validation,
            base: Some(&base),
            train_counts: None,
            cache_bytes: 4 << 30,
        };
        fit(&task, &mut engine, watch).unwrap();
    };
    for transform in ["none", "l2n", "cl2n"] {
        let params = json!({"transform": transform, "metric": "l2"});
        table.row(&format!("NCM, {transform}"), &[("plain sums", sum)], 3, || {
            run(HeadKind::Ncm, &params, Validation::None, &mut Watch::new(&mut |_| ControlFlow::Continue(())));
        });
    }
    let tau: Vec<f64> = (0..=100).map(|step| f64::from(step) / 50.0).collect();
    let params = json!({"tau": tau, "bias": "drop"});
    table.row("tau-norm, 101 values, validation set, with the report", &[("products", product_of_val)], 3, || {
        run(HeadKind::TauNorm, &params, Validation::Set(&val), &mut Watch::new(&mut |_| ControlFlow::Continue(())));
    });
    let pass = table
        .row("five passes over the logits", &[], 2, || _ = std::hint::black_box(passes(train.num_rows(), n_classes)));
    let params = json!({"epochs": 5});
    table.row("LWS, 5 epochs", &[("products", product), ("a product and five passes", product + pass)], 2, || {
        run(HeadKind::Lws, &params, Validation::None, &mut Watch::new(&mut |_| ControlFlow::Continue(())));
    });
    let params = json!({"epochs": 10});
    table.epochs("cRT, 10 epochs", &[("times 20 products", 20.0 * product)], |watch| {
        run(HeadKind::Crt, &params, Validation::None, watch);
    });
    table.print();
}

/// What was measured here and by the others.
struct Table {
    /// Only what has this in its name.
    only: String,
    others: Others,
    rows: Vec<Row>,
}

struct Row {
    what: String,
    seconds: f64,
    /// By whom, and theirs.
    others: Vec<(String, f64)>,
}

impl Table {
    /// Does the work `times` times, and in turn with it that of the others: the best times count. Gives back ours.
    fn row(&mut self, what: &str, limits: &[(&str, f64)], times: usize, mut work: impl FnMut()) -> f64 {
        if !what.contains(&self.only) {
            return f64::NAN;
        }
        let mut others: Vec<(String, f64)> =
            self.others.of(what).into_iter().map(|name| (name, f64::INFINITY)).collect();
        let mut best = f64::INFINITY;
        let before = memory("VmRSS");
        reset_peak();
        for _ in 0..times {
            let start = Instant::now();
            work();
            best = best.min(start.elapsed().as_secs_f64());
            for (name, best) in &mut others {
                *best = best.min(self.others.run(name));
            }
        }
        self.add(what, limits, best, others, memory("VmHWM") - before);
        best
    }

    /// A fit whose epochs are done in turn with those of the others; the sums count.
    fn epochs(&mut self, what: &str, limits: &[(&str, f64)], fit: impl FnOnce(&mut Watch<'_>)) {
        if !what.contains(&self.only) {
            return;
        }
        let mut others: Vec<(String, f64)> = self.others.of(what).into_iter().map(|name| (name, 0.0)).collect();
        let (mut epoch, mut seconds) = (0, 0.0);
        let before = memory("VmRSS");
        reset_peak();
        let mut since = Instant::now();
        let mut on_progress = |progress: Option<Progress>| {
            if let Some(now) = progress.map(|progress| progress.epoch).filter(|&now| now != epoch) {
                seconds += since.elapsed().as_secs_f64();
                epoch = now;
                others.iter_mut().for_each(|(name, sum)| *sum += self.others.run(name));
                since = Instant::now();
            }
            ControlFlow::Continue(())
        };
        fit(&mut Watch::new(&mut on_progress));
        seconds += since.elapsed().as_secs_f64();
        self.add(what, limits, seconds, others, memory("VmHWM") - before);
    }

    fn add(&mut self, what: &str, limits: &[(&str, f64)], ours: f64, others: Vec<(String, f64)>, gigabytes: f64) {
        let limits = limits.iter().filter(|(_, limit)| limit.is_finite());
        let limits: String = limits.map(|(name, limit)| format!("; {:.2} {name}", ours / limit)).collect();
        println!("{what}: {ours:.3} s{limits}; at most {gigabytes:.2} GB beside what was there");
        self.rows.push(Row { what: what.to_owned(), seconds: ours, others });
    }

    fn print(&self) {
        println!("\n| what | equipoise s | other s | other is | ratio |\n|---|---|---|---|---|");
        for Row { what, seconds, others } in &self.rows {
            for (name, theirs) in others {
                let who = name.rsplit(": ").next().unwrap();
                println!("| {what} | {seconds:.3} | {theirs:.3} | {who} | {:.2} |", seconds / theirs);
            }
        }
        if self.others.process.is_none() {
            println!("numpy and torch were not run: `make bench-fit` does");
        }
    }
}

/// The same work by others: a process that does what it is told, one line at a time, and says how long it took.
struct Others {
    process: Option<(Child, BufReader<ChildStdout>)>,
    /// "what: by whom".
    names: Vec<String>,
}

impl Others {
    fn start(train_file: &Path, val_file: &Path, n_classes: usize) -> Self {
        let Some(python) = std::env::var_os("EQUIPOISE_BENCH_PYTHON") else {
            return Self { process: None, names: Vec::new() };
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/fit_baseline.py");
        let mut command = Command::new(python);
        command.arg(script).arg(train_file).arg(val_file).arg(n_classes.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let names = answer(&mut stdout);
        Self { process: Some((child, stdout)), names }
    }

    fn of(&self, what: &str) -> Vec<String> {
        self.names
            .iter()
            .filter(|name| name.strip_prefix(what).is_some_and(|by| by.starts_with(": ")))
            .cloned()
            .collect()
    }

    fn run(&mut self, name: &str) -> f64 {
        let (child, stdout) = self.process.as_mut().unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{name}").unwrap();
        answer(stdout)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.process {
            // Its input ends, and so does it.
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }
}

fn answer<T: serde::de::DeserializeOwned>(stdout: &mut BufReader<ChildStdout>) -> T {
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
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
fn passes(n_rows: usize, n_classes: usize) -> f32 {
    let mut logits = vec![0.5f32; 2048 * n_classes];
    let mut total = 0.0;
    for _ in 0..5 * n_rows.div_ceil(2048) {
        let rows: Vec<&mut [f32]> = logits.chunks_mut(n_classes * 2048_usize.div_ceil(cores())).collect();
        total += std::thread::scope(|scope| {
            let parts: Vec<_> = rows
                .into_iter()
                .map(|rows| {
                    scope.spawn(move || {
                        let mut total = 0.0;
                        for row in rows.chunks_mut(n_classes) {
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
fn make(file: &Path, n_rows: usize, n_classes: usize, imbalance: f64, seed: u64) {
    if file.exists() {
        return;
    }
    assert!(n_rows >= n_classes, "{n_rows} rows are too few for {n_classes} classes");
    let share = |class: usize| imbalance.powf(-(class as f64) / (n_classes - 1) as f64);
    let total: f64 = (0..n_classes).map(share).sum();
    // No class is without a row, and the largest comes last: it takes what rounding leaves.
    let of_shares = (n_rows - n_classes) as f64;
    let mut labels: Vec<i64> = (0..n_classes)
        .rev()
        .flat_map(|class| vec![class as i64; 1 + (share(class) / total * of_shares) as usize])
        .collect();
    labels.resize(n_rows, 0);
    let mut random = Random::new(seed, 0);
    random.shuffle(&mut labels);
    let mut of_means = Random::new(0, 1);
    let means: Vec<f32> = (0..n_classes * DIM).map(|_| of_means.unit() as f32).collect();
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
