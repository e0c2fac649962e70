//! The log: one line an event on standard error, as text or JSON.

use std::{
    any::Any,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::config::LogFormat;

/// Starts logging what `filter` lets through.
///
/// # Errors
/// If `filter` is no filter.
pub fn init(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    let is_terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse(filter)?)
        .with_writer(move || OneLine { out: io::stderr(), keeps_colours: is_terminal });
    // A second call, from a test, keeps the first logger.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(is_terminal).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    Ok(())
}

/// Writes each event as one line. What callers send stands in errors, and with a line end in it could pass for an event of its
/// own: control characters are spelt out.
struct OneLine<W> {
    out: W,
    /// Colours stay, and no other sequence of a terminal.
    keeps_colours: bool,
}

impl<W: Write> Write for OneLine<W> {
    /// Takes a whole event, as the subscriber writes it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
        let is_harmful = |(at, c): (usize, char)| c.is_control() && !(self.keeps_colours && is_colour(&line[at..]));
        if !line.char_indices().any(is_harmful) {
            self.out.write_all(event)?;
            return Ok(event.len());
        }
        let mut safe = String::with_capacity(event.len());
        for (at, c) in line.char_indices() {
            // Writing to a string does not fail.
            let _ = if is_harmful((at, c)) { write!(safe, "{}", c.escape_default()) } else { safe.write_char(c) };
        }
        safe.push_str(end);
        self.out.write_all(safe.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Whether a text begins with a colour, as the subscriber writes them: the escape of others is spelt out, which it does itself in
/// messages and errors alone.
fn is_colour(text: &str) -> bool {
    let code = text.strip_prefix("\u{1b}[").and_then(|rest| rest.split_once('m'));
    code.is_some_and(|(code, _)| matches!(code.len(), 1 | 2) && code.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_stands_in_it() {
        let written = |event: &str, keeps_colours| {
            let mut out = Vec::new();
            OneLine { out: &mut out, keeps_colours }.write_all(event.as_bytes()).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written("plain, café\n", false), "plain, café\n");
        assert_eq!(written("a\nERROR b\r\u{85}c\td\n", false), "a\\nERROR b\\r\\u{85}c\\td\n");
        assert_eq!(written("\u{1b}[31mERROR\u{1b}[0m\n", true), "\u{1b}[31mERROR\u{1b}[0m\n");
        assert_eq!(written("\u{1b}[2J\u{1b}]0;m\u{1b}\n", true), "\\u{1b}[2J\\u{1b}]0;m\\u{1b}\n");
        assert_eq!(written("\u{1b}[31mERROR\n", false), "\\u{1b}[31mERROR\n");
    }
}
