"""Converts graphs to rows of a database and back; features may be float16, and edges are small integers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokengraph.datasets.recipe import DTYPES
from tokengraph.graph.fields import batch_layout
from tokengraph.graph.token_graph import TokenGraph

Row = dict[str, Any]
UNKNOWN = -1  # class of an image without a label


def schema_of(channels: int, patches: int, dtype: str) -> dict[str, Any]:
    """Returns PyG's schema of a row: one column a field, in the order in which the database stores them.

    Small columns come first, because SQLite reads a row from its start.

    Args:
        channels: C of the features.
        patches: N of an image, which bounds node numbers.
        dtype: Format of features and edge weights.
    """
    ids = _ids(patches)
    columns = {
        "y": int,
        "path": str,
        "grid": ("int32", (-1,)),
        "size": ("float32", (-1,)),
        "pos": ("float32", (-1, 2)),
        "cluster": (ids, (-1,)),
        "prefix": (dtype, (-1, channels)),
        "edge_index": (ids, (2, -1)),
        "edge_weight": (dtype, (-1,)),
        "mask": ("uint8", (-1,)),
        "x": (dtype, (-1, channels)),
    }
    return {
        name: {"dtype": getattr(torch, kind[0]), "size": kind[1]} if isinstance(kind, tuple) else kind
        for name, kind in columns.items()
    }


def encode(
    graph: TokenGraph, path: str, dtype: str, *, y: int = UNKNOWN, cluster: Tensor | None = None, mask: Any = None
) -> Row:
    """Returns the row of a graph of one image.

    Args:
        graph: The graph.
        path: Name of its image.
        dtype: Format of features and edge weights.
        y: Class of the image; -1 if it has none.
        cluster: Node of each input patch, ``[N]``.
        mask: Class numbers of the pixels, ``[S, S]``.

    Raises:
        ValueError: If a value does not fit the format.
    """
    grid = graph.grids[0] if graph.grids else ()
    ids = getattr(torch, _ids(math.prod(grid) if grid else len(graph.x)))
    edges = graph.edge_index if graph.edge_index is not None else torch.zeros(2, 0)
    weight = graph.edge_weight if "edge_weight" in graph and graph.edge_weight is not None else torch.zeros(0)
    prefix = graph.prefix[0] if "prefix" in graph else graph.x.new_zeros(0, graph.x.size(1))
    return {
        "y": int(y),
        "path": path,
        "grid": torch.tensor(grid, dtype=torch.int32),
        "size": graph.size.as_subclass(Tensor).float().cpu().contiguous(),
        "pos": (graph.pos if "pos" in graph else torch.zeros(0, 2)).float().cpu().contiguous(),
        "cluster": (cluster if cluster is not None else torch.zeros(0)).to(ids).cpu().contiguous(),
        "prefix": _narrow(prefix, dtype, path),
        "edge_index": edges.to(ids).cpu().contiguous(),
        "edge_weight": _narrow(weight, dtype, path),
        "mask": _pack(mask),
        "x": _narrow(graph.x, dtype, path),
    }


def decode(row: Mapping[str, Any], dtype: torch.dtype | None, labels: bool) -> TokenGraph:
    """Returns the graph of a row, with fields as :meth:`tokengraph.TokenGraph.split` gives them.

    Args:
        row: As the database returns it.
        dtype: Format of features and edge weights; ``None`` keeps the stored one.
        labels: Whether images have classes; then ``y [1]`` is one.
    """

    def real(name: str) -> Tensor:
        return row[name].to(dtype or row[name].dtype, copy=True)  # rows share read-only memory with the database

    x = real("x")
    fields: dict[str, Any] = {"x": x, "size": row["size"].clone(), **batch_layout([x.size(0)], x), "path": row["path"]}
    if row["grid"].numel():
        fields |= {"grid": tuple(row["grid"].tolist()), "pos": row["pos"].clone()}
    if row["prefix"].numel():
        fields["prefix"] = real("prefix")[None]
    if row["cluster"].numel():
        fields["cluster"] = row["cluster"].long()[None]
    if row["edge_weight"].numel() or row["edge_index"].numel():
        fields |= {"edge_index": row["edge_index"].long(), "edge_weight": real("edge_weight")}
    if row["mask"].numel():
        fields["mask"] = _unpack(row["mask"])[None]
    if labels:
        fields["y"] = torch.tensor([row["y"]])
    return TokenGraph(**fields)


def _ids(patches: int) -> str:
    return "int16" if patches < 2**15 else "int32"


def row_bytes(row: Row) -> int:
    """Returns the bytes of a row's tensors and texts."""
    return sum(v.numel() * v.element_size() if isinstance(v, Tensor) else len(str(v)) for v in row.values())


def _narrow(values: Tensor, dtype: str, path: str) -> Tensor:
    kept = values.to(DTYPES[dtype]).cpu().contiguous()
    if dtype == "float16" and not bool(torch.isfinite(kept).all()):
        raise ValueError(
            f"Expected features within float16, below 65504 (got {float(values.abs().max()):.3g} in {path!r}). "
            "Store float32 (--dtype float32), or apply the final norm (--norm)."
        )
    return kept


def _pack(mask: Any) -> Tensor:
    """Returns a compressed mask as bytes, its sides first; empty for ``None``."""
    if mask is None:
        return torch.zeros(0, dtype=torch.uint8)
    values = np.asarray(mask, dtype=np.int32)
    packed = np.array(values.shape, dtype=np.int32).tobytes() + zlib.compress(values.tobytes(), 6)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def _unpack(packed: Tensor) -> Tensor:
    raw = packed.numpy().tobytes()
    height, width = np.frombuffer(raw[:8], dtype=np.int32)
    values = np.frombuffer(zlib.decompress(raw[8:]), dtype=np.int32).reshape(height, width)
    return torch.from_numpy(values.astype(np.int64))
