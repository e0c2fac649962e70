//! What a request leaves behind: resident memory of the server over many requests.

use equipoise::registry::ModelDirectory;
use serde::Serialize;

use crate::{
    beside::BesideOptions,
    images::Images,
    load::http_requests,
    memory::resident_bytes,
    servers::{Server, ServerProcess, Setting, end_with_ctrl_c},
};

const N_CONNECTIONS: usize = 32;
const N_SAMPLES: usize = 100;
/// Of the requests, before the first sample: pools and caches fill up once.
const WARM_UP: f64 = 0.1;

#[derive(Serialize)]
struct Soak {
    model: String,
    n_requests: usize,
    per_second: f64,
    first_bytes: f64,
    last_bytes: f64,
    slope: Slope,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Slope {
    bytes_per_request: f64,
    standard_error: f64,
}

pub(crate) fn run(options: &BesideOptions) {
    end_with_ctrl_c();
    for model in options.models() {
        let images = Images::of(&model).jpegs;
        let name = ModelDirectory::read(&model).unwrap().name;
        let setting = Setting { models: vec![model], tune: false, python: None };
        let soak =
            soak(name, &ServerProcess::start(Server::Equipoise, &setting, &images[0]), &images, options.requests);
        match options.json {
            true => println!("{}", serde_json::to_string_pretty(&soak).unwrap()),
            false => soak.print(),
        }
    }
}

fn soak(model: String, process: &ServerProcess, images: &[Vec<u8>], n_requests: usize) -> Soak {
    let requests: Vec<_> = images.iter().map(|image| process.request(image)).collect();
    let send = |n| http_requests(process.address, &requests, N_CONNECTIONS, n).unwrap();
    send((n_requests as f64 * WARM_UP) as usize + N_CONNECTIONS);
    let resident = || resident_bytes(process.group()) as f64;
    let n_each = n_requests.div_ceil(N_SAMPLES);
    let (mut samples, mut seconds) = (vec![(0.0, resident())], 0.0);
    for sample in 1..=N_SAMPLES {
        seconds += n_each as f64 / send(n_each).per_second;
        samples.push(((sample * n_each) as f64, resident()));
        eprintln!("{} requests: {:.1} MB", sample * n_each, samples[sample].1 / 1e6);
    }
    let n_requests = n_each * N_SAMPLES;
    Soak {
        model,
        n_requests,
        per_second: n_requests as f64 / seconds,
        first_bytes: samples[0].1,
        last_bytes: samples[N_SAMPLES].1,
        slope: Slope::of(&samples),
    }
}

impl Slope {
    /// Least squares through `(requests, bytes)`.
    fn of(samples: &[(f64, f64)]) -> Self {
        let n = samples.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / n;
        let (mean_x, mean_y) = (mean(|sample| sample.0), mean(|sample| sample.1));
        let sum = |of: &dyn Fn(f64, f64) -> f64| samples.iter().map(|(x, y)| of(x - mean_x, y - mean_y)).sum::<f64>();
        let squares = sum(&|x, _| x * x);
        let bytes_per_request = sum(&|x, y| x * y) / squares;
        let residuals = sum(&|x, y| (y - bytes_per_request * x).powi(2));
        Self { bytes_per_request, standard_error: (residuals / (n - 2.0) / squares).sqrt() }
    }
}

impl Soak {
    fn print(&self) {
        println!("\n| {} | |\n|---|---|", self.model);
        println!("| requests, {N_CONNECTIONS} connections | {} |", self.n_requests);
        println!("| images/s | {:.0} |", self.per_second);
        println!(
            "| resident memory, first and last | {:.1} MB, {:.1} MB |",
            self.first_bytes / 1e6,
            self.last_bytes / 1e6
        );
        let Slope { bytes_per_request, standard_error } = self.slope;
        println!("| bytes per request | {bytes_per_request:.3}, standard error {standard_error:.3} |");
    }
}
