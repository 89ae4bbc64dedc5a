"""Reports of a training: progress, curves, and accuracy against time of the trained models."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from tokengraph.viz.figure import AMBER, BLUE, FAINT, GREY, ROSE, RULE, TEAL, caption, new_figure

Row = dict[str, Any]
PARTS = {"classification": BLUE, "ratio": ROSE, "distillation": AMBER, "token": TEAL}


def progress(disable: bool) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, TextColumn("{task.fields[facts]}"), disable=disable, transient=True)


def average(rows: list[Row], name: str) -> Any:
    """Averages a number, or a list of numbers, over rows."""
    return torch.tensor([row[name] for row in rows], dtype=torch.float64).mean(dim=0).tolist()


def facts(rows: list[Row]) -> str:
    """Formats losses and kept shares as one line."""
    losses = [f"{name} {average(rows, name):.3f}" for name in ("loss", *PARTS) if name in rows[0]]
    kept = [f"{share:.3f}" for share in average(rows, "kept")]
    return "  ".join(losses + (["kept", *kept] if kept else []))


@torch.no_grad()
def compare(models: dict[str, Callable[[Tensor], Tensor]], images: Tensor, labels: Tensor, rounds: int) -> list[Row]:
    """Measures accuracy, and milliseconds per image in interleaved rounds, so that all models share slow phases."""
    right = {name: (model(images).argmax(dim=1) == labels).double().mean().item() for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model(images)
            times[name].append(1e3 * (time.perf_counter() - start) / len(images))
    first = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        low, median, high = torch.tensor(own).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        over = statistics.median(a / b for a, b in zip(own, first, strict=True))
        rows.append({"model": name, "accuracy": right[name], "ms": median, "low": low, "high": high, "ratio": over})
    return rows


def comparison_table(rows: list[Row]) -> Table:
    table = Table(title="Accuracy against time on the test images", title_justify="left")
    for column in ("", "accuracy", "ms an image (quartiles)", "of dense"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        spread = f"{row['ms']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        table.add_row(row["model"], f"{row['accuracy']:.1%}", spread, f"{row['ratio']:.2f}")
    return table


def kept_table(kept: list[float], ratios: tuple[float, ...]) -> Table:
    table = Table(title="Share of tokens that training kept in its last epoch", title_justify="left")
    for column in ("before block", "kept", "target"):
        table.add_column(column, justify="right")
    for stage, (share, ratio) in enumerate(zip(kept, ratios, strict=True), start=1):
        table.add_row(str(stage), f"{share:.3f}", f"{ratio:.3f}")
    return table


def plot(path: Path, rows: list[Row], ratios: tuple[float, ...], frozen: int) -> None:
    """Plots loss terms, and kept shares with their targets; faint lines are steps, bold lines are epochs."""
    steps = sum(row["epoch"] == rows[0]["epoch"] for row in rows)
    by_step = [i / steps for i in range(1, len(rows) + 1)]
    by_epoch = [epoch + 0.5 for epoch in range(len(rows) // steps)]

    def draw(ax: Any, values: list[float], color: str, label: str) -> None:
        ax.plot(by_step, values, color=color, alpha=0.25, linewidth=0.7)
        means = [statistics.fmean(values[i : i + steps]) for i in range(0, len(values), steps)]
        ax.plot(by_epoch, means, color=color, linewidth=1.8, label=label)

    figure = new_figure(10.5, 4.2, "DynamicViT: prediction modules in training")
    losses, shares = figure.subplots(1, 2)
    for name, color in PARTS.items():
        draw(losses, [row[name] for row in rows], color, name)
    losses.set_yscale("log")
    caption(losses, "parts of the loss", "unweighted")
    for stage, (ratio, color) in enumerate(zip(ratios, (BLUE, TEAL, AMBER, ROSE), strict=False)):
        draw(shares, [row["kept"][stage] for row in rows], color, f"stage {stage + 1}, target {ratio:.3g}")
        shares.axhline(ratio, color=color, linewidth=1, linestyle=(0, (4, 3)))
    shares.set_ylim(0, 1)
    caption(shares, "share of tokens kept", "dashed: targets")
    for ax in (losses, shares):
        ax.axvline(frozen, color=GREY, linewidth=1)
        ax.text(frozen, 0.99, " backbone trains", transform=ax.get_xaxis_transform(), va="top", fontsize=8, color=FAINT)
        ax.set_xlabel("epoch", fontsize=9, color=FAINT)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color=RULE, linewidth=0.6)
        ax.legend(frameon=False, fontsize=8.5)
    figure.savefig(path)
