"""A bar chart as SVG: a panel for each group of classes, a cluster for each head, a bar for each sampler."""

from collections.abc import Mapping
from html import escape

COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c")
PANEL_WIDTH, PANEL_HEIGHT, GAP, MARGIN = 430, 190, 60, 44
BAR = 16


def bars(
    values: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]],
    groups: Mapping[str, str], clusters: Mapping[str, str], series: Mapping[str, str], title: str,
) -> str:
    """Draws `values[cluster][series][group]`, mean and standard error in percent. The mappings give each key's caption."""
    width, height = 2 * PANEL_WIDTH + GAP + 2 * MARGIN, 2 * PANEL_HEIGHT + GAP + 3 * MARGIN
    parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for i, (key, caption) in enumerate(groups.items()):
        left, top = MARGIN + (i % 2) * (PANEL_WIDTH + GAP), MARGIN + (i // 2) * (PANEL_HEIGHT + GAP)
        panel = {cluster: {name: values[cluster][name][key] for name in series} for cluster in clusters}
        parts += [f'<g transform="translate({left} {top})">', *draw_panel(panel, caption, clusters), "</g>"]
    for i, caption in enumerate(series.values()):
        x, y = MARGIN + 170 * i, height - 34
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{COLOURS[i]}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 10}">{escape(caption)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f"<title>{escape(title)}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def draw_panel(panel: dict[str, dict[str, tuple[float, float]]], caption: str, clusters: Mapping[str, str]) -> list[str]:
    """One panel: the axis from 0 to the next ten above the highest bar, the bars and their errors."""
    highest = max(mean + (error if error == error else 0) for bars_of in panel.values() for mean, error in bars_of.values())
    top = 10 * max(1, -(-highest // 10))
    parts = [f'<text x="0" y="-10" font-weight="bold">{escape(caption)}, % right</text>']
    for tick in range(0, int(top) + 1, 20 if top > 50 else 10):
        y = PANEL_HEIGHT * (1 - tick / top)
        parts.append(f'<path d="M0 {y:.1f}H{PANEL_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end" fill="#555">{tick}</text>')
    step = PANEL_WIDTH / len(panel)
    for c, (cluster, bars_of) in enumerate(panel.items()):
        start = c * step + (step - BAR * len(bars_of)) / 2
        for i, (mean, error) in enumerate(bars_of.values()):
            x, y = start + i * BAR, PANEL_HEIGHT * (1 - mean / top)
            size = f'width="{BAR - 2}" height="{PANEL_HEIGHT - y:.1f}"'
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{COLOURS[i]}"/>')
            if error == error:  # a single seed has none
                low, high = (PANEL_HEIGHT * (1 - (mean + sign * error) / top) for sign in (-1, 1))
                parts.append(f'<path d="M{x + BAR / 2 - 1:.1f} {low:.1f}V{high:.1f}" stroke="#222"/>')
        place = f'x="{(c + 0.5) * step:.1f}" y="{PANEL_HEIGHT + 16}"'
        parts.append(f'<text {place} text-anchor="middle">{escape(clusters[cluster])}</text>')
    return parts
