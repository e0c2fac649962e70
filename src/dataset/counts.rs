//! Training counts and the shots that follow from them.

use serde::{Deserialize, Serialize};

use crate::json::shortened;

/// How many training samples a class had, in the three groups of the long-tail literature.
///
/// # Reference
/// Kang et al., ICLR 2020, section 5.1; the boundaries (more than 100, fewer than 20) are those of the reference code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shot {
    /// More than 100 training samples.
    Many,
    /// 20 to 100 training samples, both included.
    Medium,
    /// Fewer than 20 training samples.
    Few,
    /// The training counts are not known.
    Unknown,
}

impl Shot {
    /// Every shot, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Many, Self::Medium, Self::Few, Self::Unknown];

    /// The shot of a class with `n_train` training samples.
    ///
    /// ```
    /// use equipoise::dataset::Shot;
    /// assert_eq!([101, 100, 20, 19].map(Shot::of), [Shot::Many, Shot::Medium, Shot::Medium, Shot::Few]);
    /// ```
    pub fn of(n_train: u64) -> Self {
        match n_train {
            101.. => Self::Many,
            20..=100 => Self::Medium,
            0..=19 => Self::Few,
        }
    }

    /// The name in answers and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Many => "many",
            Self::Medium => "medium",
            Self::Few => "few",
            Self::Unknown => "unknown",
        }
    }
}

/// What can be wrong with a table of training counts.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CountsError {
    /// The first line is not the header.
    #[error("line 1: expected the header `class,count`, found `{found}`")]
    Header {
        /// The line, without its middle if it is long.
        found: String,
    },
    /// A line is not two non-negative integers.
    #[error("line {line}: expected `class,count` with two non-negative integers, found `{found}`")]
    Row {
        /// Counted from 1.
        line: usize,
        /// The line, without its middle if it is long.
        found: String,
    },
    /// A class stands twice, is missing, or is beyond the number of classes.
    #[error("line {line}: class {class} is {problem}")]
    Class {
        /// Counted from 1.
        line: usize,
        /// The class index of the line.
        class: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Fewer lines than classes.
    #[error("class {class} has no line")]
    Missing {
        /// The first class without a count.
        class: usize,
    },
}

/// Reads a table of training counts: the header `class,count`, then one line for each class in any order.
///
/// # Errors
/// [`CountsError`] names the line, or the first class that has none.
pub fn parse_train_counts(text: &str, num_classes: usize) -> Result<Vec<u64>, CountsError> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let header = lines.next().map_or("", |(_, line)| line.trim_start_matches('\u{feff}'));
    if header != "class,count" {
        return Err(CountsError::Header { found: shortened(header) });
    }
    let mut counts = vec![None; num_classes];
    for (line, row) in lines.filter(|(_, row)| !row.is_empty()) {
        let malformed = || CountsError::Row { line, found: shortened(row) };
        let (class, count) = row.split_once(',').ok_or_else(malformed)?;
        let class: usize = class.trim().parse().map_err(|_| malformed())?;
        let count: u64 = count.trim().parse().map_err(|_| malformed())?;
        match counts.get_mut(class) {
            None => return Err(CountsError::Class { line, class, problem: "beyond the number of classes" }),
            Some(Some(_)) => return Err(CountsError::Class { line, class, problem: "there twice" }),
            Some(slot) => *slot = Some(count),
        }
    }
    counts.into_iter().enumerate().map(|(class, count)| count.ok_or(CountsError::Missing { class })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<Vec<u64>, &str>) {
        let counts = parse_train_counts(text, 2).map_err(|error| error.to_string());
        assert_eq!(counts, expected.map_err(str::to_owned));
    }

    #[test]
    fn counts_come_in_any_order() {
        check("class,count\n1,5\n0,200\n", Ok(vec![200, 5]));
        check("class,count\r\n0, 1\r\n1, 0\r\n\r\n", Ok(vec![1, 0]));
    }

    #[test]
    fn a_wrong_table_names_its_line() {
        check("0,1\n1,2\n", Err("line 1: expected the header `class,count`, found `0,1`"));
        check("class,count\n0,1\n1\n", Err("line 3: expected `class,count` with two non-negative integers, found `1`"));
        check(
            "class,count\n0,-1\n",
            Err("line 2: expected `class,count` with two non-negative integers, found `0,-1`"),
        );
        let long = format!("class,count\n{}\n", "x".repeat(1 << 20));
        for text in [&long, &long[12..]] {
            assert!(parse_train_counts(text, 2).unwrap_err().to_string().len() < 1000);
        }
        check("class,count\n2,1\n", Err("line 2: class 2 is beyond the number of classes"));
        check("class,count\n0,1\n0,1\n", Err("line 3: class 0 is there twice"));
        check("class,count\n0,1\n", Err("class 1 has no line"));
    }

    #[test]
    fn medium_shot_includes_both_thresholds() {
        let shots = [500, 101, 100, 20, 19, 7, 0].map(Shot::of);
        use Shot::{Few, Many, Medium};
        assert_eq!(shots, [Many, Many, Medium, Medium, Few, Few, Few]);
    }
}
