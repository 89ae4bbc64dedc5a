"""Curves of a figure over the cost, as small SVG files without fonts or scripts of their own."""

from __future__ import annotations

from collections.abc import Sequence

from website.measured import Table, names_of

WIDE, TALL = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 118, 30, 38
SHADES = {"own": "#e8590c", "ToMe": "#3b5bdb", "AiluRus": "#0c8599", "smaller image": "#868e96", "random": "#c0a16b"}
DASHED = 'stroke="#adb5bd" stroke-dasharray="4 3"'
Points = Sequence[tuple[float, float]]


def curve(table: Table, name: str, label: str) -> str:
    """Returns the picture of one strategy in one table; empty if it was not measured there.

    Each line joins the settings that no cheaper one of the same strategy beats; dots are all its settings.
    """
    own = names_of(name)
    series = {label: table.of(*own)} if table.of(*own) else {}
    if not series:
        return ""
    for other, words in (
        ("tome", "ToMe"),
        ("ailurus", "AiluRus"),
        ("resolution", "smaller image"),
        ("random", "random"),
    ):
        if other not in own and table.of(other):
            series[words] = table.of(other)
    lines = {words: front([(c, v) for c, v, _ in rows]) for words, rows in series.items()}
    low = min(min(v for _, v in line) for line in lines.values())
    high = max([max(v for _, v in line) for line in lines.values()] + ([table.dense] if table.dense else []))
    low, high = _rounded(low, high)
    first = max(0.0, min(c for line in lines.values() for c, _ in line) - 0.03)

    def at(cost: float, value: float) -> tuple[float, float]:
        """The place of a cost and a figure in the picture."""
        x = LEFT + (cost - first) / (1.0 - first) * (WIDE - LEFT - RIGHT)
        y = TALL - BOTTOM - (max(value, low) - low) / (high - low) * (TALL - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_frame(table.title), *_axes(at, low, high, first, table.metric)]
    if table.dense is not None:
        y = at(1, table.dense)[1]
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDE - RIGHT}" y2="{y}" {DASHED}/>')
        y = TOP + 24 + 17 * len(lines)
        parts.append(f'<line x1="{WIDE - RIGHT + 8}" y1="{y - 3}" x2="{WIDE - RIGHT + 22}" y2="{y - 3}" {DASHED}/>')
        parts.append(_words(WIDE - RIGHT + 27, y + 1, "dense", "#868e96"))
    for cost, value, _ in series[label]:
        if value >= low:
            x, y = at(cost, value)
            parts.append(f'<circle cx="{x}" cy="{y}" r="1.6" fill="{SHADES["own"]}" opacity="0.35"/>')
    for number, (words, points) in reversed(list(enumerate(lines.items()))):
        shade = SHADES["own"] if words == label else SHADES[words]
        parts.append(_line([at(*p) for p in points], shade, 2.6 if words == label else 1.6))
        y = TOP + 24 + 17 * number
        parts.append(f'<rect x="{WIDE - RIGHT + 8}" y="{y - 5}" width="14" height="4" fill="{shade}"/>')
        parts.append(_words(WIDE - RIGHT + 27, y + 1, words, shade))
    return "\n".join([*parts, "</svg>\n"])


def front(points: Points) -> list[tuple[float, float]]:
    """The points that have a higher figure than every cheaper one, by cost."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def _rounded(low: float, high: float) -> tuple[float, float]:
    low = max(low, high - 0.5)  # one useless setting must not flatten all the others
    step = 0.1 if high - low > 0.3 else 0.05 if high - low > 0.12 else 0.02
    return step * int(low / step), step * -int(-high / step - 0.999)


def _frame(title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {TALL}" width="{WIDE}" height="{TALL}" '
        f'font-family="sans-serif" font-size="11" role="img" aria-label="{title}">\n'
        f'<rect width="{WIDE}" height="{TALL}" rx="6" fill="#ffffff"/>\n' + _words(LEFT, 18, title, "#343a40", size=12)
    )


def _axes(at, low: float, high: float, first: float, metric: str) -> list[str]:
    parts = []
    step = 0.1 if high - low > 0.35 else 0.05 if high - low > 0.12 else 0.02
    value = low
    while value <= high + 1e-9:
        y = at(1, value)[1]
        shown = f"{value:.2f}" if metric.endswith("_cosine") else f"{100 * value:.0f}"
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDE - RIGHT}" y2="{y}" stroke="#f1f3f5"/>')
        parts.append(_words(LEFT - 6, y + 4, shown, "#868e96", anchor="end"))
        value += step
    for cost in (0.2, 0.4, 0.6, 0.8, 1.0):
        if cost >= first:
            parts.append(_words(at(cost, low)[0], TALL - BOTTOM + 15, f"{cost:g}", "#868e96", anchor="middle"))
    middle = (LEFT + WIDE - RIGHT) / 2
    parts.append(_words(middle, TALL - 8, "share of the dense model's multiply-adds", "#868e96", anchor="middle"))
    return parts


def _line(points: Points, shade: str, width: float) -> str:
    if len(points) == 1:
        (x, y), *_ = points
        return f'<circle cx="{x}" cy="{y}" r="{width + 1}" fill="{shade}"/>'
    there = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{there}" fill="none" stroke="{shade}" stroke-width="{width}" stroke-linejoin="round"/>'


def _words(x: float, y: float, words: str, shade: str, *, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x}" y="{y}" fill="{shade}" text-anchor="{anchor}" font-size="{size}">{words}</text>'
