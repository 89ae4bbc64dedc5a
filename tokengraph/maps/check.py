"""Checks of cluster numbers and shapes; numbers on CUDA are not read, because that waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.looks import may_look


def check_clusters(cluster: Tensor, num_clusters: int | list[int], mask: Tensor | None, drops: bool) -> None:
    """Raises if a cluster number lies outside its image: its token would silently join another image's cluster.

    Args:
        cluster: ``[B, N]`` int64; not checked on CUDA, where reading numbers waits for the device.
        num_clusters: Clusters an image, one int for all or one an image.
        mask: ``[B, N]`` bool, True where there is a token; ``None``: everywhere.
        drops: Whether -1 stands for a dropped token.

    Raises:
        ValueError: For a number outside ``[0, K_b)``, or below -1 with ``drops``. Nothing is checked
            while torch compiles or exports, or under ``torch.func``, where tensors have no values.
    """
    if not may_look(cluster) or not cluster.numel():
        return
    if isinstance(num_clusters, int) and mask is None:
        low, high = (int(end) for end in cluster.aminmax())
        fits = low >= (-1 if drops else 0) and high < num_clusters
    else:
        most = torch.as_tensor(num_clusters, device=cluster.device).view(-1, 1)
        inside = (cluster >= (-1 if drops else 0)) & (cluster < most)
        fits = bool((inside if mask is None else inside | ~mask).all())
    if not fits:
        lowest, highest = (int(end) for end in cluster.aminmax())
        hint = "" if drops or lowest >= 0 else " Give drops=True where -1 stands for a dropped token."
        raise ValueError(f"Expected clusters in [0, K={num_clusters}) in each image (got {lowest} to {highest}).{hint}")


def check_each(shape: torch.Size, **named: Tensor | None) -> None:
    """Raises ValueError unless each given tensor has this shape, one number a token."""
    for name, value in named.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"Expected {name} of shape {list(shape)}, one a token (got {list(value.shape)}).")


def check_rows(x: Tensor, rows: int, name: str) -> None:
    """Raises ValueError unless ``x`` has this many rows, flat over the batch."""
    if x.dim() < 1 or x.size(0) != rows:
        raise ValueError(
            f"Expected {name} with {rows} rows (got shape {list(x.shape)}). "
            "Rows are flat over the batch: flatten [B, N, C] with .flatten(0, 1)."
        )
