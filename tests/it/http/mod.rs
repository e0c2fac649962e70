//! The server over HTTP, held to its API.

mod access;
mod accuracy;
mod admin;
mod damage;
mod device_memory;
mod errors;
mod feature_sets;
mod fits;
pub(crate) mod history;
mod inference;
mod lifecycle;
mod lone;
mod metrics;
mod rate_limit;
mod restart;
mod routes;
mod strict;
mod tls;
mod tuning;
mod under_load;

use std::collections::BTreeMap;

use equipoise::heads::{TensorView, write_safetensors};

use crate::app::{CLASSES, DIM};

/// Feature rows that differ from each other and are the same on every run.
pub(crate) fn feature_rows(n: usize) -> Vec<Vec<f32>> {
    let value = |row: usize, column: usize| ((row * 31 + column * 17) % 101) as f32 / 50.0 - 1.0;
    (0..n).map(|row| (0..DIM).map(|column| value(row, column)).collect()).collect()
}

/// A joint head file whose weights differ with `seed`, fitted on these counts.
pub(crate) fn head_file(seed: usize, train_counts: Option<&[i64]>) -> Vec<u8> {
    head_file_of(CLASSES, DIM, seed, train_counts)
}

fn head_file_of(classes: usize, dim: usize, seed: usize, train_counts: Option<&[i64]>) -> Vec<u8> {
    let weight: Vec<f32> =
        (0..classes * dim).map(|i| ((i * 7919 + seed * 104_729) % 211) as f32 / 105.0 - 1.0).collect();
    let metadata = [
        ("format", "equipoise-head/1".to_owned()),
        ("kind", "joint".to_owned()),
        ("classes", classes.to_string()),
        ("feature_dim", dim.to_string()),
        ("transform", "none".to_owned()),
        ("train_prior", "joint".to_owned()),
        ("method", "made by a test".to_owned()),
    ];
    let metadata: BTreeMap<String, String> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut tensors = BTreeMap::from([("weight".to_owned(), TensorView::F32(&weight, vec![classes, dim]))]);
    if let Some(counts) = train_counts {
        tensors.insert("train_counts".to_owned(), TensorView::I64(counts, vec![counts.len()]));
    }
    let mut file = Vec::new();
    write_safetensors(&mut file, &metadata, &tensors).unwrap();
    file
}
