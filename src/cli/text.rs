//! Output for people: what comes from files is made harmless to a terminal.

use std::{borrow::Cow, fmt::Write};

/// `text` with control characters spelt out, so that a label or a file name moves no cursor and paints nothing.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            // Writing to a string does not fail.
            let _ = write!(safe, "{}", c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// `1 image`, `2 images`.
pub(super) fn count(n: usize, noun: &str) -> String {
    let plural = match noun {
        _ if n == 1 => noun.to_owned(),
        noun if noun.ends_with('s') => format!("{noun}es"),
        noun => format!("{noun}s"),
    };
    format!("{n} {plural}")
}

/// Lines of a name and a value, the values below each other.
#[derive(Debug, Default)]
pub(super) struct Facts(Vec<(String, String)>);

impl Facts {
    /// Adds a line.
    pub(super) fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// The lines, each ended and `indent` spaces in.
    pub(super) fn lines(&self, indent: usize) -> String {
        let width = self.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut lines = String::new();
        for (name, value) in &self.0 {
            let line = format!("{:indent$}{name:width$}  {}", "", printable(value));
            lines.push_str(line.trim_end());
            lines.push('\n');
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelt_out() {
        assert_eq!(printable("chat à la crème"), "chat à la crème");
        assert_eq!(printable("a\x1b[31mb\n"), "a\\u{1b}[31mb\\n");
    }

    #[test]
    fn one_is_not_many() {
        let counts = [count(1, "image"), count(2, "image"), count(0, "class"), count(1, "class")];
        assert_eq!(counts, ["1 image", "2 images", "0 classes", "1 class"]);
    }

    #[test]
    fn values_stand_below_each_other() {
        let mut facts = Facts::default();
        facts.add("kind", "crt");
        facts.add("feature dim", "64");
        assert_eq!(facts.lines(2), "  kind         crt\n  feature dim  64\n");
    }
}
