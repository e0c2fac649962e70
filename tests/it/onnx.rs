//! What the tests of `equipoise::onnx` share.

use std::path::{Path, PathBuf};

use equipoise::onnx::{DeviceChoice, SessionOptions};
use serde::Deserialize;

pub(crate) fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx")
}

#[track_caller]
pub(crate) fn read_model(file: &str) -> Vec<u8> {
    let path = data_dir().join(file);
    std::fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

pub(crate) fn on_cpu() -> SessionOptions {
    SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() }
}

/// The pixels that make_models.py computed its answers for, `[n,3,8,8]`.
pub(crate) fn pixels(n: usize) -> Vec<f32> {
    (0..n * 3 * 8 * 8).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect()
}

pub(crate) fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// So many nodes that the square of them would not end.
pub(crate) const MANY: usize = 100_000;

/// A message, a text or bytes as a field of a protobuf message.
pub(crate) fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut varint = |mut value: usize| {
        while 0x80 <= value {
            bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
    };
    varint(usize::from(number) << 3 | 2);
    varint(content.len());
    bytes.extend(content);
    bytes
}

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) accepted: Vec<Accepted>,
    pub(crate) refused: Vec<Refused>,
    pub(crate) features: Vec<f32>,
}

#[derive(Deserialize)]
pub(crate) struct Accepted {
    pub(crate) file: String,
    pub(crate) note: String,
    pub(crate) tolerance: f32,
    pub(crate) bias: bool,
    pub(crate) n: usize,
    pub(crate) logits: Vec<f32>,
}

#[derive(Deserialize)]
pub(crate) struct Refused {
    pub(crate) file: String,
    pub(crate) message_holds: Vec<String>,
}

pub(crate) fn golden() -> Golden {
    let text = std::fs::read_to_string(data_dir().join("golden.json")).expect("golden.json is there");
    serde_json::from_str(&text).expect("golden.json is valid")
}
