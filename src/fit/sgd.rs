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
}

impl Sgd {
    /// For `num_parameters` parameters, with momentum `μ` and weight decay `λ`; `v` starts at 0, so that the first step is `d`.
    pub fn new(num_parameters: usize, momentum: f64, weight_decay: f64) -> Self {
        Self { velocity: vec![0.0; num_parameters], momentum: momentum as f32, weight_decay: weight_decay as f32 }
    }

    /// One step along `gradient`, `[num_parameters]`.
    pub fn step(&mut self, learning_rate: f64, gradient: &[f32], parameters: &mut [f32]) {
        let (momentum, decay, rate) = (self.momentum, self.weight_decay, learning_rate as f32);
        if parameters.len() < 2 * PARAMETERS_AT_ONCE {
            return step(rate, momentum, decay, gradient, &mut self.velocity, parameters);
        }
        // The matrix products of a step run on all cores; so must this, or it is a tenth of the fit.
        let n = parameters.len().div_ceil(std::thread::available_parallelism().map_or(1, usize::from));
        std::thread::scope(|scope| {
            let parts = gradient.chunks(n).zip(self.velocity.chunks_mut(n)).zip(parameters.chunks_mut(n));
            for ((gradient, velocity), parameters) in parts {
                scope.spawn(move || step(rate, momentum, decay, gradient, velocity, parameters));
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
