"""Token reconstruction: each token becomes a mixture of the clusters nearest to it in feature space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.edges.distance import origin, products_blur, squared_norm
from tokengraph.edges.knn_torch import lowest
from tokengraph.errors import check_finite, check_tokens
from tokengraph.flat.faint import drop_faint
from tokengraph.flat.looks import may_look
from tokengraph.flat.segment import as_type, weighted_sum, wide
from tokengraph.kinds import explains
from tokengraph.maps.soft import Edges
from tokengraph.select.expedite.cluster import check_temperature

LIMIT = 2**24  # distances at a time
NORMALIZE = ("softmax", "l2")
TIES = ("k", "released")
MODES = ("soft", "hard")


@explains
def token_reconstruction(
    x: Tensor,
    centers: Tensor,
    refined: Tensor,
    *,
    inv_temperature: float | Tensor = 0.02,
    neighbors: int = 20,
    normalize: str = "softmax",
    ties: str = "k",
    mode: str = "soft",
) -> Tensor:
    r"""Gives each token a mixture of refined clusters, weighted by its distance to them before refinement.

    .. math:: o_n = \sum_{m \in K(n)} a_{nm} y_m, \qquad
              a_{nm} = \operatorname{softmax}_{m \in K(n)} (-t \lVert z_n - s_m \rVert^2)

    with :math:`K(n)` the k nearest of all M clusters.

    Args:
        x: Tokens before the clustering, ``[B, N, C]``.
        centers: Clusters after it, ``[B, M, C]``.
        refined: The clusters after the blocks that refined them, ``[B, M, D]``, any D.
        inv_temperature: t; a tensor ``[B, 1, 1]`` gives each image its own.
        neighbors: k; clamped to M, and -1 means all.
        normalize: ``"softmax"``, or ``"l2"``: ``exp(-t d^2)`` divided by its L2 norm, as released; these do not sum
            to 1.
        ties: ``"k"``: exactly k, the lower index first; ``"released"``: also every cluster as near as the k-th.
        mode: ``"soft"``, or ``"hard"``: a copy of the nearest cluster.

    Returns:
        ``[B, N, D]`` in the dtype of ``refined``.

    Raises:
        ValueError: If shapes do not fit, or an option is unknown.

    Cost: ``N M C + N k D`` multiply-adds an image; at most 16M distances at a time. ``ties="released"`` synchronises
    with the host.

    Source: Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*,
    NeurIPS 2022. Differs: softmax by default (released: ``normalize="l2"``, ``ties="released"``).
    """
    token, cluster, weight = reconstruction_edges(
        x, centers, inv_temperature=inv_temperature, neighbors=neighbors, normalize=normalize, ties=ties, mode=mode
    )
    check_tokens(refined, name="refined")
    if refined.shape[:2] != centers.shape[:2]:
        raise ValueError(
            f"Expected refined with one row for each of [B, M] = {list(centers.shape[:2])} clusters "
            f"(got shape {list(refined.shape)})."
        )
    rows = x.size(0) * x.size(1)
    out = weighted_sum(refined.flatten(0, 1), weight, token, rows, source=cluster)
    return out.to(refined.dtype).view(*x.shape[:2], refined.size(2))


def reconstruction_edges(
    x: Tensor,
    centers: Tensor,
    *,
    inv_temperature: float | Tensor = 0.02,
    neighbors: int = 20,
    normalize: str = "softmax",
    ties: str = "k",
    mode: str = "soft",
) -> Edges:
    """Returns the edges of :func:`token_reconstruction`: ``token``, ``cluster`` ``[E]`` flat ids and ``weight [E]``.

    Sorted by token; with ``ties="k"`` each token has k, nearest first. Weights are float32 or wider.
    """
    check_reconstruction(neighbors, normalize, ties, mode)
    if isinstance(inv_temperature, str):
        raise ValueError(f"Expected inv_temperature as a number or tensor (got {inv_temperature!r}).")
    check_temperature(inv_temperature)
    z, s = _recentred(x, centers)
    return make_edges(z, s, inv_temperature, neighbors, normalize, ties, mode)


def hard_labels(x: Tensor, centers: Tensor) -> Tensor:
    """Returns each token's nearest cluster, ties to the lower index: ``[B, N]`` int64 in ``[0, M)``.

    Args:
        x: ``[B, N, C]``.
        centers: ``[B, M, C]``.

    Cost: ``N M C`` multiply-adds an image.
    """
    z, s = _recentred(x, centers)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        exact = products_blur(z, s, _sharpness(z, s))
        half = 0.5 * squared_norm(s)
        if exact:
            return torch.cat([_differences(block, s).argmin(dim=2) for block in _blocks(z, s)], dim=1)
        return torch.cat([_scores(block, s, half).argmin(dim=2) for block in _blocks(z, s)], dim=1)


def check_reconstruction(neighbors: int, normalize: str, ties: str, mode: str) -> None:
    """Raises unless every option has a value that :func:`token_reconstruction` knows."""
    if isinstance(neighbors, bool) or not isinstance(neighbors, int):
        raise TypeError(f"Expected neighbors as an int (got {neighbors!r}).")
    if neighbors < 1 and neighbors != -1:
        raise ValueError(f"Expected neighbors >= 1, or -1 for all clusters (got neighbors={neighbors}).")
    for name, value, known in (("normalize", normalize, NORMALIZE), ("ties", ties, TIES), ("mode", mode, MODES)):
        if value not in known:
            raise ValueError(f"Expected {name} to be one of {', '.join(known)} (got {value!r}).")


def make_edges(z: Tensor, s: Tensor, t: float | Tensor, neighbors: int, normalize: str, ties: str, mode: str) -> Edges:
    """Like :func:`reconstruction_edges`, without checks, for tokens and clusters relative to a nearby origin."""
    images, tokens, clusters = z.size(0), z.size(1), s.size(1)
    k = 1 if mode == "hard" else clusters if neighbors == -1 else min(neighbors, clusters)
    loose = ties == "released" and mode == "soft" and k < clusters
    with torch.autocast(z.device.type, enabled=False):
        half = 0.5 * squared_norm(s)
        exact = products_blur(z, s, _sharpness(z, s) if mode == "hard" else t)
        found, weights = [], []
        for block in _blocks(z, s):
            score = _differences(block, s) if exact else _scores(block, s, half)
            near, kept = _nearest(score, k, loose)
            if mode == "hard":
                weights.append(torch.ones_like(kept))
            else:
                own = torch.zeros_like(block[..., 0]) if exact else 0.5 * squared_norm(block)
                weights.append(_weigh(kept, own, t, normalize))
            found.append(near)
        weight = torch.cat(weights, dim=1)
        first = torch.arange(images, device=z.device)[:, None, None]
        if loose:  # the number of edges depends on the data
            token, cluster = torch.cat(found, dim=1).flatten(0, 1).nonzero().unbind(1)
            return token, cluster + token // tokens * clusters, weight.flatten(0, 1)[token, cluster]
        cluster = (torch.cat(found, dim=1) + first * clusters).flatten()
        token = torch.arange(images * tokens, device=z.device)[:, None].expand(-1, k).flatten()
        return token, cluster, weight.flatten()


def _nearest(score: Tensor, k: int, loose: bool) -> tuple[Tensor, Tensor]:
    """Returns the k lowest of each row of ``[B, R, M]``: ids and scores ``[B, R, k]``.

    With ``loose``, returns a mask ``[B, R, M]`` of all scores up to the k-th lowest, and the scores, inf elsewhere.
    """
    with torch.no_grad():
        if k == score.size(2):
            return torch.arange(k, device=score.device).expand_as(score), score
        low, index = lowest(score, k) if k > 1 or loose else score.min(dim=2, keepdim=True)
    if loose:
        near = score <= low[..., -1:]
        return near, score.masked_fill(~near, torch.inf)
    return index, score.gather(2, index)


def _weigh(score: Tensor, half: Tensor, t: float | Tensor, normalize: str) -> Tensor:
    """Returns weights from scores ``|s|^2 / 2 - z s``; ``half`` is ``|z|^2 / 2``, which cancels in a softmax."""
    if normalize == "softmax":
        return drop_faint((score * (-2.0 * t)).softmax(dim=2))
    squared = 2.0 * (score + half[..., None]).clamp_min(0.0)
    return F.normalize(drop_faint((squared * -t).exp()), dim=2, eps=1e-12)


def _scores(z: Tensor, s: Tensor, half: Tensor) -> Tensor:
    """Returns ``|s_m|^2 / 2 - z_n s_m``, ``[B, R, M]``, which ranks clusters as the distance does."""
    return torch.baddbmm(half[:, None], z, s.transpose(1, 2), alpha=-1.0)


def _differences(z: Tensor, s: Tensor) -> Tensor:
    """Returns ``|z_n - s_m|^2 / 2`` by subtraction, ``[B, R, M]``, for distant rows whose products lose digits."""
    return 0.5 * torch.cdist(z, s, compute_mode="donot_use_mm_for_euclid_dist").square()


def _sharpness(z: Tensor, s: Tensor) -> float | Tensor:
    """Returns one over the smallest squared step between neighbouring tokens, a scale for nearest clusters, ``[B]``."""
    if not may_look(z) or z.size(1) == 0:
        return 0.0
    step = (z.detach()[:, 1:] - z.detach()[:, :-1]).square().sum(dim=2).flatten(1)
    step = torch.where(step > 0, step, torch.inf)
    return 1.0 / step.amin(dim=1) if step.size(1) else z.new_zeros(z.size(0))


def _blocks(z: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """Splits tokens into blocks of at most ``LIMIT`` distances; compiled, per image, as the batch size is symbolic."""
    images = 1 if torch.compiler.is_compiling() else s.size(0)
    return z.split(max(1, LIMIT // max(1, images * s.size(1))), dim=1)


def _recentred(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts one token of each image from both, in float32 or wider, so that distances keep their digits."""
    check_tokens(x)
    check_tokens(centers, name="centers")
    if centers.size(0) != x.size(0) or centers.size(2) != x.size(2) or centers.size(1) < 1:
        raise ValueError(
            f"Expected centers of shape [B, M, C] with B={x.size(0)}, C={x.size(2)}, M >= 1 "
            f"(got {list(centers.shape)})."
        )
    check_finite(x)
    check_finite(centers, "centers")
    z = as_type(x, wide(x))
    zero = origin(z.detach()[:, :: max(1, z.size(1) // 64)]) if z.size(1) else z.new_zeros(z.size(0), 1, z.size(2))
    return z - zero, as_type(centers, z.dtype) - zero
