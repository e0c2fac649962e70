//! What a worker has of a backbone.

use std::{error::Error, sync::Arc};

use crate::onnx::{self, DeviceMemory, Features, OnnxError};

/// What turns pixels into features: an ONNX session, or a stand-in that a test controls.
pub trait Backbone: Send {
    /// Features `[n, D]` of `n` images `[n, 3, height, width]`. What is not finite in a row is that image's matter.
    ///
    /// # Errors
    /// Those of the session.
    fn run(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError>;

    /// The same with as little of a device's memory as can be, in more time; the features come to the host.
    ///
    /// # Errors
    /// Those of the session.
    fn run_sparing(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError> {
        self.run(pixels, n, height, width)
    }

    /// What it holds on a device, if it has memory of its own there.
    fn device_memory(&self) -> Option<DeviceMemory> {
        None
    }
}

impl Backbone for onnx::Backbone {
    fn run(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError> {
        onnx::Backbone::run(self, pixels, n, height, width)
    }

    fn run_sparing(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError> {
        onnx::Backbone::run_sparing(self, pixels, n, height, width)
    }

    fn device_memory(&self) -> Option<DeviceMemory> {
        onnx::Backbone::device_memory(self)
    }
}

/// Makes the session of a worker anew, warmed, when the one that it had is broken. Whatever fails is for the log.
pub type Rebuild = Arc<dyn Fn() -> Result<Box<dyn Backbone>, Box<dyn Error + Send + Sync>> + Send + Sync>;
