"""Draws the diagrams of the pages as SVG files: ``python -m website.drawings``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokengraph.schedule import linear, relative, tokens_per_layer

OUT = Path(__file__).resolve().parents[1] / "docs" / "img"
INK, FAINT, BLUE, ORANGE, GREEN, RED = "#343a40", "#868e96", "#3b5bdb", "#e8590c", "#2b8a3e", "#c2255c"
PALE = {BLUE: "#dbe4ff", ORANGE: "#ffe8cc", GREEN: "#d3f9d8", RED: "#ffdeeb", FAINT: "#f1f3f5"}
ARROW = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
)


def main() -> None:
    """Writes every diagram."""
    OUT.mkdir(parents=True, exist_ok=True)
    drawn = {"coarsening": coarsening, "life": life, "block": block, "lift": lift, "schedules": schedules}
    for name, draw in drawn.items():
        (OUT / f"{name}.svg").write_text(draw(), encoding="utf-8")


def coarsening() -> str:
    """Four panels: tokens as a graph, clusters chosen, the coarse graph, features lifted back."""
    clusters = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 1], [3, 3, 3, 3]]
    centres = {0: (0.5, 0.5), 1: (0.75, 2.5), 2: (2.0, 1.0), 3: (3.0, 1.5)}
    shades = [BLUE, ORANGE, GREEN, RED]
    parts = []
    for panel, title in enumerate(("tokens, connected", "1. choose clusters", "2. pool, 3. connect", "4. lift back")):
        left = 20 + 190 * panel
        at = {(r, c): (left + 20 + 38 * c, 58 + 38 * r) for r in range(4) for c in range(4)}
        parts.append(words(left + 77, 28, title, INK, "middle", 14))
        if panel < 2:
            parts += [edge(at[r, c], at[r, c + 1]) for r in range(4) for c in range(3)]
            parts += [edge(at[r, c], at[r + 1, c]) for r in range(3) for c in range(4)]
        if panel == 2:
            there = {k: (left + 20 + 38 * x, 58 + 38 * y) for k, (y, x) in centres.items()}
            parts += [edge(there[a], there[b]) for a, b in ((0, 1), (0, 2), (1, 2), (2, 3), (1, 3))]
            parts += [dot(there[k], 9 + 3 * n, shades[k]) for k, n in ((0, 4), (1, 5), (2, 3), (3, 4))]
        else:
            for (r, c), place in at.items():
                shade = FAINT if panel == 0 else shades[clusters[r][c]]
                parts.append(dot(place, 9, shade) if panel < 3 else square(place, 36, shade))
        if panel < 3:
            parts.append(arrow((left + 158, 115), (left + 186, 115)))
    notes = ("TokenGraph", "Select", "reduce, connect", "lift")
    parts += [words(97 + 190 * i, 222, note, FAINT, "middle", 12) for i, note in enumerate(notes)]
    return picture(770, 240, parts, "Tokens as a graph; clusters chosen; the coarse graph; features lifted back")


def life() -> str:
    """A patch becomes a token, merges twice, passes the head, and returns to its patch."""
    steps = [
        ("photograph", "14 x 14 patches", FAINT),
        ("embedding", "196 tokens of size 1", BLUE),
        ("block 1", "merges inside", ORANGE),
        ("block 2", "weighs by size", ORANGE),
        ("last block", "40 tokens", ORANGE),
        ("head", "each patch once", GREEN),
    ]
    parts = []
    for i, (name, note, shade) in enumerate(steps):
        left = 14 + 148 * i
        parts += box(left, 60, 128, 56, name, note, shade)
        if i:
            parts.append(arrow((left - 20, 88), (left - 2, 88)))
    parts += [words(374, 40, "13 tokens merge", ORANGE, "middle"), words(522, 40, "13 more", ORANGE, "middle")]
    parts += box(162, 164, 128, 44, "map 1", "196 to 183", RED) + box(374, 164, 128, 44, "map 2", "183 to 170", RED)
    parts += [arrow((374, 118), (300, 162)), arrow((522, 118), (456, 162)), arrow((372, 186), (294, 186))]
    parts += box(14, 164, 128, 44, "as_map", "every patch again", GREEN)
    parts += [arrow((160, 186), (146, 186)), arrow((670, 118), (506, 180))]
    parts.append(words(452, 232, "handle.trace stores each map; lift applies them backwards", FAINT, "middle", 12))
    return picture(896, 246, parts, "The life of a token: embedding, merging in blocks, the head, and lifting back")


def block() -> str:
    """The places of a strategy in a block, with a strategy for each."""
    parts = [words(20, 28, "one block", INK, "start", 14)]
    parts += box(190, 70, 150, 54, "attention", "reads keys", BLUE) + box(430, 70, 150, 54, "MLP", "", BLUE)
    parts.append(f'<rect x="170" y="52" width="430" height="90" rx="8" fill="none" stroke="{FAINT}"/>')
    parts += [arrow((60, 97), (188, 97)), arrow((342, 97), (428, 97)), arrow((582, 97), (710, 97))]
    for x, name, who in (
        (115, "before", "Expedite, MPM, ToMA"),
        (385, "inside", "ToMe, ATC, TopK, GTP"),
        (655, "after", "AiluRus, DPC-KNN"),
    ):
        parts += [
            dot((x, 97), 9, ORANGE),
            words(x, 172, name, ORANGE, "middle", 14),
            words(x, 190, who, FAINT, "middle"),
        ]
        parts.append(f'<line x1="{x}" y1="107" x2="{x}" y2="158" stroke="{ORANGE}" stroke-dasharray="3 3"/>')
    parts.append(words(265, 40, "around: fewer tokens inside one module alone", GREEN, "middle"))
    parts.append(f'<rect x="180" y="60" width="170" height="74" rx="8" fill="none" stroke="{GREEN}" stroke-width="2"/>')
    return picture(770, 206, parts, "Places of a strategy: before a block, inside it, after it, and around a module")


def lift() -> str:
    """What ``source``, ``size``, ``lift`` and ``as_map`` lead from and to."""
    parts = box(20, 50, 170, 60, "patches", "[B, H*W]", FAINT) + box(300, 50, 170, 60, "tokens", "[B, n, C]", ORANGE)
    parts += box(580, 20, 170, 48, "rows of patches", "[B, H*W, C]", GREEN)
    parts += box(580, 96, 170, 48, "a map", "[B, C, H, W]", GREEN)
    parts += [arrow((192, 80), (298, 80)), arrow((472, 70), (578, 44)), arrow((472, 90), (578, 120))]
    parts += [words(245, 70, "trace.source(layer)", INK, "middle"), words(520, 44, "trace.lift", INK, "middle")]
    parts += [words(516, 128, "trace.as_map", INK, "middle")]
    parts += [arrow((385, 112), (385, 146)), words(385, 162, "trace.size(layer): patches in each token", INK, "middle")]
    return picture(770, 176, parts, "source leads from patches to tokens, lift and as_map back to patches")


def schedules() -> str:
    """Four schedules as staircases."""
    kinds = [
        ("13", 13, BLUE),
        ("{4: 0.5, 8: 0.25}", {4: 0.5, 8: 0.25}, ORANGE),
        ("relative({3: 0.7, 6: 0.7, 9: 0.7})", relative({3: 0.7, 6: 0.7, 9: 0.7}), GREEN),
        ("linear(13)", linear(13), RED),
    ]
    parts = [words(30, 26, "tokens after each of 12 blocks, from 196", INK, "start", 14)]
    for count in (0, 49, 98, 147, 196):
        y = 210 - 160 * count / 196
        parts += [
            f'<line x1="56" y1="{y}" x2="500" y2="{y}" stroke="#f1f3f5"/>',
            words(48, y + 4, str(count), FAINT, "end"),
        ]
    parts += [words(56 + 37 * n, 228, str(n), FAINT, "middle") for n in range(0, 13, 2)]
    for i, (name, schedule, shade) in enumerate(kinds):
        counts = tokens_per_layer(schedule, depth=12, num_tokens=196)
        there = []
        for layer, count in enumerate(counts[:-1]):
            y = 210 - 160 * count / 196 - 1.2 * i
            there += [(56 + 37 * layer, y), (56 + 37 * (layer + 1), y)]
        there.append((500, 210 - 160 * counts[-1] / 196 - 1.2 * i))
        parts.append(polyline(there, shade))
        parts += [
            f'<rect x="520" y="{52 + 24 * i}" width="16" height="4" fill="{shade}"/>',
            words(544, 58 + 24 * i, name, INK),
        ]
    return picture(770, 240, parts, "Four schedules as staircases")


def picture(wide: int, tall: int, parts: Sequence[str], label: str) -> str:
    """A whole file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" '
        f'font-family="sans-serif" role="img" aria-label="{label}">'
    )
    return "\n".join([head, ARROW, f'<rect width="{wide}" height="{tall}" rx="8" fill="#ffffff"/>', *parts, "</svg>\n"])


def words(x: float, y: float, text: str, shade: str, anchor: str = "start", size: int = 12) -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" fill="{shade}" text-anchor="{anchor}" font-size="{size}">{text}</text>'


def dot(at: tuple[float, float], radius: float, shade: str) -> str:
    """A node."""
    return f'<circle cx="{at[0]:g}" cy="{at[1]:g}" r="{radius:g}" fill="{shade}"/>'


def square(at: tuple[float, float], side: float, shade: str) -> str:
    """A patch around its centre."""
    return (
        f'<rect x="{at[0] - side / 2:g}" y="{at[1] - side / 2:g}" width="{side:g}" height="{side:g}" fill="{shade}"/>'
    )


def edge(a: tuple[float, float], b: tuple[float, float]) -> str:
    """A line between nodes."""
    return f'<line x1="{a[0]:g}" y1="{a[1]:g}" x2="{b[0]:g}" y2="{b[1]:g}" stroke="#adb5bd" stroke-width="2"/>'


def arrow(a: tuple[float, float], b: tuple[float, float]) -> str:
    """An arrow from ``a`` to ``b``."""
    line = f'<line x1="{a[0]:g}" y1="{a[1]:g}" x2="{b[0]:g}" y2="{b[1]:g}"'
    return f'{line} stroke="{INK}" stroke-width="1.6" marker-end="url(#a)"/>'


def polyline(points: Sequence[tuple[float, float]], shade: str) -> str:
    """A line through points."""
    there = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{there}" fill="none" stroke="{shade}" stroke-width="2.4"/>'


def box(x: float, y: float, wide: float, tall: float, name: str, note: str, shade: str) -> list[str]:
    """A box with a name and a note."""
    middle, top = x + wide / 2, y + tall / 2 + (5 if not note else -2)
    frame = f'<rect x="{x}" y="{y}" width="{wide}" height="{tall}" rx="6" fill="{PALE[shade]}" stroke="{shade}"/>'
    named = words(middle, top, name, INK, "middle", 14)
    return [frame, named, words(middle, top + 18, note, INK, "middle", 11)] if note else [frame, named]


if __name__ == "__main__":
    main()
