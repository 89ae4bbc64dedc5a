"""A recipe of token graphs: the layer, the edges, the coarsening and the number format, read from short texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.base import Adapter
from tokengraph.evaluate.grammar import read_value, split
from tokengraph.evaluate.read import final_norm
from tokengraph.evaluate.settings import Setting
from tokengraph.graph.coarsen import hierarchy
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.kinds import explain_kinds
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select

DTYPES = {"float16": torch.float16, "float32": torch.float32}
EDGES = "knn:8, knn:8,cosine, local:8, grid, grid:4, window:50 or none"


@dataclass(frozen=True)
@explain_kinds
class Recipe:
    """What becomes a graph, and how.

    Args:
        layer: Number of finished blocks, as for :meth:`tokengraph.TokenGraph.from_model`; -1 is the last block.
        norm: Applies the model's final norm to the tokens.
        connect: Edges between tokens: ``"knn:8"``, ``"knn:8,cosine"``, ``"grid"`` (all neighbours), ``"grid:4"``,
            ``"window:50"``, or ``"none"``.
        coarsen: ``"NAME:KEEP,OPTION=VALUE"`` or ``"none"``. KEEP is tokens an image, a share of them, or a list with
            one of these for each level, as for :func:`tokengraph.coarsen` and :func:`tokengraph.hierarchy`.
        dtype: Format of stored features, ``"float32"`` or ``"float16"``.

    Raises:
        ValueError: If a text cannot be read, or a strategy or option is unknown.
    """

    layer: int = -1
    norm: bool = False
    connect: str = "none"
    coarsen: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise ValueError(f"Expected layer as a whole number (got {self.layer!r}).")
        if self.dtype not in DTYPES:
            raise ValueError(f"Expected dtype: {', '.join(DTYPES)} (got {self.dtype!r}).")
        read_edges(self.connect)
        read_coarsening(self.coarsen)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return asdict(self)

    def graphs(self, core: Any, adapter: Adapter, images: Tensor) -> tuple[TokenGraph, Tensor | None]:
        """Runs the model on a batch and makes its graphs.

        Args:
            core: The vision transformer.
            adapter: Its adapter.
            images: ``[B, 3, S, S]``.

        Returns:
            One graph of B images, and the node of each input patch, ``[B, N]`` int64: its number within the image, -1
            if the patch was dropped; ``None`` without coarsening, or if patches belong to several nodes.

        Raises:
            ValueError: If the model has no such layer, tokens are not finite, or edges and strategy do not fit them.

        Cost: one run of all blocks, and that of the edges and the strategy.
        """
        with torch.no_grad():
            tokens, grid = adapter.features(core, images, self.layer)
            tokens = final_norm(core)(tokens) if self.norm else tokens
            graph = TokenGraph.from_tokens(tokens.float(), grid, num_prefix=adapter.num_prefix(core))
            return self.make(graph)

    def make(self, graph: TokenGraph) -> tuple[TokenGraph, Tensor | None]:
        """Connects and coarsens a graph of tokens; :meth:`graphs` describes the result."""
        kind, number, cosine = read_edges(self.connect)
        if kind == "knn":
            graph = graph.connect_knn(number or 8, cosine=cosine)
        elif kind == "local":
            graph = graph.connect_local(number or 8, cosine=cosine)
        elif kind == "grid":
            graph = graph.connect_grid(number)
        elif kind == "window":
            graph = graph.connect_window(number or 50)
        select, levels = read_coarsening(self.coarsen)
        if select is None:
            return graph, None
        found = hierarchy(graph, select, levels)
        return found.graphs[-1], _nodes(found.between(-1), graph, found.graphs[-1])


def _nodes(assignment: Any, fine: TokenGraph, coarse: TokenGraph) -> Tensor | None:
    """Returns the node of each patch within its image, ``[B, N]``; ``None`` for soft maps."""
    if not isinstance(assignment, Assignment):
        return None
    dropped = assignment.cluster == assignment.num_clusters
    local = assignment.cluster - coarse.ptr[:-1][fine.batch]
    return local.masked_fill(dropped, -1).view(fine.num_images, -1)


def read_edges(text: str) -> tuple[str, int | None, bool]:
    """Returns the kind of edges, its number, and whether kNN compares directions.

    Raises:
        ValueError: If the text cannot be read.

    Example:
        >>> read_edges("knn:8,cosine")
        ('knn', 8, True)
    """
    head, *options = split(text, ",")
    kind, colon, value = (part.strip() for part in head.partition(":"))
    number = read_value(value) if colon else None
    right = kind in ("none", "knn", "local", "grid", "window") and options in ([], ["cosine"])
    right &= number is None or (isinstance(number, int) and not isinstance(number, bool) and number >= 1)
    if kind in ("none", "") and (colon or options):
        right = False
    if options and kind not in ("knn", "local"):
        right = False
    if kind == "grid" and number not in (None, 4, 6, 8, 26):
        right = False
    if not right:
        raise ValueError(f"Expected edges as {EDGES} (got {text!r}).")
    return kind, number, bool(options)


def read_coarsening(text: str) -> tuple[Select | None, list[int | float]]:
    """Returns a strategy and the budget of each level; no strategy for ``"none"``.

    Raises:
        ValueError: If the text cannot be read, or a strategy or option is unknown.

    Example:
        >>> read_coarsening("ailurus:0.25,k=3")[1]
        [0.25]
    """
    if text.strip() == "none":
        return None, []
    head, *options = split(text, ",")
    name, _, value = (part.strip() for part in head.partition(":"))
    keep = read_value(value)
    levels = list(keep) if isinstance(keep, list | tuple) else [keep]
    if not levels or not all(_is_budget(level) for level in levels):
        raise ValueError(
            f"Expected a coarsening as NAME:KEEP, with tokens an image (49), a share (0.25) or levels ([0.5, 0.5]) "
            f"(got {text!r})."
        )
    named: dict[str, Any] = {}
    for option in options:
        key, equals, given = (part.strip() for part in option.partition("="))
        if not (equals and key and given):
            raise ValueError(f"Expected options as NAME=VALUE (got {option!r} in {text!r}).")
        named[key] = read_value(given)
    select = Setting(strategy=name, options=named).select()
    if not isinstance(select, Select):
        raise ValueError(f"Expected a strategy for graphs (got {name!r}).")
    return select, levels


def _is_budget(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value >= 1 if isinstance(value, int) else 0 < value <= 1
