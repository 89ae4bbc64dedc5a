"""Two ways through a layer: some nodes take the slow one, all others the fast one, and none is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.flat.tables import equal_ptr

Path = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Partition:
    """The nodes of a batch in two parts.

    Args:
        slow: Flat ids of the nodes on the slow path, ``[S]`` int64.
        fast: Those of all others, ``[M - S]``.
    """

    slow: Tensor
    fast: Tensor

    @property
    def mask(self) -> Tensor:
        """``[M]`` bool, True where a node is slow."""
        size = self.slow.numel() + self.fast.numel()
        return torch.zeros(size, dtype=torch.bool, device=self.slow.device).index_fill(0, self.slow, True)


def split_by_count(score: Tensor, count: int) -> Partition:
    """Sends the ``count`` best scored nodes of each image to the slow path.

    Args:
        score: ``[B, N]``; equal scores go by index, the lower first.
        count: Slow nodes an image, in [0, N].

    Raises:
        ValueError: On another shape, or a count that the nodes do not allow.

    Cost: one sort of ``[B, N]``; no host synchronisation.

    Example:
        >>> split_by_count(torch.tensor([[0.1, 0.9], [0.5, 0.5]]), 1).slow.tolist()
        [1, 2]
    """
    if score.dim() != 2:
        raise ValueError(f"Expected score of shape [B, N] (got {list(score.shape)}).")
    images, nodes = score.shape
    if not 0 <= count <= nodes:
        raise ValueError(f"Expected 0 <= count <= N={nodes} slow nodes an image (got {count}).")
    order = score.detach().argsort(dim=1, descending=True, stable=True)
    order = order + equal_ptr(images, nodes, score.device)[:-1, None]
    return Partition(order[:, :count].reshape(-1), order[:, count:].reshape(-1))


def split_by_mask(mask: Tensor) -> Partition:
    """Sends the nodes where ``mask`` (bool, any shape, flat order) is True to the slow path.

    Images may differ in how many they send. Cost: two passes; on a GPU the host waits for the counts.
    """
    flat = mask.reshape(-1)
    return Partition(flat.nonzero().squeeze(1), flat.logical_not().nonzero().squeeze(1))


def slow_fast(x: Tensor, base: Tensor, partition: Partition, slow: Path, fast: Path) -> Tensor:
    r"""Adds to each node what its own path makes of it.

    .. math:: y_i = b_i + \begin{cases} \mathrm{slow}(x_i) & i \in S \\ \mathrm{fast}(x_i) & \text{else} \end{cases}

    Args:
        x: Nodes, ``[M, C]``.
        base: b, the residual stream, ``[M, C]``; may be ``x``.
        partition: Who is slow.
        slow: ``[S, C] -> [S, C]``, row by row.
        fast: ``[M - S, C] -> [M - S, C]``, row by row.

    Returns:
        ``[M, C]``, in the dtype that adding them has.

    Raises:
        ValueError: If the partition is of another number of nodes.

    Cost: the two paths on their own nodes, a gather and a scatter of ``[M, C]``; no host synchronisation.

    Source: Rao et al., *Dynamic Spatial Sparsification*, TPAMI 2023, by its code (DynamicViT's).
    """
    nodes = partition.slow.numel() + partition.fast.numel()
    if x.size(0) != nodes or base.size(0) != nodes:
        raise ValueError(f"Expected M={nodes} nodes, as the partition has (got {x.size(0)} and {base.size(0)}).")
    update_slow = slow(x.index_select(0, partition.slow))
    update_fast = fast(x.index_select(0, partition.fast))
    dtype = torch.promote_types(base.dtype, torch.promote_types(update_slow.dtype, update_fast.dtype))
    out = base.to(dtype).index_add(0, partition.slow, update_slow.to(dtype))
    # The sum above is ours alone, and no backward reads it.
    return out.index_add_(0, partition.fast, update_fast.to(dtype))


def merge(slow: Tensor, fast: Tensor, mask: Tensor) -> Tensor:
    """One of two streams at each node: ``slow`` where ``mask`` is 1, ``fast`` where it is 0; exact there.

    The mask's gradient is that of the difference ``slow - fast``. All of one shape, or broadcast.
    """
    mask = mask.to(slow.dtype)
    return slow * mask + fast * (1 - mask)
