//! A comparison as a picture: bars, one panel for each figure.

use std::fmt::Write;

use crate::report::{Comparison, Measured};

const WIDTH: f64 = 880.0;
const PANEL: f64 = 280.0;
const BAR: f64 = 18.0;
const STEP: f64 = 26.0;
const TOP: f64 = 64.0;
const NAME: f64 = 72.0;
/// Beside the longest bar, for its number.
const NUMBER: f64 = 52.0;

/// Throughput and p99 at the most connections, and memory.
pub(crate) fn svg(comparison: &Comparison) -> String {
    let height = TOP + STEP * comparison.servers.len() as f64 + 12.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"14\" font-weight=\"bold\">{}, {} cores</text>\n",
        comparison.model, comparison.cores
    );
    let loaded = comparison.servers[0].closed.len() - 1;
    let connections = comparison.servers[0].closed[loaded].concurrency;
    let mut add = |index: u8, title: &str, figure: &dyn Fn(&Measured) -> f64| {
        panel(&mut out, 16.0 + f64::from(index) * (PANEL + 8.0), title, &comparison.servers, figure);
    };
    let at = format!("{connections} connections");
    add(0, &format!("images/s, {at}"), &|server| server.closed[loaded].load.per_second);
    add(1, &format!("p99 in ms, {at}"), &|server| server.closed[loaded].load.p99_ms);
    add(2, "resident memory in MB", &|server| server.resident_bytes as f64 / 1e6);
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, left: f64, title: &str, servers: &[Measured], figure: &dyn Fn(&Measured) -> f64) {
    let most = servers.iter().map(figure).fold(0.0, f64::max);
    let bars = left + NAME;
    writeln!(out, "<text x=\"{left}\" y=\"48\">{title}</text>").unwrap();
    for (index, server) in servers.iter().enumerate() {
        let (value, top) = (figure(server), TOP + STEP * index as f64);
        let (width, baseline) = (value / most * (PANEL - NAME - NUMBER), top + 13.0);
        // The first is the one that this is about.
        let colour = if index == 0 { "#0b7285" } else { "#adb5bd" };
        let number = if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        writeln!(out, "<text x=\"{left}\" y=\"{baseline}\">{}</text>", server.server.name()).unwrap();
        writeln!(out, "<rect x=\"{bars}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>")
            .unwrap();
        writeln!(out, "<text x=\"{:.1}\" y=\"{baseline}\">{number}</text>", bars + width + 5.0).unwrap();
    }
}
