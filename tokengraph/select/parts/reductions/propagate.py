"""Builds the weighted map of one GTP step: the graph's edges from dropped tokens to kept ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.looks import may_look
from tokengraph.flat.tables import counting, equal_ptr, starts, table
from tokengraph.maps.prefix import prefix_ids
from tokengraph.maps.soft import Edges, SoftAssignment
from tokengraph.select.parts.graphs.propagation import PropagationGraph

PASS = 2**17  # edges of a graph that one pass over all of them is as fast for as lists of the senders
MODES = ("propagate", "none", "mean")


def propagation(
    kept: Tensor,
    removed: Tensor,
    tokens: int,
    graph: PropagationGraph | None,
    alpha: float,
    patch: Tensor | None,
    mode: str,
) -> SoftAssignment:
    """Returns the map of one step, with the kept tokens' own edges first.

    Args:
        kept: Kept tokens of each image in the order of the clusters, ``[B, K]``.
        removed: All other tokens, at least one, ``[B, N-K]``; in mode ``"mean"`` the first represents the mean.
        tokens: N.
        graph: As for :func:`tokengraph.select.gtp.gtp.gtp`, and likewise ``alpha``, ``patch`` and ``mode``.
        alpha: Strength of the propagation.
        patch: Input patch of each token, ``[B, N]``.
        mode: One of :data:`MODES`.
    """
    images, singles = kept.shape
    clusters = singles + (mode == "mean")
    stays = kept + _first(images, tokens, kept)
    leaves = removed + _first(images, tokens, kept)
    number = prefix_ids(images, clusters, singles, kept.device)
    edges: Edges = stays.flatten()[:0], number.flatten()[:0], _no_weights(str(kept.device))
    centers = stays
    if mode == "mean":
        last = (singles + _first(images, clusters, kept)).expand_as(leaves)
        share = 1.0 / max(removed.size(1), 1)
        edges = leaves.flatten(), last.flatten(), edges[2].new_full((leaves.numel(),), share)
        centers = torch.cat([stays, leaves[:, :1]], dim=1)
    elif mode == "propagate":
        assert graph is not None  # see check_patch
        edges = _handed_on(stays, leaves, graph, alpha, patch)
    return SoftAssignment(
        torch.cat([stays.flatten(), edges[0]]),
        torch.cat([number.flatten(), edges[1]]),
        F.pad(edges[2], (stays.numel(), 0), value=1.0),
        images * tokens,
        images * clusters,
        normalize=False,
        ptr=equal_ptr(images, tokens, kept.device),
        cluster_ptr=equal_ptr(images, clusters, kept.device),
        centers=centers.flatten(),
        others=None if mode == "mean" else removed.size(1),
    )


@table(4)
def _no_weights(device: str) -> Tensor:
    return torch.empty(0, dtype=torch.float32, device=device)


def kept_as_they_are(kept: Tensor, tokens: int) -> SoftAssignment:
    """Returns the map that only reorders tokens as ``kept [B, N]``, bit for bit."""
    return propagation(kept, kept[:, :0], tokens, None, 0.0, None, "none")


def check_patch(tokens: Tensor, graph: PropagationGraph | None, patch: Tensor | None, mode: str) -> None:
    """Raises unless graph and patches fit the tokens ``[B, N]``, if the mode needs them."""
    if mode != "propagate":
        return
    if graph is None:
        raise ValueError("Expected a graph for mode='propagate' (got None). Make one with propagation_graph(x, grid).")
    if not isinstance(graph, PropagationGraph):
        raise TypeError(
            f"Expected graph as a PropagationGraph (got {type(graph).__name__}). Make one with "
            "propagation_graph(x, grid), or from edges with PropagationGraph.from_edges(x, edge_index, edge_weight)."
        )
    images, count = tokens.shape
    if graph.images != images:
        raise ValueError(f"Expected a graph of B={images} images (got one of {graph.images}).")
    if patch is None and graph.patches != count and images:
        raise ValueError(
            f"Expected patch [B, N={count}], as the graph has n={graph.patches} patches (got None). "
            "Give the input patch of each token."
        )
    if patch is not None and patch.shape != tokens.shape:
        raise ValueError(f"Expected patch of shape [B, N] = {list(tokens.shape)} (got {list(patch.shape)}).")


def _handed_on(stays: Tensor, leaves: Tensor, graph: PropagationGraph, alpha: float, patch: Tensor | None) -> Edges:
    """Returns edges from dropped tokens ``[B, P]`` to the clusters of kept ones ``[B, K]``, both flat token ids."""
    images, keep = stays.shape
    senders, here = leaves, stays
    if patch is not None:
        flat = (patch + _first(images, graph.patches, patch)).flatten()
        senders, here = (flat.index_select(0, t.flatten()).view(t.shape) for t in (leaves, stays))
    cluster_at = here.new_full((graph.x.size(0),), -1)
    cluster_at.scatter_(0, here.flatten(), counting(images * keep, here.device))
    if may_look(leaves):
        if graph.sender.numel() <= PASS:
            return _live_of_all(leaves, senders, cluster_at, graph, alpha)
        leaves, order = leaves.sort(dim=1)
        senders = senders.gather(1, order)
        return _live_edges(leaves.flatten(), senders.flatten(), cluster_at, graph, alpha)
    if graph.near is not None:
        token, cluster, weight = _near_slots(leaves, senders, cluster_at, graph)
        image = torch.arange(images, device=leaves.device)[:, None, None].expand_as(token)
    else:
        token, cluster, weight = _all_slots(leaves, senders, cluster_at, graph)
        image = graph.sender.div(max(graph.patches, 1), rounding_mode="floor")
    # An unused edge gets weight 0 from the image's first kept token to itself. That changes nothing, even if a dropped
    # token is infinite, and does not make a token without receivers look as if it had one.
    live = (token >= 0) & (cluster >= 0) & (weight != 0)
    token = torch.where(live, token, stays[:, 0][image])
    cluster = torch.where(live, cluster, image * keep)
    return token.flatten(), cluster.flatten(), torch.where(live, weight * alpha, 0.0).flatten()


def _live_of_all(leaves: Tensor, senders: Tensor, cluster_at: Tensor, graph: PropagationGraph, alpha: float) -> Edges:
    """Returns only the edges in use, by one pass over the whole graph: for small graphs fewer and faster operations."""
    sender, receiver, weight = graph.used
    token_at = torch.full_like(cluster_at, -1).scatter_(0, senders.flatten(), leaves.flatten())
    token, cluster = token_at.index_select(0, sender), cluster_at.index_select(0, receiver)
    live = ((token | cluster) >= 0).nonzero().squeeze(1)  # -1 | n is -1
    return token[live], cluster[live], weight[live] * alpha


def _live_edges(token: Tensor, sender: Tensor, cluster_at: Tensor, graph: PropagationGraph, alpha: float) -> Edges:
    """Returns only the edges in use, from the senders' lists; their number depends on the data."""
    first = graph.start[sender]
    count = graph.start[sender + 1] - first
    which = torch.repeat_interleave(count)
    slot = torch.arange(which.numel(), device=which.device) + (first + count - count.cumsum(0))[which]
    cluster, weight = cluster_at[graph.receiver[slot]], graph.weight[slot]
    live = ((cluster >= 0) & (weight != 0)).nonzero().squeeze(1)
    return token[which[live]], cluster[live], weight[live] * alpha


def _near_slots(leaves: Tensor, senders: Tensor, cluster_at: Tensor, graph: PropagationGraph) -> Edges:
    """Returns 8 slots for each dropped token, ``[B, P, 8]``."""
    assert graph.near is not None and graph.near_weight is not None
    ahead = _first(leaves.size(0), graph.patches, leaves)
    local = senders - ahead
    receiver = graph.near[local] + ahead[..., None]
    return leaves[..., None].expand_as(receiver), cluster_at[receiver], graph.near_weight[local]


def _all_slots(leaves: Tensor, senders: Tensor, cluster_at: Tensor, graph: PropagationGraph) -> Edges:
    """Returns all slots of the graph, ``[E]``; token -1 if this step does not drop the sender."""
    token_at = torch.full_like(cluster_at, -1).scatter_(0, senders.flatten(), leaves.flatten())
    return token_at[graph.sender], cluster_at[graph.receiver], graph.weight


def _first(images: int, each: int, like: Tensor) -> Tensor:
    """Returns the first token of each of B images, ``[B, 1]``."""
    return starts(images, each, like.device)
