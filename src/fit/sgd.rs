//! The step of SGD.

use multiversion::multiversion;

/// Stochastic gradient descent with momentum and weight decay, as torch has it: no dampening, not Nesterov's.
///
/// ```text
/// d = ∇ + λθ        v = μv + d        θ = θ − lr·v
/// ```
#[derive(Clone, Debug)]
pub struct Sgd {
    velocity: Vec<f32>,
    momentum: f32,
    weight_decay: f32,
    n_threads: usize,
}

impl Sgd {
    /// For `num_parameters` parameters, with momentum `μ` and weight decay `λ`; `v` starts at 0, so that the first step is `d`.
    /// Many parameters are shared out among `n_threads` threads.
    pub fn new(num_parameters: usize, momentum: f64, weight_decay: f64, n_threads: usize) -> Self {
        let (momentum, weight_decay) = (momentum as f32, weight_decay as f32);
        Self { velocity: vec![0.0; num_parameters], momentum, weight_decay, n_threads: n_threads.max(1) }
    }

    /// One step along a gradient, whose parts are `[num_parameters]` together.
    pub fn step(&mut self, learning_rate: f64, gradient: &[&[f32]], parameters: &mut [f32]) {
        let (momentum, decay, rate) = (self.momentum, self.weight_decay, learning_rate as f32);
        let (mut velocity, mut parameters) = (self.velocity.as_mut_slice(), parameters);
        // The matrix products of a step run on as many threads; so must this, or it is a tenth of the fit.
        let n_threads = self.n_threads;
        std::thread::scope(|scope| {
            for part in gradient {
                let n = if part.len() < 2 * PARAMETERS_AT_ONCE { part.len() } else { part.len().div_ceil(n_threads) };
                for gradient in part.chunks(n.max(1)) {
                    let (these_velocities, these_parameters);
                    (these_velocities, velocity) = velocity.split_at_mut(gradient.len());
                    (these_parameters, parameters) = parameters.split_at_mut(gradient.len());
                    let mut run = move || step(rate, momentum, decay, gradient, these_velocities, these_parameters);
                    if n < part.len() { _ = scope.spawn(run) } else { run() }
                }
            }
        });
    }
}

/// Fewer than twice as many are not worth a thread.
const PARAMETERS_AT_ONCE: usize = 1 << 17;

#[multiversion(targets("x86_64+avx2"))]
fn step(rate: f32, momentum: f32, decay: f32, gradient: &[f32], velocity: &mut [f32], parameters: &mut [f32]) {
    for ((parameter, velocity), gradient) in parameters.iter_mut().zip(velocity).zip(gradient) {
        *velocity = momentum * *velocity + (gradient + decay * *parameter);
        *parameter -= rate * *velocity;
    }
}
