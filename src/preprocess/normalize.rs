//! `(v / 255 - mean) / std`, by table.

use super::config::PreprocessConfigError;

/// The value of every byte, for each channel: torchvision's `ToTensor` and `Normalize` in f32, operation by operation,
/// so the same bits.
#[derive(Debug)]
pub(super) struct Normalize {
    tables: Box<[[f32; 256]; 3]>,
}

impl Normalize {
    pub(super) fn new(mean: [f32; 3], std: [f32; 3]) -> Result<Self, PreprocessConfigError> {
        if let Some(channel) = mean.iter().position(|value| !value.is_finite()) {
            return Err(PreprocessConfigError::Mean { channel, value: mean[channel] });
        }
        if let Some(channel) = std.iter().position(|value| !(value.is_finite() && *value > 0.0)) {
            return Err(PreprocessConfigError::Std { channel, value: std[channel] });
        }
        let table = |c: usize| std::array::from_fn(|v| (v as f32 / 255.0 - mean[c]) / std[c]);
        Ok(Self { tables: Box::new([table(0), table(1), table(2)]) })
    }

    /// Takes a row of RGB bytes apart into a row of each plane.
    pub(super) fn row(&self, row: &[u8], planes: [&mut [f32]; 3]) {
        let [red, green, blue] = &*self.tables;
        let [reds, greens, blues] = planes;
        let outs = reds.iter_mut().zip(greens).zip(blues);
        for (pixel, ((r, g), b)) in row.chunks_exact(3).zip(outs) {
            *r = red[usize::from(pixel[0])];
            *g = green[usize::from(pixel[1])];
            *b = blue[usize::from(pixel[2])];
        }
    }
}
