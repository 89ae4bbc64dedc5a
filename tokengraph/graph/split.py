"""Splits a graph of many images: fields of nodes, of edges, of images and of the whole graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data


def cut(graph: Data, ptr: Tensor) -> list[dict[str, Any]]:
    """Returns the fields of each image, except ``batch``, ``ptr`` and ``grid``, as PyG's ``batch[i]`` does.

    Args:
        graph: B images, their nodes one after another.
        ptr: First node of each image, ``[B+1]`` int64.

    Returns:
        B dicts. Each image gets its own rows of node and edge fields, and its own entry of tensors, lists and tuples
        of length B (tensors keep this axis, with length 1). All images share the other fields.

    Cost: one sort of the edges, by the image of their target; a host synchronisation on CUDA.
    """
    bounds, images = ptr.tolist(), ptr.numel() - 1
    parts: list[dict[str, Any]] = [{} for _ in range(images)]
    order, count = _edges_by_image(graph, ptr)
    for key in graph.keys():
        value = graph[key]
        if key in ("batch", "ptr", "grid"):
            continue
        if key != "edge_index" and graph.is_node_attr(key):
            pieces = [value[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
        elif order is not None and (key == "edge_index" or graph.is_edge_attr(key)):
            pieces = _of_edges(graph, key, value, order, count, bounds)
        elif isinstance(value, Tensor) and value.dim() and value.size(0) == images:
            pieces = list(value.split(1))
        elif isinstance(value, list | tuple) and len(value) == images:
            pieces = list(value)
        else:
            pieces = [value] * images
        for part, piece in zip(parts, pieces, strict=True):
            part[key] = piece
    return parts


def _edges_by_image(graph: Data, ptr: Tensor) -> tuple[Tensor | None, list[int]]:
    if graph.edge_index is None:
        return None, []
    image = torch.bucketize(graph.edge_index[1], ptr[1:], right=True)
    return image.argsort(stable=True), torch.bincount(image, minlength=ptr.numel() - 1).tolist()


def _of_edges(graph: Data, key: str, value: Any, order: Tensor, count: list[int], bounds: list[int]) -> list[Any]:
    """Splits an edge field by image; node ids then count from the first node of each image."""
    if not isinstance(value, Tensor):
        values, ends = [value[i] for i in order.tolist()], torch.tensor([0, *count]).cumsum(0).tolist()
        return [values[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    dim = int(graph.__cat_dim__(key, value))
    pieces = value.index_select(dim, order).split(count, dim=dim)
    if "index" in key:
        return [piece - start for piece, start in zip(pieces, bounds[:-1], strict=True)]
    return list(pieces)
