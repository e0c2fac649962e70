//! `--tau`: one value, several, or a range.

use crate::{evaluate::MAX_TAUS, heads::MAX_TAU};

/// What a range is rounded to, so that its values are those that one would write down.
const DIGITS: f64 = 1e12;

/// The values of tau that are asked for, at least one, each from 0 to 5.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Taus(pub(super) Vec<f64>);

/// Reads `0.5`, `0,0.5,1` or `START:STOP:STEP`, the stop included.
pub(super) fn taus(text: &str) -> Result<Taus, String> {
    let values = match text.contains(':') {
        true => range(text)?,
        false => text.split(',').map(number).collect::<Result<_, _>>()?,
    };
    match values.len() {
        0..=MAX_TAUS => Ok(Taus(values)),
        n => Err(format!("{n} values of tau, and at most {MAX_TAUS} are taken")),
    }
}

fn number(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(tau) if (0.0..=MAX_TAU).contains(&tau) => Ok(tau),
        _ => Err(format!("`{}`: tau is a number from 0 to {MAX_TAU}", text.trim())),
    }
}

fn range(text: &str) -> Result<Vec<f64>, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [start, stop, step] = parts[..] else { return Err("a range is START:STOP:STEP, such as 0:2:0.1".to_owned()) };
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?);
    if step <= 0.0 || stop < start {
        return Err("a range goes from START up to STOP, by a STEP above 0".to_owned());
    }
    // A thousandth of a step is more than rounding takes away.
    let n_steps = ((stop - start) / step + 1e-3).floor();
    if n_steps >= MAX_TAUS as f64 {
        return Err(format!("{} values of tau, and at most {MAX_TAUS} are taken", n_steps + 1.0));
    }
    let value = |index: usize| (((start + index as f64 * step) * DIGITS).round() / DIGITS).min(stop);
    Ok((0..=n_steps as usize).map(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_its_ends_and_plain_values() {
        let Taus(values) = taus("0:2:0.1").expect("a range");
        let expected: Vec<f64> = (0..=20).map(|step| f64::from(step) / 10.0).collect();
        assert_eq!(values, expected);
        assert_eq!(values.iter().map(f64::to_string).nth(3).as_deref(), Some("0.3"));
        let check = |text: &str, expected: &[f64]| assert_eq!(taus(text), Ok(Taus(expected.to_vec())), "{text}");
        check("0:1:0.3", &[0.0, 0.3, 0.6, 0.9]);
        check("1:1:0.5", &[1.0]);
        check("0:5:2.5", &[0.0, 2.5, 5.0]);
        check("0.7", &[0.7]);
        check("1, 0,0.5", &[1.0, 0.0, 0.5]);
    }

    #[test]
    fn what_is_no_tau_is_refused() {
        let check = |text: &str, part: &str| {
            let error = taus(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        };
        check("5.1", "from 0 to 5");
        check("-0.1", "from 0 to 5");
        check("NaN", "from 0 to 5");
        check("", "from 0 to 5");
        check("0,,1", "``: tau is a number");
        check("0:6:1", "`6`: tau is a number");
        check("0:1", "START:STOP:STEP");
        check("0:1:0", "by a STEP above 0");
        check("1:0:0.1", "START up to STOP");
        check("0:5:1e-300", "at most 1000");
        check("0:5:0.005", "1001 values");
    }
}
