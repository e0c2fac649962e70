//! What a head costs: its matrix product on ONNX Runtime beside the plain one, the `O(C)` rest, and a change of tau.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput};
use equipoise::{
    heads::{BiasMode, Head, HeadKind, Parameters, Scores, Settings},
    onnx::{self, DeviceChoice, Features, Scorer, ScorerSpec, SessionOptions, Transform},
};
use ndarray::{Array1, Array2};

/// Feature dimension and classes: icons30, ImageNet-LT, iNaturalist 2018.
const SIZES: [(usize, usize); 3] = [(96, 30), (2048, 1000), (2048, 8142)];

fn values(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

fn main() {
    onnx::init(None).unwrap();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    for (d, c) in SIZES {
        let weight = Array2::from_shape_vec((c, d), values(c * d)).unwrap();
        let bias = Some(Array1::from_vec(values(c)));
        let spec = ScorerSpec {
            weight: weight.as_slice().unwrap(),
            num_classes: c,
            feature_dim: d,
            transform: Transform::Identity,
            squared_norm: false,
        };
        let options = SessionOptions { device: DeviceChoice::Cpu, threads: 1, ..SessionOptions::default() };
        let mut scorer = Scorer::build(&spec, &options).unwrap();
        let joint = Head::new(HeadKind::Joint, Parameters::Linear { weight: weight.clone(), bias, scale: None }, None);
        let settings = Settings { tau: Some(0.7), bias: Some(BiasMode::Scale), temperature: 1.0 };
        let tau_norm = joint.derive(HeadKind::TauNorm, settings).unwrap();

        let mut group = criterion.benchmark_group("head");
        group.bench_function(BenchmarkId::new("tau change", format!("d={d},c={c}")), |b| {
            b.iter(|| black_box(tau_norm.scoring(black_box(&settings))));
        });
        for batch in [1, 8, 32] {
            let id = format!("d={d},c={c},batch={batch}");
            group.throughput(Throughput::Elements(batch as u64));
            let rows = Array2::from_shape_vec((batch, d), values(batch * d)).unwrap();
            let features = Features::from_host(rows.as_slice().unwrap().to_vec(), batch, d).unwrap();
            group.bench_function(BenchmarkId::new("product, ONNX Runtime", &id), |b| {
                b.iter(|| scorer.run(black_box(&features)).unwrap());
            });
            group.bench_function(BenchmarkId::new("product, plain", &id), |b| {
                b.iter(|| tau_norm.weights().raw_scores(black_box(rows.view())));
            });
            let scores = scorer.run(&features).unwrap();
            let scoring = tau_norm.scoring(&settings);
            let mut logits = Vec::new();
            group.bench_function(BenchmarkId::new("scale, softmax, top 5", &id), |b| {
                b.iter(|| {
                    for raw in scores.raw.chunks_exact(c) {
                        black_box(scoring.predict(Scores { raw, squared_norm: 0.0 }, 5, &mut logits));
                    }
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
