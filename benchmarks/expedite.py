"""Times token clustering and reconstruction against the dense form of the released code and against a ViT block.

Run: ``python benchmarks/expedite.py [--quick] [--device cuda] [--cases 40x40-28x28-1024]``

They pay off if they take less time than the blocks save: a block on N tokens minus a block on M clusters, for each
block between them. All run in interleaved rounds in one process; ratios are taken in each round. The dense form
computes all ``N x M`` distances in every iteration, as the released code does; its hard labels, which few models use,
are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from command import Benchmark, Result, Run
from harness import Effort, Timing, interleave, peak_memory
from report import markdown, progress, ratio_fields, timing_fields, with_quartiles
from torch import Tensor

from tokengraph.compat import timm
from tokengraph.edges.cells import cell_edges
from tokengraph.select.expedite.expedite import expedite

CASES = ("32x32-16x16-384", "40x40-28x28-1024", "64x64-28x28-1024")
ITERATIONS, TEMPERATURE, WINDOW, NEIGHBORS = 5, 0.02, 5, 20
COLUMNS = ("grid", "clusters", "C", "what", "median ms", "IQR ms", "peak MiB", "dense / this", "this / block on M",
           "this / block on N")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison."""

    grid: tuple[int, int]
    clusters: tuple[int, int]
    channels: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """Reads ``40x40-28x28-1024``."""
        try:
            grid, clusters, channels = text.split("-")
            (height, width), (h, w) = map(int, grid.split("x")), map(int, clusters.split("x"))
            return cls((height, width), (h, w), int(channels))
        except ValueError:
            raise SystemExit(f"Expected a case as HxW-hxw-C, for example {CASES[1]} (got {text!r}).") from None


def results(run: Run) -> Iterator[Result]:
    """Rows for each case."""
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), progress(len(run.args.cases)) as step:
        for text in run.args.cases:
            step(text)
            rows += _measure(Case.parse(text), run.device, run.effort)
    cells = [_cells(row) for row in rows]
    options = f"T {ITERATIONS}, t {TEMPERATURE}, window {WINDOW}, k {NEIGHBORS}, one image, float32."
    page = f"{run.machine}; {run.versions}.\n\n{BENCHMARK.notes}\n\n{options}\n\n{markdown(COLUMNS, cells)}"
    yield Result({"rows": rows}, page, [(BENCHMARK.title, COLUMNS, cells)])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="HxW-hxw-C", help=f"default: {' '.join(CASES)}")


def _measure(case: Case, device: torch.device, effort: Effort) -> list[dict[str, Any]]:
    calls = _calls(case, device)
    timings = interleave(calls, effort)
    rows = []
    for name, timing in timings.items():
        row: dict[str, Any] = {"grid": list(case.grid), "clusters": list(case.clusters), "channels": case.channels}
        row |= {"what": name} | timing_fields(timing)
        row["peak_mib"] = round(peak_memory(calls[name], device) / 2**20, 2)
        if name.startswith("graph"):
            row |= ratio_fields("speedup", timings[name.replace("graph", "dense")].over(timing))
        for against in ("block on M", "block on N"):
            if not name.startswith("block"):
                row |= ratio_fields(f"over_{against.replace(' ', '_')}", timing.over(timings[against]))
        rows.append(row)
    rows.append(_gain(case, timings))
    return rows


def _gain(case: Case, timings: dict[str, Timing]) -> dict[str, Any]:
    """Computes the number of blocks on clusters that save the cost of both layers."""
    both, small, large = (timings[n].seconds for n in ("graph, both", "block on M", "block on N"))
    even = [b / (n - m) for b, m, n in zip(both, small, large, strict=True)]
    row: dict[str, Any] = {"grid": list(case.grid), "clusters": list(case.clusters), "channels": case.channels}
    return row | {"what": "blocks to break even", "blocks": round(float(torch.tensor(even).median()), 3)}


def _calls(case: Case, device: torch.device) -> dict[str, Callable[[], object]]:
    count = case.clusters[0] * case.clusters[1]
    x = features(case.grid, case.channels).to(device)
    refined = torch.randn(1, count, case.channels, generator=torch.Generator().manual_seed(1)).to(device)
    block = timm.models.vision_transformer.Block(case.channels, case.channels // 64, qkv_bias=True).eval().to(device)
    allowed = _allowed(case, device)
    centers = dense_clustering(x, case.grid, case.clusters, allowed)

    def cluster() -> Any:
        return expedite(x, case.grid, case.clusters, iterations=ITERATIONS, inv_temperature=TEMPERATURE, window=WINDOW,
                        neighbors=NEIGHBORS)  # fmt: skip

    ready = cluster()  # replace() below makes a map that has not lifted yet
    return {
        "graph, clustering": cluster,
        "dense, clustering": lambda: dense_clustering(x, case.grid, case.clusters, allowed),
        "graph, reconstruction": lambda: replace(ready).lift(refined[0]),
        "dense, reconstruction": lambda: dense_reconstruction(x, centers, refined),
        "graph, both": lambda: cluster().lift(refined[0]),
        "dense, both": lambda: dense_reconstruction(x, dense_clustering(x, case.grid, case.clusters, allowed), refined),
        "block on M": lambda: block(refined),
        "block on N": lambda: block(x),
    }


def features(grid: tuple[int, int], channels: int) -> Tensor:
    """Smooth regions and noise, ``[1, H*W, C]``, at a scale where ``t * d^2`` to the nearest centre is about one."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, channels, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=grid, mode="bicubic").flatten(2).transpose(1, 2).contiguous()
    noisy = smooth + 0.3 * torch.randn(smooth.shape, generator=generator)
    return noisy * (500 / channels) ** 0.5


def _allowed(case: Case, device: torch.device) -> Tensor:
    token, cluster, _ = cell_edges(case.grid, case.clusters, WINDOW, device=device)
    mask = torch.zeros(case.grid[0] * case.grid[1], case.clusters[0] * case.clusters[1], device=device)
    mask[token, cluster] = 1.0
    return mask


def dense_clustering(x: Tensor, grid: tuple[int, int], clusters: tuple[int, int], allowed: Tensor) -> Tensor:
    """Centres ``[B, M, C]``: all distances in each iteration, those outside the window raised by 1e16."""
    picture = x.transpose(1, 2).reshape(x.size(0), x.size(2), *grid)
    s = F.adaptive_avg_pool2d(picture, clusters).flatten(2).transpose(1, 2)
    for _ in range(ITERATIONS):
        weight = (-TEMPERATURE * (_squared(x, s) + (1 - allowed) * 1e16)).softmax(dim=2)
        s = torch.bmm(weight.transpose(1, 2), x) / weight.sum(dim=1).clamp_min(1e-16)[..., None]
    return s


def dense_reconstruction(x: Tensor, centers: Tensor, refined: Tensor) -> Tensor:
    """Tokens ``[B, N, D]``: a full weight matrix in which all but the k largest are zero, L2-normalised."""
    weight = (-TEMPERATURE * _squared(x, centers)).exp()
    smallest = weight.topk(NEIGHBORS, dim=2).values[..., -1:]
    weight = F.normalize(weight * (weight >= smallest), dim=2)
    return torch.bmm(weight, refined)


def _squared(x: Tensor, s: Tensor) -> Tensor:
    norms = (x * x).sum(dim=2)[..., None] + (s * s).sum(dim=2)[:, None]
    return norms - 2 * torch.bmm(x, s.transpose(1, 2))


def _cells(row: dict[str, Any]) -> list[str]:
    head = ["x".join(map(str, row["grid"])), "x".join(map(str, row["clusters"])), str(row["channels"]), row["what"]]
    if "blocks" in row:
        return [*head, f"{row['blocks']:.2f} blocks", "", "", "", "", ""]
    numbers = [f"{row['median_ms']:.2f}", f"{row['iqr_ms']:.2f}", f"{row['peak_mib']:.1f}"]
    ratios = [with_quartiles(row, name) for name in ("speedup", "over_block_on_M", "over_block_on_N")]
    return [*head, *numbers, *ratios]


BENCHMARK = Benchmark("expedite", "Expedite", __doc__, results, Effort(15, 60.0), Effort(5, 6.0), _options)

if __name__ == "__main__":
    BENCHMARK.main()
