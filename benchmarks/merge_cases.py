"""The stages of each strategy, as graph operations and as dense matrices, ready to be timed against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt

import dense
import torch
from harness import Call
from torch import Tensor

import tokengraph as tg
from tokengraph.edges import window
from tokengraph.edges.grid import grid_positions
from tokengraph.select.tokens import Tokens
from tokengraph.select.topk import fuse_rest

STAGES = ("build", "select", "reduce", "lift")
Forms = dict[tuple[str, str], Call]  # (form, variant) to what is timed; form is "graph" or "dense"


@dataclass(frozen=True)
class Case:
    """One stage of one method in all its forms."""

    method: str
    stage: str
    keep: int
    forms: Forms


@dataclass(frozen=True)
class Problem:
    """Random tokens of one shape, and other inputs that strategies need.

    Attributes:
        x: ``[B, N, C]`` on a square grid.
        skipped: Strategies that could not run here, and why.
    """

    x: Tensor
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def random(cls, shape: tuple[int, int, int], device: torch.device | str) -> Problem:
        """Standard normal features, the same for the same shape."""
        side = isqrt(shape[1])
        if side * side != shape[1]:
            raise ValueError(f"Expected N to be a square, tokens of a square grid (got N={shape[1]}).")
        return cls(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device))

    @property
    def grid(self) -> tuple[int, int]:
        """``(H, W)``."""
        return isqrt(self.x.size(1)), isqrt(self.x.size(1))

    @cached_property
    def size(self) -> Tensor:
        """``[B, N, 1]``, 1 to 4 patches per token."""
        draw = torch.randint(1, 5, (*self.x.shape[:2], 1), generator=torch.Generator().manual_seed(1))
        return draw.float().to(self.x.device)

    @cached_property
    def class_row(self) -> Tensor:
        """A softmaxed row of attention, ``[B, N]``."""
        return torch.randn(self.x.shape[:2], generator=torch.Generator().manual_seed(2)).softmax(1).to(self.x.device)

    def keep(self, method: str) -> int:
        """Half of the tokens for a bipartite matching, which cannot leave fewer; a quarter for all others."""
        return self.x.size(1) // (2 if method == "tome" else 4)

    def tokens(self) -> Tokens:
        """The input of a strategy."""
        pos = grid_positions(self.grid, device=self.x.device).expand(self.x.size(0), -1, -1)
        return Tokens(self.x, None, self.grid, locate=lambda: pos)


def cases(problem: Problem) -> Iterator[Case]:
    """All cases for tokens of one shape: graphs first, then each strategy that runs without a model."""
    keep = problem.keep("")
    yield Case("knn-graph", "build", keep, _knn_forms(problem.x, 8))
    yield Case("ailurus", "build", keep, _window_forms(problem.grid, problem.x.device))
    for method, choose in _choices(problem).items():
        keep = problem.keep(method)
        try:
            assignment = choose(keep)
        except (ValueError, TypeError, RuntimeError) as error:
            problem.skipped[method] = str(error)
            continue
        rows, size = problem.x.flatten(0, 1), problem.size.flatten()
        pooled = assignment.reduce(rows, size)[0]  # type: ignore[attr-defined]
        other = _dense_stages(method, problem, keep)
        graph: dict[str, Forms] = {
            "select": {("graph", ""): lambda c=choose, k=keep: c(k)},
            "reduce": {
                ("graph", backend): lambda a=assignment, b=backend, x=rows, s=size: a.reduce(x, s, backend=b)
                for backend in ("auto", "index_add", "segment")
            },
            "lift": {("graph", ""): lambda a=assignment, y=pooled: a.lift(y)},
        }
        for stage, forms in graph.items():
            if stage in other:
                forms["dense", ""] = other[stage]
            yield Case(method, stage, keep, forms)


def _choices(problem: Problem) -> dict[str, Call]:
    """Each strategy as a function of ``keep``; those that read attention get a given class row, or are left out."""
    tokens = problem.tokens()
    choices: dict[str, Call] = {}
    for name, kind in tg.registry().items():
        if name == "topk":
            choices["topk-norm"] = lambda keep: tg.TopK(score="norm")(tokens, keep)
            choices["topk-class"] = lambda keep: tg.topk(problem.class_row, keep)
            choices["topk-fuse"] = lambda keep: fuse_rest(problem.class_row, keep)
        else:
            choices[name] = lambda keep, kind=kind: kind()(tokens, keep)
    return choices


def _knn_forms(x: Tensor, k: int) -> Forms:
    forms: Forms = {}
    for name, backend in tg.backends().items():
        if name != "torch-scatter" and backend.available:
            forms["graph", name] = lambda n=name: tg.knn_graph(x, k, backend=n)
    if tg.backends()["torch-cluster"].available:
        forms["graph", "torch-cluster, kernel only"] = torch_cluster_knn(x, k)
    forms["dense", ""] = lambda: dense.knn(x, k)
    return forms


def torch_cluster_knn(x: Tensor, k: int) -> Call:
    """torch-cluster's own function on flat tokens, self counted: without what the library does for equal edges."""
    from torch_cluster import knn

    flat = x.flatten(0, 1)
    batch = torch.arange(x.size(0), device=x.device).repeat_interleave(x.size(1))
    return lambda: knn(flat, flat, k + 1, batch, batch, batch_size=x.size(0))


def _window_forms(grid: tuple[int, int], device: torch.device) -> Forms:
    """The window graph and its tiles from nothing. In use they are built once for a grid, and cached."""
    clear = [t.cache_clear for t in vars(window).values() if hasattr(t, "cache_clear")]
    if not clear:
        return {("dense", "once"): lambda: dense.spatial_rank(grid, device=device)}

    def build() -> None:
        for each in clear:
            each()
        window.window_tiles(grid, 50, device=device)

    return {("graph", "once"): build, ("dense", "once"): lambda: dense.spatial_rank(grid, device=device)}


def _dense_stages(method: str, problem: Problem, keep: int) -> Mapping[str, Call]:
    """The dense form of a method's stages; empty where no published code has one."""
    x, size, tokens = problem.x, problem.size, problem.x.size(1)
    if method in ("dpc-knn", "ailurus"):
        if method == "ailurus":
            rank = dense.spatial_rank(problem.grid, device=x.device)
            choose: Call = lambda: dense.ailurus(x, keep, rank)  # noqa: E731
        else:
            choose = lambda: dense.dpc_knn(x, keep)  # noqa: E731
        cluster: Tensor = choose()  # type: ignore[assignment]
        pooled = dense.merge(x, size, cluster, keep)[0]
        return {
            "select": choose,
            "reduce": lambda: dense.merge(x, size, cluster, keep),
            "lift": lambda: dense.unmerge(pooled, cluster),
        }
    if method == "tome":
        match = dense.tome(x, tokens - keep)
        pooled = dense.tome_merge(x, size, match)[0]
        return {
            "select": lambda: dense.tome(x, tokens - keep),
            "reduce": lambda: dense.tome_merge(x, size, match),
            "lift": lambda: dense.tome_unmerge(pooled, match),
        }
    if method.startswith("topk") or method == "random":
        return _dense_pruning(method, problem, keep)
    if method == "grid-pool" and problem.grid[0] % 2 == 0:
        pooled = dense.grid_pool(x, problem.grid, (2, 2))
        return {
            "reduce": lambda: dense.grid_pool(x, problem.grid, (2, 2)),
            "lift": lambda: dense.grid_unpool(pooled, problem.grid, (2, 2)),
        }
    return {}


def _dense_pruning(method: str, problem: Problem, keep: int) -> Mapping[str, Call]:
    x, row = problem.x, problem.class_row
    scores: dict[str, Call] = {
        "topk-norm": lambda: x.norm(dim=2),
        "random": lambda: torch.rand(x.shape[:2], device=x.device),
    }
    score = scores.get(method, lambda: row)
    left = keep - 1 if method == "topk-fuse" else keep
    index = dense.topk(score(), left)  # type: ignore[arg-type]
    stages: dict[str, Call] = {"select": lambda: dense.topk(score(), left)}  # type: ignore[arg-type]
    if method == "topk-fuse":
        return {**stages, "reduce": lambda: dense.fuse(x, row, index)}
    pooled = dense.prune(x, index)
    return {
        **stages,
        "reduce": lambda: dense.prune(x, index),
        "lift": lambda: dense.unprune(pooled, index, x.size(1)),
    }
