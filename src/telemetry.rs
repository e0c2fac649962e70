//! The log: one line an event on standard error, as text or JSON.

use std::{any::Any, io::IsTerminal};

use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::config::LogFormat;

/// Starts logging what `filter` lets through.
///
/// # Errors
/// If `filter` is no filter.
pub fn init(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    let builder =
        tracing_subscriber::fmt().with_env_filter(EnvFilter::builder().parse(filter)?).with_writer(std::io::stderr);
    // A second call, from a test, keeps the first logger.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    Ok(())
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
