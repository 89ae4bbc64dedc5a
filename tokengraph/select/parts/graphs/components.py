"""Connected components of a graph that all images share, each with its own edges of it."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.tables import counting


@torch.no_grad()
def components(ends: tuple[Tensor, Tensor], edge: Tensor, tokens: int) -> Tensor:
    """The smallest token of each token's connected component.

    Args:
        ends: Both ends of every possible edge, token ids ``[E]`` each.
        edge: Whether an image has that edge, ``[B, E]`` bool.
        tokens: N.

    Returns:
        ``[B, N]`` int64.

    Cost: ``O(B (N + E))`` in each of about ``log N`` rounds (4 on 14 x 14 patches, 6 on 40 x 64), each with a look at
    the result, which on CUDA is a host synchronisation.
    """
    a, b = ends
    root = counting(tokens, edge.device).repeat(edge.size(0), 1)
    while edge.numel():
        before, at_a, at_b = root, root[:, a], root[:, b]
        low = torch.minimum(at_a, at_b)
        root = root.scatter_reduce(1, at_a, torch.where(edge, low, at_a), "amin")  # the root of a learns of that of b
        root = root.scatter_reduce(1, at_b, torch.where(edge, low, at_b), "amin")
        while not torch.equal(further := root.gather(1, root), root):
            root = further
        if torch.equal(root, before):
            break
    return root


@torch.no_grad()
def components_left(ends: tuple[Tensor, Tensor], weight: Tensor, above: float, least: Tensor, tokens: int) -> Tensor:
    """:func:`components` by the edges heavier than ``above``, or by so many of the heaviest that enough are left.

    Args:
        ends: As for :func:`components`.
        weight: Of each edge, ``[B, E]``.
        above: Edges of a larger weight count.
        least: The fewest components of each image, ``[B]``; the lightest edges are left out until it has as many.
        tokens: N.

    Cost: that of :func:`components`; about ``log E`` times as much where ``least`` binds for an image.
    """
    edge = weight > above
    root = components(ends, edge, tokens)
    place = counting(tokens, root.device)
    if bool(((root == place).sum(dim=1) >= least).all()):
        return root
    order = weight.masked_fill(~edge, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, counting(order.size(1), order.device).expand_as(order))
    low, high = torch.zeros_like(least), edge.sum(dim=1)  # of the heaviest edges: so many leave enough, so many may not
    enough = (root == place).sum(dim=1) >= least
    low = torch.where(enough, high, low)
    while bool((low < high).any()):
        middle = (low + high + 1) // 2
        root = components(ends, edge & (rank < middle[:, None]), tokens)
        enough = (root == place).sum(dim=1) >= least
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    return components(ends, edge & (rank < low[:, None]), tokens)
