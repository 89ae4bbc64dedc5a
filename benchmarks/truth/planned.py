"""The planner against every fixed setting, on images that it did not see, paired; plans also move to other data.

Plans are made on 48 photographs, solar cells or scenes and saved. Then plans and fixed settings of the same cost are
measured on other images: every published schedule, smaller images alone, and smaller images with ToMe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.evaluate.config import DataConfig
from tokengraph.evaluate.images import Arrays, Images, Subset
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.settings import Setting, read_setting
from tokengraph.evaluate.store import fingerprint, slug
from tokengraph.evaluate.transform import to_input
from truth.chosen import nearest_resolution, published
from truth.elpv import Elpv
from truth.library_code import digest
from truth.photographs import crops
from truth.plans import constant, linear, thirds
from truth.results import commit, read, write
from truth.run import ROOT
from truth.scenes import Scenes
from truth.tables import Body, combinations, made, shapes
from truth.tasks import TASKS
from truth.wallpapers import wallpapers

MADE_ON = 48  # images a plan is made on
PRESERVE = "features"
SETS = ("photographs", "elpv", "scenes")
ORIGINS = SETS
VARIED = "scenes"  # the most varied images that plans are made on: photographs with cut-outs
HELD = 96  # solar cells and scenes that plans are measured on
CLOSE = (
    "tome",
    "atc",
    "dpc-knn",
    "mctf",
)  # published ones that came near on photographs; others are measured there only
MORE = {"atc": "thirds", "mctf": "constant", "tofu": "constant"}  # published families beside those of truth.chosen
BY_HAND = ("tome,reduce=mlerp", "dpc-knn", "atc,linkage=complete")  # in every family of many steps
SLACK = 0.05  # a fixed setting may cost this much more than the plan
RESAMPLES = 2000


def parts(name: str, folder: Path, limit: int) -> tuple[Images, Images]:
    """Returns the images to plan on, and at most ``limit`` held-out ones."""
    if name == "photographs":
        return wallpapers(folder, MADE_ON), crops()
    if name == "elpv":
        cells = Elpv(folder)
        drawn = np.random.default_rng(0).permutation(len(cells)).tolist()
        return Subset(cells, drawn[:MADE_ON]), Subset(cells, drawn[MADE_ON : MADE_ON + limit])
    return _scenes(folder, MADE_ON, seed=1), _scenes(folder, limit, seed=0)


def _scenes(folder: Path, count: int, seed: int) -> Arrays:
    """Returns scenes without their masks: what counts is fidelity."""
    scenes = Scenes(folder, count, seed=seed)
    return Arrays(np.stack([np.asarray(scenes.image(i)) for i in range(count)]), name=f"composed scenes of seed {seed}")


def inputs(images: Images, config: DataConfig) -> Tensor:
    """Returns normalised images ``[N, 3, S, S]``."""
    return torch.stack([to_input(images.image(i), config) for i in range(len(images))])


def make_plans(name: str, folder: Path, results: Path, costs: Sequence[float]) -> list[Path]:
    """Makes and saves the plans of a set; those that are there, by the same code, are not made again."""
    made_on, held = parts(name, folder, 16)
    files = [results / "plans" / f"{name}-{PRESERVE}-{cost:g}.json" for cost in costs]
    memory: dict[str, Any] = {}
    source = TASKS["photographs"].source(folder)
    assert source.config is not None
    model: nn.Module | None = None
    for cost, file in zip(costs, files, strict=True):
        if file.exists():
            continue
        model = model if model is not None else source.build(None)
        batch = inputs(made_on, source.config)
        plan = tg.plan(model, batch, held_out=inputs(held, source.config), cost=cost, preserve=PRESERVE, memory=memory)
        plan.save(file)
        print(plan, flush=True)
    return files


def rivals(body: Body, cost: float, every: bool = True) -> list[tuple[str, Setting]]:
    """Returns the fixed settings at a cost, with their kinds; ``every=False`` leaves out what was far behind."""
    found = [("published", c.setting) for c in published(body, (cost,))]
    for strategy, family in MORE.items():
        shape = next(shape for shape in shapes(strategy, body.anatomy.depth) if shape.name == family)
        found += [("published", c.setting) for c in made(body, strategy, shape, cost, "")]
    if not every:
        found = [each for each in found if each[1].partition(":")[0] in CLOSE]
    found += [("smaller image", nearest_resolution(body, cost).setting)]
    shapes_taken = ("constant", "linear") if every else ("constant",)
    both = [c for c in combinations(body, cost) if "mlerp" in c.options and c.shape in shapes_taken]
    found += [("smaller image with ToMe", c.setting) for c in both]
    for text in BY_HAND:
        strategy, comma, options = text.partition(",")
        for shape in (constant(), linear(), thirds(body.anatomy.depth)):
            found += [("chosen by hand", c.setting) for c in made(body, strategy, shape, cost, comma + options)]
    return [(kind, read_setting(text)) for text, kind in {text: kind for kind, text in reversed(found)}.items()]


def compare(name: str, folder: Path, results: Path, costs: Sequence[float], limit: int) -> None:
    """Measures plans and rivals on held-out images; writes a line for each to ``planned.jsonl``."""
    _, held = parts(name, folder, limit)
    task = TASKS["photographs"]
    source, body = task.source(folder), task.body(folder)
    stamps = fingerprint([held.stamp(i) for i in range(len(held))])  # resizing differs between versions of Pillow
    out = folder / "runs" / slug(f"planned {name} {stamps} {digest()} {source.name}")
    file = results / "planned.jsonl"
    for cost in costs:
        settings = rivals(body, cost, name == "photographs")
        for origin in ORIGINS:
            plan = results / "plans" / f"{origin}-{PRESERVE}-{cost:g}.json"
            if plan.exists():
                settings.append((f"plan made on {origin}", read_setting(str(plan))))
        unique = {setting.name: setting for _, setting in settings}  # two plans may be the same, or a published one
        report = tg.evaluate(
            source,
            list(unique.values()),
            held,
            out=out,
            controls=False,
            options=Options(time=False, memory=False),
        )
        rows = {row.name: row for row in report.rows}
        arrays = {name: _losses(out, setting) for name, setting in unique.items() if not rows[name].reason}
        plans = {kind: setting.name for kind, setting in settings}
        lines = []
        for kind, setting in settings:
            label = setting.name
            row = rows[label]
            line = {"data": name, "images": len(held), "cost": cost, "kind": kind, "setting": label}
            line |= {"commit": commit(ROOT), "code": digest(), "model": source.name}
            if row.reason:
                line["reason"] = row.reason
            else:
                line |= {"share": row.cost, "metrics": dict(row.metrics)}
                for key, origin in (("plan_minus_this", name), ("varied_minus_this", VARIED)):
                    plan = f"plan made on {origin}"
                    if kind != plan and plans.get(plan) in arrays:
                        line[key] = paired(arrays[label], arrays[plans[plan]])
            lines.append(line)
        old = [x for x in read(file) if (x["data"], x["cost"]) != (name, cost)]
        write(file, [*old, *lines])


def _losses(out: Path, setting: Setting) -> np.ndarray:
    """Returns ``1 -`` the mean cosine of class token and patches of each image."""
    files = sorted((out / "predictions" / "data" / slug(setting.key)).glob("*.npz"))
    found = []
    for each in files:
        with np.load(each) as chunk:
            found.append(1 - (chunk["class_cosine"] + chunk["patch_cosine"]) / 2)
    return np.concatenate(found)


def paired(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Returns the mean difference of the cosine, ours minus theirs, with its 95 % bootstrap interval over images."""
    gain = theirs - ours
    drawn = np.random.default_rng(0).integers(0, len(gain), (RESAMPLES, len(gain)))
    low, high = np.quantile(gain[drawn].mean(1), [0.025, 0.975])
    return {"mean": float(gain.mean()), "low": float(low), "high": float(high)}


def write_planned(results: Path) -> str:
    """Writes ``planned.md``: at each cost the plans, and the best fixed setting of each kind with the paired gain."""
    lines = read(results / "planned.jsonl")
    text = [HEAD]
    for name in SETS:
        here = [line for line in lines if line["data"] == name]
        if not here:
            continue
        text += [f"## {name}, {here[0]['images']} held-out images", "", *ROWS]
        for cost in sorted({line["cost"] for line in here}, reverse=True):
            for kind in dict.fromkeys(line["kind"] for line in here):
                best = [x for x in here if x["cost"] == cost and x["kind"] == kind and "metrics" in x]
                best = [x for x in best if x["share"] <= cost + SLACK]  # thresholds decide some costs
                if best:
                    text.append(_row(cost, kind, max(best, key=_mean), len(best)))
        text.append("")
    made = "\n".join(text)
    (results / "planned.md").write_text(made, encoding="utf-8")
    return made


HEAD = """# Plans against fixed settings, measured on images that no plan was made on

Written by `python benchmarks/truth plan`; do not edit. Class and patches are mean cosines to the plain model. The last
columns are the mean of both for the plan that was made on like images, and for the plan that was made on scenes, minus
the same of this row, with 95 % bootstrap intervals over images. Of each kind of fixed setting the row shows the one
that is best *on these images* of so many.
"""
ROWS = [
    "| cost | kind | setting | its cost | class | patches | plan minus this | plan of scenes minus this |",
    "|---" * 8 + "|",
]


def _mean(line: dict[str, Any]) -> float:
    return line["metrics"]["class_cosine"] + line["metrics"]["patch_cosine"]


def _row(cost: float, kind: str, line: dict[str, Any], count: int) -> str:
    metrics = line["metrics"]
    shown = " | ".join(_gain(line.get(key)) for key in ("plan_minus_this", "varied_minus_this"))
    out_of = "" if count == 1 else f" (best of {count})"
    figures = f"{line['share']:.3f} | {metrics['class_cosine']:.4f} | {metrics['patch_cosine']:.4f}"
    return f"| {cost:g} | {kind}{out_of} | `{line['setting']}` | {figures} | {shown} |"


def _gain(gain: dict[str, float] | None) -> str:
    return "" if gain is None else f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
