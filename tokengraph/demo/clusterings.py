"""Runs every strategy on one token graph."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tokengraph.graph.coarsen import Hierarchy, hierarchy
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select import Select, resolve
from tokengraph.select.topk import TopK

INSTEAD: dict[str, Select] = {"topk": TopK(score="norm")}  # a graph has no class token to score by


@dataclass
class Clustering:
    """The result of one strategy on the token graph, or the reason why it was left out.

    Args:
        name: Name of the strategy.
        label: Name to print.
        graph: The coarse graph; ``None`` if left out.
        assignment: The map from the tokens of the fine graph.
        rounds: Number of coarsenings in a row.
        milliseconds: Median time of all rounds on one thread, edges included.
        similarity: Mean cosine between the tokens and their lifted cluster features.
        skipped: The reason why it was left out.
    """

    name: str
    label: str = ""
    graph: TokenGraph | None = None
    assignment: Assignment | SoftAssignment | None = None
    rounds: int = 0
    milliseconds: float = 0.0
    similarity: float = 0.0
    skipped: str = ""


def share(graph: TokenGraph, parts: int) -> int:
    """Returns the number of tokens divided by ``parts``, at least one."""
    return max(1, sum(graph.counts) // parts)


def cluster(graph: TokenGraph, name: str, keep: int) -> Clustering:
    """Coarsens a graph of one image to ``keep`` tokens, in several rounds if one round cannot remove so many."""
    try:
        select = INSTEAD.get(name) or resolve(name)
        if select.learns:
            return Clustering(name, skipped="it has parameters to train first")
        if select.needs_class_token:
            return Clustering(name, skipped="it reads the attention of a class token")
        levels, milliseconds = _time(graph, select, keep)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        return Clustering(name, skipped=str(error).splitlines()[0])
    coarse, assignment = levels.graphs[-1], levels.between(-1)
    assert coarse.x is not None and graph.x is not None
    similarity = float(F.cosine_similarity(assignment.lift(coarse.x), graph.x, dim=1).mean())
    label = f"{name} (norm)" if name in INSTEAD else name
    return Clustering(name, label, coarse, assignment, len(levels.assignments), milliseconds, similarity)


def _time(graph: TokenGraph, select: Select, keep: int) -> tuple[Hierarchy, float]:
    steps, left = [], sum(graph.counts)
    while left > keep or not steps:
        fewer = max(keep, select.fewest(left))
        if fewer >= left > keep:
            raise ValueError(f"Expected a strategy that can remove tokens (got none less than {left}).")
        left = fewer
        steps.append(left)
    times, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # more threads do not speed up such short operations, and slow them on a busy machine
    try:
        for _ in range(8):  # the first one fills caches
            start = time.perf_counter()
            levels = hierarchy(graph, select, steps)
            times.append(1000 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return levels, float(torch.tensor(times[1:]).median())
