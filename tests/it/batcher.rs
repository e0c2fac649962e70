//! What a worker makes of a backbone that fails, with images of any size: who is to blame, and what becomes of the session.

use std::{
    io::Cursor,
    sync::Arc,
    time::{Duration, Instant},
};

use equipoise::{
    batcher::{
        Backbone, Backbones, BatchError, BatchLimits, Batcher, Inputs, Occupancy, Output, Outputs, Rebuild, Wanted,
    },
    metrics::Metrics,
    onnx::{self, Features, OnnxError},
    preprocess::{DecodeLimits, Preprocessor},
};

use crate::onnx::{on_cpu, read_model};

/// Gives ones, but for the runs that it is told to fail in, counted from 1.
struct Ones {
    fails_in: fn(usize) -> bool,
    n_runs: usize,
}

impl Backbone for Ones {
    fn run(&mut self, _: &[f32], n: usize, _: usize, _: usize) -> Result<Features, OnnxError> {
        self.n_runs += 1;
        match (self.fails_in)(self.n_runs) {
            true => Err(OnnxError::OutputShape { found: Vec::new(), n, feature_dim: 1 }),
            false => Features::from_host(vec![1.0; n], n, 1),
        }
    }
}

/// A batcher for images of any size, whose one worker gets a backbone that works when its own is broken.
fn batcher(backbone: impl Backbone + 'static, max_batch_size: usize) -> Batcher {
    let backbones =
        Backbones { each: vec![Box::new(backbone)], lone: None, image_size: None, occupancy: Occupancy::default() };
    let rebuild: Rebuild = Arc::new(|| Ok(Box::new(Ones { fails_in: |_| false, n_runs: 0 })));
    let config = serde_json::from_str(r#"{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}"#).unwrap();
    let preprocessor = Preprocessor::new(config, DecodeLimits::default()).unwrap();
    // All that is asked for at once is one batch.
    let limits = BatchLimits { queue_capacity: 64, max_batch_size, max_queue_delay: Duration::from_secs(20) };
    Batcher::start(backbones, rebuild, preprocessor, None, limits, Metrics::new().of_model("m")).unwrap()
}

async fn ask(batcher: &Batcher, side: u32, gray: u8) -> Result<Outputs, BatchError> {
    let mut png = Cursor::new(Vec::new());
    let image = image::GrayImage::from_pixel(side, side, image::Luma([gray]));
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let inputs = Inputs::Images(vec![png.into_inner().into()]);
    batcher.run(inputs, Wanted::Features, Instant::now() + Duration::from_secs(100)).await
}

#[tokio::test]
async fn a_session_that_never_worked_is_made_again() {
    let batcher = batcher(Ones { fails_in: |_| true, n_runs: 0 }, 1);
    assert!(matches!(ask(&batcher, 8, 0).await, Err(BatchError::Model { .. })));
    ask(&batcher, 8, 0).await.unwrap();
}

#[tokio::test]
async fn a_run_that_fails_once_is_not_the_fault_of_the_images_size() {
    let batcher = batcher(Ones { fails_in: |run| run == 2, n_runs: 0 }, 1);
    ask(&batcher, 8, 0).await.unwrap();
    assert!(matches!(ask(&batcher, 9, 0).await, Err(BatchError::Model { .. })));
    ask(&batcher, 9, 0).await.unwrap();
}

#[tokio::test]
async fn an_image_whose_features_are_no_numbers_costs_the_others_of_its_batch_nothing() {
    // The logarithm of what is darker than gray is none.
    let backbone = onnx::Backbone::load(&read_model("backbone_log.onnx"), None, &on_cpu()).unwrap();
    let batcher = batcher(backbone, 3);
    let (bright, dark, other) = tokio::join!(ask(&batcher, 8, 255), ask(&batcher, 8, 0), ask(&batcher, 8, 200));
    assert!(matches!(dark, Err(BatchError::NotFinite { row: 0 })), "{dark:?}");
    for answer in [bright, other] {
        let rows = answer.unwrap().rows;
        assert!(matches!(&rows[..], [Output::Features(row)] if row.iter().all(|value| value.is_finite())), "{rows:?}");
    }
}
