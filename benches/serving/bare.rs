//! The limit: the same decoder, resampler, session and product of the head as the server's, in a loop.

use std::{
    io,
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use equipoise::{
    heads::HeadFile,
    onnx::{Backbone, DeviceChoice, Scorer, ScorerSpec, SessionOptions},
    preprocess::{DecodeLimits, Preprocessor, Tensor},
    registry::ModelDirectory,
};

use crate::{
    client::Client,
    rounds::{Round, closed_loop},
};

/// Decode, resample and run to the raw scores, and nothing else: no softmax, no queue, no HTTP.
pub(crate) struct Bare {
    session: Backbone,
    head: Scorer,
    preprocessor: Preprocessor,
    height: usize,
    width: usize,
}

impl Bare {
    pub(crate) fn load(directory: &ModelDirectory) -> Self {
        let options = SessionOptions { device: DeviceChoice::Cpu, threads: 1, ..SessionOptions::default() };
        let preprocessor = Preprocessor::new(directory.preprocess.clone(), DecodeLimits::default()).unwrap();
        let (height, width) = preprocessor.output_size().unwrap();
        let model = std::fs::read(&directory.backbone).unwrap();
        let mut session = Backbone::load(&model, directory.backbone.parent(), &options).unwrap();
        session.warm_up(&[1], height, width).unwrap();
        let joint = std::fs::read(directory.path.join("heads/joint.safetensors")).unwrap();
        let joint = HeadFile::parse(&joint).unwrap().head;
        let head = Scorer::build(&ScorerSpec::of(joint.weights()), &options).unwrap();
        Self { session, head, preprocessor, height, width }
    }

    /// Decode and resample, and nothing else.
    pub(crate) fn prepare(&self, image: &[u8]) -> Tensor {
        self.preprocessor.run(image).unwrap()
    }

    pub(crate) fn run(&mut self, image: &[u8]) {
        let tensor = self.prepare(image);
        let features = self.session.run(&tensor.pixels, 1, self.height, self.width).unwrap();
        self.head.run(&features).unwrap();
    }
}

/// Runs `images` for a round on one thread for each of `lines`.
pub(crate) fn bare_loop(lines: &mut [Bare], images: &[Vec<u8>], duration: Duration) -> Round {
    let n_threads = lines.len();
    let lines = Mutex::new(lines.iter_mut().collect::<Vec<_>>());
    closed_loop(n_threads, duration, || {
        let bare = lines.lock().unwrap().pop().unwrap();
        Ok(|item: usize| {
            bare.run(&images[item % images.len()]);
            Ok(true)
        })
    })
    .unwrap()
}

/// Latencies of the same images, in the same order.
#[derive(Default)]
pub(crate) struct OneByOne {
    pub(crate) bare_ms: Vec<f64>,
    pub(crate) http_ms: Vec<f64>,
    /// What HTTP took more than bare, image by image.
    pub(crate) added_ms: Vec<f64>,
}

impl OneByOne {
    /// Each list on its own.
    pub(crate) fn sorted(mut self) -> Self {
        for latencies in [&mut self.bare_ms, &mut self.http_ms, &mut self.added_ms] {
            latencies.sort_by(f64::total_cmp);
        }
        self
    }
}

/// Each image bare and then over HTTP, one after the other, so that both see the same machine: on a shared host the speed
/// of a core drifts by a quarter within a second, far more than what is to be measured.
pub(crate) fn one_by_one(
    bare: &mut Bare,
    images: &[Vec<u8>],
    address: SocketAddr,
    requests: &[Vec<u8>],
    duration: Duration,
) -> io::Result<OneByOne> {
    let mut client = Client::connect(address)?;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let (mut result, start) = (OneByOne::default(), Instant::now());
    for item in (0..images.len()).cycle() {
        if start.elapsed() > duration {
            break;
        }
        let begin = Instant::now();
        bare.run(&images[item]);
        let between = Instant::now();
        client.send(&requests[item])?;
        let (alone, served) = (ms(between - begin), ms(between.elapsed()));
        result.bare_ms.push(alone);
        result.http_ms.push(served);
        result.added_ms.push(served - alone);
    }
    Ok(result)
}
