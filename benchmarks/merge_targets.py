"""Goals for speed and memory of this library on a CPU, each measured as a ratio from interleaved runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dense
import torch
from harness import Call, Effort, Summary, interleave, peak_memory
from merge_cases import Problem, torch_cluster_knn
from report import ratio_fields

import tokengraph as tg

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Target:
    """One goal. ``measure`` gives its rows."""

    name: str
    measure: Callable[[torch.device, Effort], Iterator[dict[str, Any]]]


def _row(what: str, shape: Shape, goal: float, ratio: Summary, *, at_most: bool = False) -> dict[str, Any]:
    reached = ratio.median <= goal if at_most else ratio.median >= goal
    sign = "<=" if at_most else ">="
    return {
        "target": what,
        "shape": "x".join(map(str, shape)),
        "goal": f"{sign} {goal:g}",
        **ratio_fields("ratio", ratio),
        "reached": reached,
    }


def _speedup(slow: Call, fast: Call, effort: Effort) -> Summary:
    timings = interleave({"slow": slow, "fast": fast}, effort)
    return timings["slow"].over(timings["fast"])


def knn(device: torch.device, effort: Effort) -> Iterator[dict[str, Any]]:
    """The torch backend against torch-cluster: its bare kernel, which is less than the backend of that name does."""
    if not tg.backends()["torch-cluster"].available:
        print(f"Skipped: {tg.backends()['torch-cluster']}")
        return
    for shape, goal in (((4, 1024, 1024), 20.0), ((8, 196, 384), 12.0)):
        x = Problem.random(shape, device).x
        ratio = _speedup(torch_cluster_knn(x, 8), lambda x=x: tg.knn_graph(x, 8, backend="torch"), effort)
        yield _row("knn k=8: torch over torch-cluster, speed", shape, goal, ratio)


def reduce_lift(device: torch.device, effort: Effort) -> Iterator[dict[str, Any]]:
    """Size-weighted reduce, lift, and both, of a quarter of the tokens, against scatter_reduce and gather."""
    for shape in ((8, 196, 384), (1, 4096, 768)):
        problem = Problem.random(shape, device)
        x, size, keep = problem.x, problem.size, shape[1] // 4
        cluster = dense.dpc_knn(x, keep)
        assignment = tg.Assignment.from_dense(cluster, keep)
        rows, sizes = x.flatten(0, 1), size.flatten()
        pooled = dense.merge(x, size, cluster, keep)[0]
        flat = pooled.flatten(0, 1)
        pairs: dict[str, tuple[Call, Call]] = {
            "reduce": (
                lambda a=(x, size, cluster, keep): dense.merge(*a),
                lambda a=assignment, x=rows, s=sizes: a.reduce(x, s),
            ),
            "lift": (
                lambda y=pooled, c=cluster: dense.unmerge(y, c),
                lambda a=assignment, y=flat: a.lift(y),
            ),
        }
        pairs["reduce + lift"] = tuple(  # type: ignore[assignment]
            lambda r=r, t=t: (r(), t()) for r, t in zip(*pairs.values(), strict=True)
        )
        for name, (slow, fast) in pairs.items():
            yield _row(f"{name}: graph over dense, speed", shape, 3.0, _speedup(slow, fast, effort))


def ailurus(device: torch.device, effort: Effort) -> Iterator[dict[str, Any]]:
    """AiluRus (lambda 50) keeping a quarter against dense DPC-KNN: time and peak extra memory."""
    for shape, goal in (((1, 1024, 768), 2.5), ((1, 4096, 768), 8.0)):
        problem = Problem.random(shape, device)
        slow, fast = lambda p=problem, k=shape[1] // 4: dense.dpc_knn(p.x, k), _ailurus(problem)
        yield _row("AiluRus over dense DPC-KNN, speed", shape, goal, _speedup(slow, fast, effort))
        share = peak_memory(fast, device) / peak_memory(slow, device)
        memory = Summary(share, share, share)
        yield _row("AiluRus over dense DPC-KNN, peak memory", shape, 0.125, memory, at_most=True)


def growth(device: torch.device, effort: Effort) -> Iterator[dict[str, Any]]:
    """AiluRus's time per token at N = 16,384 over that at N = 1,024."""
    small, large = (1, 1024, 768), (1, 16384, 768)
    calls = {str(s[1]): _ailurus(Problem.random(s, device)) for s in (small, large)}
    timings = interleave(calls, effort)
    whole = timings["16384"].over(timings["1024"])
    factor = small[1] / large[1]
    ratio = Summary(whole.median * factor, whole.low * factor, whole.high * factor)
    yield _row("AiluRus: time per token, N=16384 over N=1024", large, 2.0, ratio, at_most=True)


def _ailurus(problem: Problem) -> Call:
    select, tokens = tg.AiluRus(lam=50), problem.tokens()
    return lambda: select(tokens, tokens.x.size(1) // 4)


TARGETS = (
    Target("kNN", knn),
    Target("reduce and lift", reduce_lift),
    Target("AiluRus", ailurus),
    Target("AiluRus growth", growth),
)
