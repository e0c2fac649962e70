//! What a device with memory of its own makes different: a batch may not fit it, and how much it holds is told.

use super::Backbone;
use crate::{
    metrics::ModelMetrics,
    onnx::{DeviceMemory, Features, OnnxError},
};

/// Runs a batch `[n, 3, height, width]`; one that does not fit the device's memory is split in halves, down to single images.
/// What was split has its features on the host.
///
/// # Errors
/// Those of the backbone; that memory has run out only where one image alone does not fit.
pub(super) fn run(
    backbone: &mut dyn Backbone,
    pixels: &[f32],
    n: usize,
    (height, width): (usize, usize),
    metrics: &ModelMetrics,
) -> Result<Features, OnnxError> {
    match backbone.run(pixels, n, height, width) {
        Err(error) if error.is_out_of_memory() => in_halves(backbone, pixels, n, (height, width), metrics, error),
        result => result,
    }
}

/// Runs in halves what did not fit, as the error says. Each is brought to the host by its own run, so that it holds nothing of the
/// device while the next one runs.
fn in_halves(
    backbone: &mut dyn Backbone,
    pixels: &[f32],
    n: usize,
    (height, width): (usize, usize),
    metrics: &ModelMetrics,
    error: OnnxError,
) -> Result<Features, OnnxError> {
    metrics.out_of_memory.inc();
    let n_first = n.div_ceil(2);
    let Some((first, second)) = pixels.split_at_checked(n_first * 3 * height * width).filter(|_| 1 < n) else {
        return Err(error);
    };
    tracing::warn!(%error, batch_size = n, "a batch does not fit the device's memory, and is run in halves");
    let mut half = |pixels: &[f32], n: usize| match backbone.run_sparing(pixels, n, height, width) {
        Err(error) if error.is_out_of_memory() => in_halves(backbone, pixels, n, (height, width), metrics, error),
        result => result,
    };
    let first = half(first, n_first)?;
    first.join(&half(second, n - n_first)?)
}

/// What a worker has added to the gauges of its model, which are the sums over all of its workers.
#[derive(Debug, Default)]
pub(super) struct Told(Option<DeviceMemory>);

impl Told {
    /// Puts what a session holds now, nothing without one on a device, in the place of what was told before.
    pub(super) fn tell(&mut self, held: Option<DeviceMemory>, metrics: &ModelMetrics) {
        let before = std::mem::replace(&mut self.0, held);
        if before == held {
            return;
        }
        let (old, new) = (before.unwrap_or_default(), held.unwrap_or_default());
        let add = |kind: &str, old: u64, new: u64| {
            let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
            metrics.device_memory(kind).add(signed(new) - signed(old));
        };
        add("in_use", old.in_use, new.in_use);
        add("reserved", old.reserved, new.reserved);
        if old.limit.is_some() || new.limit.is_some() {
            add("limit", old.limit.unwrap_or(0), new.limit.unwrap_or(0));
        }
    }
}

/// What a worker holds while its session is made again: the broken one is gone by then, since a device may not hold both. It is
/// given nothing to run.
pub(super) struct NoSession;

impl Backbone for NoSession {
    fn run(&mut self, _: &[f32], _: usize, _: usize, _: usize) -> Result<Features, OnnxError> {
        Features::from_host(Vec::new(), 0, 0)
    }
}
