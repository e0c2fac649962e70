//! Reports as tables. Shares are in percent; a group without a sample has none.

use crate::{
    dataset::Shot,
    evaluate::{Report, TauPoint},
};

/// The groups that a report tells apart.
const GROUPS: [Shot; 3] = [Shot::Many, Shot::Medium, Shot::Few];

/// A share in percent.
fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.2}", 100.0 * share))
}

/// Accuracies and calibration, and how many classes and samples of the set they are of.
pub(super) fn table(report: &Report, shots: &[Shot]) -> String {
    let accuracies = &report.accuracies;
    let ece = &report.ece_by_shot;
    let of_group = |shot: Shot| report.per_class.iter().filter(move |class| shots.get(class.class) == Some(&shot));
    let row = |name: &str, all: String, macro_: String, groups: [String; 3]| {
        let mut row = vec![name.to_owned(), all, macro_];
        row.extend(groups);
        row
    };
    let [no_macro, no_groups] = [String::new(), String::new()];
    columns(&[
        row("percent", "all".into(), "macro".into(), GROUPS.map(|shot| shot.as_str().to_owned())),
        row(
            "accuracy",
            percent(accuracies.micro),
            percent(accuracies.macro_),
            [accuracies.many, accuracies.medium, accuracies.few].map(percent),
        ),
        row("top-5", percent(report.top5), no_macro.clone(), [0; 3].map(|_| no_groups.clone())),
        row("ECE", percent(report.ece), no_macro.clone(), [ece.many, ece.medium, ece.few].map(percent)),
        row(
            "classes",
            report.per_class.len().to_string(),
            no_macro.clone(),
            GROUPS.map(|shot| of_group(shot).count().to_string()),
        ),
        row(
            "samples",
            report.n.to_string(),
            no_macro,
            GROUPS.map(|shot| of_group(shot).map(|class| class.n).sum::<u64>().to_string()),
        ),
    ])
}

/// A line for each tau; `best` is marked.
pub(super) fn curve(points: &[TauPoint], best: usize) -> String {
    let names = ["tau", "all", "macro", "many", "medium", "few", "top-5", "ECE", ""];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    for (index, TauPoint { tau, report }) in points.iter().enumerate() {
        let accuracies = &report.accuracies;
        let mut row = vec![tau.to_string()];
        let shares = [accuracies.micro, accuracies.macro_, accuracies.many, accuracies.medium, accuracies.few];
        row.extend(shares.into_iter().chain([report.top5, report.ece]).map(percent));
        row.push(if index == best { "best macro" } else { "" }.to_owned());
        rows.push(row);
    }
    columns(&rows)
}

/// The pairs of classes that were taken for each other most often; nothing if none was.
pub(super) fn confusions(report: &Report) -> String {
    if report.confusions.is_empty() {
        return String::new();
    }
    let mut rows = vec![["class", "taken for", "times", "of"].map(str::to_owned).to_vec()];
    for confusion in &report.confusions {
        let n = report.per_class.iter().find(|class| class.class == confusion.class).map_or(0, |class| class.n);
        let row = [confusion.class as u64, confusion.predicted as u64, confusion.n, n];
        rows.push(row.map(|number| number.to_string()).to_vec());
    }
    columns(&rows)
}

/// Lines whose columns stand below each other: the first to the left, the others to the right.
fn columns(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            line.push_str(&if column == 0 { format!("{cell:width$}") } else { format!("  {cell:>width$}") });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Evaluation;
    use crate::heads::Prediction;

    /// Of two classes, one many-shot and one few-shot: two samples of the first right, one of the second taken for it.
    fn report(shots: &[Shot]) -> Report {
        let mut evaluation = Evaluation::new(shots);
        for label in [0, 0, 1] {
            evaluation.add(label, &[Prediction { class: 0, probability: 0.75, logit: 1.0 }]);
        }
        evaluation.report()
    }

    #[test]
    fn a_group_without_a_sample_has_no_share() {
        let shots = [Shot::Many, Shot::Few];
        let expected = "\
percent     all  macro    many  medium    few
accuracy  66.67  50.00  100.00       -   0.00
top-5     66.67
ECE        8.33          25.00       -  75.00
classes       2              1       0      1
samples       3              2       0      1
";
        assert_eq!(table(&report(&shots), &shots), expected);
    }

    #[test]
    fn a_line_is_marked() {
        let shots = [Shot::Many, Shot::Few];
        let points = [0.0, 0.1].map(|tau| TauPoint { tau, report: report(&shots) });
        let expected = "\
tau    all  macro    many  medium   few  top-5   ECE
0    66.67  50.00  100.00       -  0.00  66.67  8.33  best macro
0.1  66.67  50.00  100.00       -  0.00  66.67  8.33
";
        assert_eq!(curve(&points, 0), expected);
        assert_eq!(confusions(&points[0].report), "class  taken for  times  of\n1              0      1   1\n");
    }
}
