"""A page for each strategy, made from its docstrings, the table of provenance and the files of results."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import tokengraph as tg
from tokengraph.cli.strategies import describe
from tokengraph.cost import attention_cost, mlp_cost
from website.curves import curve
from website.measured import RIVALS, ROOT, comparisons, names_of, number, tables, verdict
from website.names import functions_of, reference, strategies
from website.text import canonical, paragraphs, to_markdown

INDEX = ROOT / "docs" / "strategies" / "index.md"
GALLERY = ROOT / "docs" / "gallery"
ACTS = {
    "before": "before a block",
    "inside": "inside a block, between attention and MLP",
    "after": "after a block",
    "ahead": "before a block, by the attention map that the block makes",
    "around": "around one module: fewer tokens inside it alone",
}
READS = {
    "nothing": "nothing of the attention: features alone",
    "norm": "the rows that attention projects",
    "keys": "attention keys; the fused kernel stays",
    "class": "the class token's attention; the fused kernel stays",
    "map": "whole attention maps, in the blocks that reduce",
}
TOKENS, KEPT, CHANNELS, HEAD = 196, 98, 384, 64  # of the costs that pages give: half of a ViT-S/16's at 224 px
BLOCK = attention_cost(TOKENS + 1, CHANNELS).flops + mlp_cost(TOKENS + 1, CHANNELS, 4 * CHANNELS).flops


def page(name: str) -> str:
    """Returns the Markdown of one strategy's page."""
    kind = strategies()[name]
    parts = [
        f"# {kind.__name__}",
        _lead(name),
        f"```python\n{example(name)}\n```",
        *_picture(name),
        "## Definition",
        *_definition(kind),
        "## Parts",
        _facts(name),
        "## Where it comes from",
        *_provenance(kind),
        "## Cost",
        *_costs(kind),
        "## Measured",
        *_measured(name),
        "## Reference",
        *(reference(dotted) for dotted in (f"{kind.__module__}.{kind.__qualname__}", *functions_of(kind))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def pictures(name: str) -> dict[str, str]:
    """Returns the page's curves: SVG by path below ``docs/``."""
    label = strategies()[name].__name__
    drawn = {f"strategies/{name}-{i}.svg": curve(table, name, label) for i, table in enumerate(tables())}
    return {path: svg for path, svg in drawn.items() if svg}


def example(name: str) -> str:
    """Returns a line that attaches the strategy with settings of which its docstring or its flags speak."""
    found = describe(name, strategies()[name])
    select = _made(strategies()[name])
    if select is None:
        return f"tg.attach(model, tg.{found['class']}(...), {{4: 0.5}})"
    if select.own_budget is not None or select.holds or select.stores:
        return (
            f'tg.attach(model, "{name}", {{4: "cluster", 10: "reconstruct"}})'
            if select.own_budget
            else (f'tg.attach(model, "{name}", {{4: 0.5}})')
        )
    try:
        select.bind(CHANNELS, 12, None)
        return f'tg.attach(model, "{name}")'
    except ValueError:
        pass
    return f'tg.attach(model, "{name}", {"{4: 0.5}" if found["needs_grid"] or found["acts"] != "inside" else 13})'


@cache
def provenance() -> dict[str, dict[str, str]]:
    """Returns the rows of the hand-written table of strategies: which tokens become one, and the source, by class."""
    found = {}
    for line in INDEX.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) >= 4:
            for kind in re.findall(r"`(\w+)`", cells[0]):
                found[kind] = {"becomes": cells[1], "acts": cells[2], "source": cells[3]}
    return found


def _made(kind: type[tg.Select]) -> tg.Select | None:
    try:
        return kind()
    except Exception:  # needs arguments
        return None


def _text(docstring: str) -> str:
    """Markdown with links to other pages, for pages below ``strategies/``."""

    def link(shown: str, name: str) -> str:
        """A reference that is resolved if a page documents the object."""
        dotted = canonical(name) or canonical(f"tokengraph.{name}")
        return f'<autoref identifier="{dotted}" optional>`{shown}`</autoref>' if dotted else f"`{shown}`"

    return to_markdown(docstring, link)


def _docs(kind: type) -> list[dict[str, str]]:
    """Sections of the docstrings of the class and of the functions of its module, the class first."""
    objects: list[Any] = [kind, *(_object(dotted) for dotted in functions_of(kind))]
    return [paragraphs(inspect.getdoc(found) or "") for found in objects if found is not None]


def _object(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name, None)


def _lead(name: str) -> str:
    kind = strategies()[name]
    row = provenance().get(kind.__name__)
    first = paragraphs(inspect.getdoc(kind) or "")[""].split("\n\n")[0]
    becomes = f"**Which tokens become one:** {row['becomes']}. It acts {row['acts']}." if row else _text(first)
    others = ", ".join(f"`{alias}`" for alias in names_of(name)[1:])
    return f"{becomes}\n\nBy name: `{name}`{', or ' + others if others else ''}."


def _picture(name: str) -> list[str]:
    file = GALLERY / f"{name}.webp"
    if not file.exists():
        return []
    return [
        f"![Clusters of {name} on three photographs, and its graph](../gallery/{name}.webp)",
        "*Three photographs through a real DINOv2-type ViT-S/14: patches that share a token, in their mean colour "
        "(dark: dropped), and the graph of the tokens that stay. [All strategies](../about/gallery.md).*",
    ]


def _definition(kind: type) -> list[str]:
    texts = [doc[""] for doc in _docs(kind) if doc[""]]
    own = texts[0].split("\n\n") if texts else []
    rest = [text for text in texts[1:2]]
    return [_text(text) for text in (*own, *rest)]


def _facts(name: str) -> str:
    kind = strategies()[name]
    select, found = _made(kind), describe(name, kind)
    rows = {
        "acts": ACTS.get(found["acts"], found["acts"]),
        "reads": READS.get(found["reads"], found["reads"]),
        "clusters stand for": "all their tokens: attention weighs keys by size"
        if found["merges"]
        else "the kept tokens",
        "pools by": getattr(select, "reduction", kind.reduction) if found["merges"] else "",
        "on graphs without a model": "yes" if found["graphs"] else "no",
        "needs the full grid": "yes, so it acts once a model" if found["needs_grid"] else "",
        "number of tokens": "by a threshold, for each image" if found["ragged"] else "",
        "training": training(kind, found["learns"]) or "none needed",
        "options": ", ".join(f"`{key}={value}`" for key, value in found["options"].items()),
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)


def training(kind: type, learns: bool) -> str:
    """Returns what has to be trained before the strategy is of use, or nothing."""
    if learns:
        return "it has parameters to train"
    needed = "needs training" in provenance().get(kind.__name__, {"source": ""})["source"].lower()
    return "the model must be trained with it" if needed else ""


def _provenance(kind: type) -> list[str]:
    row = provenance().get(kind.__name__)
    docs = _docs(kind)
    parts = [f"**Status:** {row['source']}."] if row else []
    for key in ("Source", "Differs"):
        parts += [f"**{key}:** {_text(doc[key])}" for doc in docs if doc.get(key)]
    return list(dict.fromkeys(parts)) or ["Its docstring names no source."]


def _costs(kind: type) -> list[str]:
    parts = list(dict.fromkeys(_text(doc["Cost"]) for doc in _docs(kind) if doc.get("Cost")))
    select = _made(kind)
    try:
        cost = select.cost(TOKENS, KEPT, CHANNELS, HEAD) if select is not None else None
    except (ValueError, TypeError):
        cost = None
    if cost is not None:
        parts.append(
            f"By its own count, choosing {KEPT} of {TOKENS} tokens of {CHANNELS} channels takes "
            f"{cost.flops / 1e6:.2f} million operations, {100 * cost.flops / BLOCK:.1f} % of a block of ViT-S."
        )
    return parts or ["Its cost is not counted."]


def _measured(name: str) -> list[str]:
    found = comparisons(name)
    if not found:
        return ["Not yet measured on real features. `make truth` measures it."]
    parts = [
        verdict(name),
        "A comparison takes the best setting that was measured for each at about a cost, on the same images (a smaller "
        "image may cost 0.05 more, because its sizes come in steps). It looks at the values alone: small differences "
        "are not significant. No GPU was used, and cost is counted, not timed.",
    ]
    drawn = "\n".join(f"![{name}: figures over cost](../{path})" for path in pictures(name))
    parts.append(f'<div class="curves" markdown>\n\n{drawn}\n\n</div>')
    rivals = [r for r in RIVALS if r not in names_of(name)]
    head = ["task", "cost", "setting", "figure", *(RIVALS[r] for r in rivals), "dense"]
    rows = [head, ["---"] * len(head)]
    for c in found:
        metric = c.table.metric
        cells = [f"**{number(v, metric)}**" if r in c.beaten else number(v, metric) for r, v in c.rivals.items()]
        rows.append(
            [c.table.title, f"{c.cost:g}", f"`{c.setting}`", number(c.value, metric), *cells]
            + [number(c.table.dense, metric)]
        )
    parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    parts.append(
        "Bold: a rival whose best figure is lower. "
        "Settings were chosen on the 16 photographs, so those rows flatter all."
    )
    return parts


def overview() -> str:
    """Returns a table of all strategies with the facts that the registry knows, and where each is ahead."""
    rows = [["strategy", "acts", "reads", "graphs", "training", "measured above"], ["---"] * 6]
    for name, kind in strategies().items():
        found = describe(name, kind)
        made = comparisons(name)
        ahead = []
        for rival, label in RIVALS.items():
            against = [c for c in made if c.rivals.get(rival) is not None]
            won = sum(rival in c.beaten for c in against)
            ahead += [f"{label} {won}/{len(against)}"] if won else []
        won = ", ".join(ahead) or ("none" if made else "not measured")
        rows.append(
            [f"[{kind.__name__}]({name}.md)", found["acts"], found["reads"], "yes" if found["graphs"] else "no"]
            + ["yes" if training(kind, found["learns"]) else "no", won]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def linked(markdown: str) -> str:
    """Links the names in the first column of a table to their pages."""
    address = {kind.__name__: f"{name}.md" for name, kind in strategies().items()}

    def link(match: re.Match[str]) -> str:
        """One class of a row's first cell."""
        return f"[{match[0]}]({address[match[1]]})" if match[1] in address else match[0]

    lines = markdown.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| `"):
            first, bar, rest = line[2:].partition(" |")
            lines[i] = "| " + re.sub(r"`(\w+)`", link, first) + bar + rest
    return "\n".join(lines) + "\n"
