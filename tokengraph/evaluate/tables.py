"""Writes a report as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tokengraph.evaluate.row import Row

Skipped = Sequence[tuple[str, str]]
SCORES = ("top1", "top5", "miou", "biou", "miou_refit", "biou_refit", "probe_as_is", "probe_mapped", "probe_refit")
FIDELITY = ("agreement", "kl", "class_cosine", "class_worst", "patch_cosine", "patch_worst")
TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mIoU",
    "biou": "boundary IoU",
    "miou_refit": "mIoU, probe fitted again",
    "biou_refit": "boundary IoU, fitted again",
    "probe_as_is": "probe as it is",
    "probe_mapped": "probe, features mapped",
    "probe_refit": "probe fitted again",
    "agreement": "agreement",
    "kl": "KL",
    "class_cosine": "class cos",
    "class_worst": "worst 5 %",
    "patch_cosine": "patch cos",
    "patch_worst": "worst 5 %",
}


def to_json(rows: Sequence[Row], skipped: Skipped, facts: Mapping[str, Any]) -> str:
    """Returns the report as JSON, with ``null`` for numbers that are not finite."""
    data = {"facts": dict(facts), "skipped": skipped, "rows": [asdict(row) for row in rows]}
    return json.dumps(_plain(data), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def to_csv(rows: Sequence[Row]) -> str:
    """Returns one line a setting, with the names of :class:`tokengraph.evaluate.row.Row` and ``_low``, ``_high``."""
    lines = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "name": row.name,
        "kind": row.kind,
        "reason": row.reason,
        "cost": row.cost,
        "gmacs": row.gmacs,
    }
    for name, value in row.metrics.items():
        line[name] = value
        if name in row.intervals:
            line[f"{name}_low"], line[f"{name}_high"] = row.intervals[name]
        if name in row.differences:
            d = row.differences[name]
            line |= {f"{name}_diff": d.value, f"{name}_diff_low": d.low, f"{name}_diff_high": d.high, f"{name}_p": d.p}
    for kind, times in row.ms.items():
        line[f"{kind}_ms"] = times[0]
    line["time"] = row.speed[0] if row.speed else None
    line["over_ideal"] = row.over_ideal[0] if row.over_ideal else None
    line["peak_bytes"] = row.peak
    return line


def to_markdown(every: Sequence[Row], skipped: Skipped, facts: Mapping[str, Any]) -> str:
    """Returns tables of scores, fidelity and cost, then failed settings, skipped images and the facts."""
    rows = [row for row in every if not row.reason]
    text = [f"# {facts.get('model', 'model')} on {facts.get('data', 'images')}", ""]
    scores = [name for name in SCORES if any(name in row.metrics for row in rows)]
    if scores:
        header = ["setting", "cost"] + [c for s in scores for c in (TITLES[s], "against dense")]
        text += _table(header, [[_name(r), _share(r), *(c for s in scores for c in _score(r, s))] for r in rows])
        text += [
            "",
            "Brackets: 95 % bootstrap intervals over images, paired against dense; p: McNemar's exact test.",
            "",
        ]
    fidelity = [name for name in FIDELITY if any(name in row.metrics for row in rows)]
    if fidelity:
        body = [[_name(r), _share(r), *(_number(r.metrics.get(f)) for f in fidelity)] for r in rows]
        text += [*_table(["setting", "cost", *(TITLES[f] for f in fidelity)], body), ""]
    body = [[_name(r), _share(r), *_costs(r)] for r in rows]
    text += _table(["setting", "cost", "GMACs", "ms a batch", "time", "over ideal", "peak MB"], body)
    text += ["", "Time is a share of the dense model's, median and quartiles of interleaved rounds."]
    if failed := [row for row in every if row.reason]:
        text += ["", *_table(["setting", "failed"], [[_name(r), r.reason.replace("|", "/")] for r in failed])]
    if skipped:
        text += ["", f"{len(skipped)} images could not be read and count nowhere:", ""]
        text += [f"* {key}: {reason}" for key, reason in skipped[:20]]
        text += [f"* and {len(skipped) - 20} more, in report.json"] if len(skipped) > 20 else []
    text += ["", *(f"* {key}: {value}" for key, value in facts.items())]
    return "\n".join(text) + "\n"


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _name(row: Row) -> str:
    name = row.name.replace("|", "/")
    return f"**{name}**" if row.kind == "dense" else f"{name} (control)" if row.kind == "control" else name


def _share(row: Row) -> str:
    return "-" if row.cost is None else f"{row.cost:.2f}{'' if row.counted else ' + choice'}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _score(row: Row, name: str) -> tuple[str, str]:
    if name not in row.metrics:
        return "-", "-"
    low, high = row.intervals.get(name, (float("nan"),) * 2)
    own = f"{100 * row.metrics[name]:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    if name not in row.differences:
        return own, "-"
    d = row.differences[name]
    p = "" if d.p is None else f", p = {d.p:.2g}"
    return own, f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]{p}"


def _costs(row: Row) -> list[str]:
    def spread(values: tuple[float, float, float] | None) -> str:
        return "-" if values is None else f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"

    times = row.ms.get("attached") or row.ms.get("plain")
    gmacs = "-" if row.gmacs is None else f"{row.gmacs:.3g}"
    peak = "-" if row.peak is None else f"{row.peak / 2**20:.3g}" if row.peak < 2**27 else f"{row.peak / 2**20:.0f}"
    return [gmacs, "-" if times is None else f"{times[0]:.1f}", spread(row.speed), spread(row.over_ideal), peak]
