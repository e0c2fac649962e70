//! Limited-memory BFGS with a line search that ensures the strong Wolfe conditions.
//!
//! # Reference
//! Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithms 7.4, 7.5, 3.5 and 3.6.

use std::collections::VecDeque;

/// Pairs of steps and changes of the gradient that are remembered.
const MEMORY: usize = 10;
const MAX_ITERATIONS: usize = 2000;
const MAX_LINE_SEARCH: usize = 30;
/// Of sufficient decrease and of curvature.
const C1: f64 = 1e-4;
const C2: f64 = 0.9;
/// The largest component of the gradient at which the point counts as the optimum. The gradients of a batch are float32
/// numbers, so that much less is noise.
const GRADIENT_TOLERANCE: f64 = 1e-7;
/// How flat the value is where it counts as the optimum that no step lowers it any more, which is how rounding ends most runs:
/// the largest component of the gradient may be this share of the first gradient's, or of 1 if that is less, and a component
/// times its parameter, by which the value changes as that parameter grows by its own size, this much.
///
/// Float32 rounds logits of some tens by some 1e-6, and probabilities with them. At the start those are wrong by about 1, so that
/// at the optimum the rounding of a gradient is some 1e-6 to 1e-5 of the first one, however large the features are. It is much
/// more where all features lie far from 0, and then the end is far from the optimum. The products have no scale, and tell of
/// parameters whose gradients are small beside those of others.
const NO_DECREASE_TOLERANCE: f64 = 1e-4;
/// A relative decrease of the value below this counts as none.
const VALUE_TOLERANCE: f64 = 1e-12;
/// So many iterations without a decrease end it.
const PATIENCE: usize = 5;

/// Where it ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) point: Vec<f64>,
    pub(super) value: f64,
    pub(super) iterations: usize,
    /// The largest component of the gradient there.
    pub(super) gradient_norm: f64,
    pub(super) has_converged: bool,
}

/// A point, its value and its gradient.
#[derive(Clone)]
struct State {
    point: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// The value of a function at a point; its gradient is written.
type Evaluate<'a, E> = dyn FnMut(&[f64], &mut [f64]) -> Result<f64, E> + 'a;

/// Minimises a smooth function from `start`. `evaluate` gives the value, and writes the gradient.
pub(super) fn minimise<E>(start: Vec<f64>, evaluate: &mut Evaluate<'_, E>) -> Result<End, E> {
    let mut gradient = vec![0.0; start.len()];
    let value = evaluate(&start, &mut gradient)?;
    let mut state = State { point: start, value, gradient };
    let first_norm = largest(&state.gradient);
    let mut memory: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::new();
    let mut without_decrease = 0;
    for iteration in 0..MAX_ITERATIONS {
        let gradient_norm = largest(&state.gradient);
        let end = |state: State, has_converged| End {
            point: state.point,
            value: state.value,
            iterations: iteration,
            gradient_norm,
            has_converged,
        };
        if !state.value.is_finite() || !gradient_norm.is_finite() {
            return Ok(end(state, false));
        }
        let is_flat = is_flat(&state, first_norm);
        if gradient_norm <= GRADIENT_TOLERANCE || without_decrease >= PATIENCE {
            return Ok(end(state, gradient_norm <= GRADIENT_TOLERANCE || is_flat));
        }
        let mut direction = two_loops(&state.gradient, &memory);
        let mut slope = dot(&direction, &state.gradient);
        if slope >= 0.0 {
            memory.clear();
            direction = state.gradient.iter().map(|value| -value).collect();
            slope = dot(&direction, &state.gradient);
        }
        let first_step = if memory.is_empty() { (1.0 / dot(&direction, &direction).sqrt()).min(1.0) } else { 1.0 };
        let Some(next) = line_search(&state, &direction, slope, first_step, evaluate)? else {
            if memory.is_empty() {
                // Not even along the gradient is there a decrease that float32 can show.
                return Ok(end(state, is_flat));
            }
            memory.clear();
            without_decrease += 1;
            continue;
        };
        let step: Vec<f64> = next.point.iter().zip(&state.point).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = next.gradient.iter().zip(&state.gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&step, &change);
        if curvature > 1e-10 * dot(&change, &change).max(f64::MIN_POSITIVE) {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back((step, change, 1.0 / curvature));
        }
        let has_decreased = state.value - next.value > VALUE_TOLERANCE * state.value.abs().max(1e-300);
        without_decrease = if has_decreased { 0 } else { without_decrease + 1 };
        state = next;
    }
    let gradient_norm = largest(&state.gradient);
    let State { point, value, .. } = state;
    Ok(End { point, value, iterations: MAX_ITERATIONS, gradient_norm, has_converged: false })
}

/// Whether a point from which no step is found may be the optimum: see [`NO_DECREASE_TOLERANCE`].
fn is_flat(state: &State, first_norm: f64) -> bool {
    let products = state.gradient.iter().zip(&state.point).map(|(gradient, parameter)| (gradient * parameter).abs());
    largest(&state.gradient) <= NO_DECREASE_TOLERANCE * first_norm.max(1.0)
        && products.fold(0.0, f64::max) <= NO_DECREASE_TOLERANCE
}

/// `−H ∇f`, with the inverse Hessian H that the remembered pairs stand for.
fn two_loops(gradient: &[f64], memory: &VecDeque<(Vec<f64>, Vec<f64>, f64)>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|value| -value).collect();
    let mut factors = Vec::with_capacity(memory.len());
    for (step, change, rho) in memory.iter().rev() {
        let factor = rho * dot(step, &direction);
        add(&mut direction, -factor, change);
        factors.push(factor);
    }
    if let Some((_, change, rho)) = memory.back() {
        let scale = 1.0 / (rho * dot(change, change));
        direction.iter_mut().for_each(|value| *value *= scale);
    }
    for ((step, change, rho), factor) in memory.iter().zip(factors.into_iter().rev()) {
        let back = rho * dot(change, &direction);
        add(&mut direction, factor - back, step);
    }
    direction
}

/// A point along `direction` that satisfies the strong Wolfe conditions, or the lowest one found that decreases the value;
/// `None` if there is none.
fn line_search<E>(
    from: &State,
    direction: &[f64],
    slope: f64,
    first_step: f64,
    evaluate: &mut Evaluate<'_, E>,
) -> Result<Option<State>, E> {
    let mut try_step = |step: f64| -> Result<(State, f64), E> {
        let mut point = from.point.clone();
        add(&mut point, step, direction);
        let mut gradient = vec![0.0; point.len()];
        let value = evaluate(&point, &mut gradient)?;
        let slope = dot(&gradient, direction);
        Ok((State { point, value, gradient }, slope))
    };
    // The interval that holds a good step: its better end with value and slope, and its other end.
    let mut low = (0.0, from.value, slope);
    let mut high: Option<(f64, f64)> = None;
    let mut best: Option<State> = None;
    let mut step = first_step;
    for _ in 0..MAX_LINE_SEARCH {
        let (state, slope_here) = try_step(step)?;
        let value = state.value;
        let is_low_enough = value.is_finite() && value <= from.value + C1 * step * slope;
        if is_low_enough && slope_here.abs() <= -C2 * slope {
            return Ok(Some(state));
        }
        if value < from.value && best.as_ref().is_none_or(|best| value < best.value) {
            best = Some(state);
        }
        if !is_low_enough || (value >= low.1 && low.0 > 0.0) {
            high = Some((step, value));
        } else {
            let turns_back = match high {
                None => slope_here >= 0.0,
                Some((other, _)) => slope_here * (other - low.0) >= 0.0,
            };
            if turns_back {
                high = Some((low.0, low.1));
            }
            low = (step, value, slope_here);
        }
        step = match high {
            None => step * 2.5,
            Some((other, value)) => {
                let width = other - low.0;
                if width.abs() <= 1e-12 * step.abs() {
                    break;
                }
                // The minimum of the parabola through both values and the slope at the better end, kept off the ends.
                let curvature = value - low.1 - low.2 * width;
                let inner = if curvature > 0.0 { -0.5 * low.2 * width / curvature } else { 0.5 };
                low.0 + width * if inner.is_finite() { inner.clamp(0.1, 0.9) } else { 0.5 }
            }
        };
    }
    Ok(best)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(target: &mut [f64], factor: f64, values: &[f64]) {
    for (target, value) in target.iter_mut().zip(values) {
        *target += factor * value;
    }
}

/// The largest of the absolute values; NaN if one of them is.
fn largest(values: &[f64]) -> f64 {
    let larger = |largest: f64, value: f64| if value <= largest || largest.is_nan() { largest } else { value };
    values.iter().map(|value| value.abs()).fold(0.0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curved_valley_is_followed_to_its_end() {
        // Rosenbrock's function in ten dimensions; its minimum is at 1.
        let mut evaluate = |x: &[f64], gradient: &mut [f64]| -> Result<f64, std::convert::Infallible> {
            gradient.fill(0.0);
            let mut value = 0.0;
            for i in 0..x.len() - 1 {
                let (a, b) = (1.0 - x[i], x[i + 1] - x[i] * x[i]);
                value += a * a + 100.0 * b * b;
                gradient[i] += -2.0 * a - 400.0 * x[i] * b;
                gradient[i + 1] += 200.0 * b;
            }
            Ok(value)
        };
        let Ok(end) = minimise(vec![-1.0; 10], &mut evaluate);
        assert!(end.has_converged);
        assert!(end.point.iter().all(|x| (x - 1.0).abs() < 1e-6), "{:?}", end.point);
    }

    #[test]
    fn a_quadratic_of_very_unequal_axes_is_solved() {
        let mut evaluate = |x: &[f64], gradient: &mut [f64]| -> Result<f64, std::convert::Infallible> {
            let axis = |i: usize| 10f64.powi(i as i32 - 3);
            let mut value = 0.0;
            for (i, (&x, gradient)) in x.iter().zip(gradient).enumerate() {
                *gradient = axis(i) * (x - i as f64);
                value += 0.5 * axis(i) * (x - i as f64).powi(2);
            }
            Ok(value)
        };
        let Ok(end) = minimise(vec![5.0; 7], &mut evaluate);
        let error = end.point.iter().enumerate().map(|(i, x)| (x - i as f64).abs()).fold(0.0, f64::max);
        assert!(error < 1e-3, "{:?}", end.point);
    }
}
