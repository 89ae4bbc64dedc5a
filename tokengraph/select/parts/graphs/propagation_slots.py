"""The slots of GTP's propagation graphs: senders, receivers and weights, sorted by sender."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges import grid_graph, knn_neighbors
from tokengraph.edges.knn import directions
from tokengraph.edges.knn_torch import lowest
from tokengraph.edges.local import local_neighbors
from tokengraph.flat.finite import zero_where_not_finite
from tokengraph.flat.memory import memory_budget
from tokengraph.flat.segment import wide
from tokengraph.flat.tables import counting, equal_ptr, starts, table

Slots = tuple[Tensor, Tensor, Tensor]  # sender, receiver, weight: sorted by sender


@table(64)
def spatial(height: int, width: int, device: str) -> tuple[Tensor, ...]:
    """Returns one image's graph by sender: ``start, sender, receiver, weight``, and ``near, near_weight [n, 8]``."""
    patches = height * width
    # Grid edges are sorted by target and symmetric, so the targets serve as senders.
    receiver, sender = grid_graph((height, width)) if patches else torch.empty(2, 0, dtype=torch.long)
    start = first_slots(sender, patches)
    weight = normalized(sender, receiver, torch.ones_like(sender), patches)
    near, near_weight = torch.arange(patches)[:, None].repeat(1, 8), torch.zeros(patches, 8, dtype=torch.float32)
    column = torch.arange(sender.numel()) - start[sender]
    near[sender, column], near_weight[sender, column] = receiver, weight
    return tuple(t.to(device) for t in (start, sender, receiver, weight, near, near_weight))


def repeat(tables: tuple[Tensor, ...], images: int, patches: int) -> tuple[Tensor, Slots]:
    """Repeats one image's slots for B images."""
    start, sender, receiver, weight = tables[:4]
    ahead = first_patch(images, patches, start.device)
    edges = sender.numel()
    begin = start[:-1] + first_patch(images, edges, start.device)
    start = torch.cat([begin.flatten(), equal_ptr(images, edges, start.device)[-1:]])
    return start, ((sender + ahead).flatten(), (receiver + ahead).flatten(), weight.repeat(images))


def semantic(x: Tensor, k: int) -> tuple[Tensor, Slots]:
    """Returns the first slot of each sender, and the slots of the k most similar patches of each receiver."""
    sender, receiver, live = _nearest(x, k)
    rows = x.size(0) * x.size(1)
    return first_slots(sender, rows), (sender, receiver, normalized(sender, receiver, live, rows))


def local(x: Tensor, grid: tuple[int, ...], k: int, window: int) -> tuple[Tensor, Slots]:
    """The k most similar patches of each window as slots by sender."""
    images, patches = x.shape[:2]
    if k > min(window, patches - 1):
        raise ValueError(f"Expected a window of at least neighbors={k} patches (got window={window}).")
    if k == 0 or images == 0:
        sender, receiver, live = _nearest(x, 0)
    else:
        local = local_neighbors(zero_where_not_finite(x.detach()), grid, k, window, cosine=True)[0]
        near = (local + first_patch(images, patches, x.device)[..., None]).flatten()
        sender, order = near.sort(stable=True)
        receiver, live = order.div(k, rounding_mode="floor"), torch.ones_like(sender)
    rows = images * patches
    return first_slots(sender, rows), (sender, receiver, normalized(sender, receiver, live, rows))


def mixed(x: Tensor, k: int, width: int, start: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
    """Joins both graphs, for each sender spatial slots first. An edge in both counts once."""
    sender, receiver, live = _nearest(x, k)
    # Edges stay within an image, so flat ids identify rows and columns of the whole batch.
    rows_apart = (sender.div(width, rounding_mode="floor") - receiver.div(width, rounding_mode="floor")).abs()
    live = live * ((rows_apart > 1) | ((sender % width - receiver % width).abs() > 1))
    rows = x.size(0) * x.size(1)
    also = first_slots(sender, rows)
    place = torch.cat([_count(slots[0]) + also[slots[0]], _count(sender) + start[sender + 1]])
    pairs = (slots[0], sender), (slots[1], receiver), (torch.ones_like(slots[0]), live)
    sender, receiver, live = (torch.empty_like(place).scatter_(0, place, torch.cat(pair)) for pair in pairs)
    return start + also, (sender, receiver, normalized(sender, receiver, live, rows))


def _nearest(x: Tensor, k: int) -> Slots:
    """Returns each patch's k nearest as slots by sender: ``sender, receiver``, and ones."""
    if k == 0 or x.size(0) == 0:
        none = torch.empty(0, dtype=torch.long, device=x.device)
        return none, none, none
    sender, order = _most_similar(x.detach(), k).flatten().sort(stable=True)
    return sender, order.div(k, rounding_mode="floor"), torch.ones_like(sender)


def _most_similar(x: Tensor, k: int) -> Tensor:
    """Returns the k other patches of largest cosine, ``[B*n, k]`` flat ids, ties to the lower index."""
    images, patches, channels = x.shape
    x = zero_where_not_finite(x)
    if images * patches**2 * 4 > memory_budget():
        return knn_neighbors(x, k, cosine=True)[0]
    # Only ranks matter, so plain products suffice here; they take half the time of accurate distances.
    with torch.autocast(x.device.type, enabled=False):
        unit = directions(x.flatten(0, 1).to(wide(x)))[0].view(images, patches, channels)
        score = torch.bmm(unit, unit.transpose(1, 2)).neg_()
    score.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    local = lowest(score, k)[1]
    return (local + first_patch(images, patches, x.device)[..., None]).flatten(0, 1)


def normalized(sender: Tensor, receiver: Tensor, live: Tensor, rows: int) -> Tensor:
    """Returns ``A_ij / sqrt(d_i d_j)`` in float32, ``[E]``; 0 for a degree of 0, and where ``live`` (int64) is 0."""
    degree = live.new_zeros(rows).scatter_add_(0, receiver, live)
    product = degree[sender] * degree[receiver]
    return torch.where((live * product) > 0, product.float().rsqrt(), 0.0)


def first_slots(sender: Tensor, rows: int) -> Tensor:
    """First slot of each sender, ``[rows + 1]``."""
    count = sender.new_zeros(rows + 1).scatter_add_(0, sender + 1, torch.ones_like(sender))
    return count.cumsum(0)


def _count(like: Tensor) -> Tensor:
    return counting(like.numel(), like.device)


def first_patch(images: int, each: int, device: torch.device) -> Tensor:
    """Returns the first patch of each of B images, ``[B, 1]``."""
    return starts(images, each, device)
