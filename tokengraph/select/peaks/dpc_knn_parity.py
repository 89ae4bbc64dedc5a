"""DPC-KNN exactly as TCFormer's code computes it, for reproducing published numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.edges.distance import recentre, squared_distance, squared_norm
from tokengraph.errors import check_positive, check_tokens
from tokengraph.maps.hard import Assignment


class Parity(NamedTuple):
    """The intermediate results of TCFormer's function, for comparison."""

    distance: Tensor  # [B, N, N], after masking
    density: Tensor  # [B, N], after noise and mask
    delta: Tensor  # [B, N]
    score: Tensor  # [B, N]
    centers: Tensor  # [B, K], best first
    cluster: Tensor  # [B, N] in [0, K)
    assignment: Assignment  # the same map, flat; masked tokens included, as published


@torch.no_grad()
def dpc_knn_parity(
    x: Tensor, keep: int | list[int], *, k: int = 5, mask: Tensor | None = None, noise: Tensor | None = None
) -> Parity:
    """Clusters ``x [B, N, C]`` as TCFormer's ``cluster_dpc_knn`` does, with the noise as an argument.

    Unlike :func:`tokengraph.dpc_knn` it exponentiates densities, breaks ties by noise, numbers clusters by score, and
    fills masked columns with the maximum over the whole batch, so that images of a batch can affect each other. Masked
    tokens join clusters, as published.

    Args:
        x: ``[B, N, C]``; computed in float32.
        keep: Clusters an image, ``1 <= keep <= N``.
        k: Nearest tokens in the density, the token itself included, ``1 <= k <= N``.
        mask: ``[B, N]``, > 0 where there is a token.
        noise: ``[B, N]`` in [0, 1); ``None`` means zeros.

    Raises:
        ValueError: If ``keep`` or ``k`` lies outside ``[1, N]``, where the published code fails too.

    Cost: ``O(B N^2 C)`` time and about five ``[B, N, N]`` floats.

    Source: TCFormer (Zeng et al., CVPR 2022), code at commit 1ea72a87. Differs: ties go to the lower index (published:
    undefined).
    """
    check_tokens(x)
    tokens, channels = x.shape[1:]
    if not isinstance(keep, int):
        raise TypeError(f"Expected one keep for all images in parity mode (got {keep!r}).")
    check_positive(keep=keep, k=k)
    if keep > tokens or k > tokens:
        raise ValueError(f"Expected keep and k of at most N={tokens} in parity mode (got keep={keep}, k={k}).")
    with torch.autocast(x.device.type, enabled=False):
        centred = recentre(x)
        norm = squared_norm(centred)
        distance = (squared_distance(centred, centred, norm, norm)).sqrt() * channels**-0.5
        distance.diagonal(dim1=1, dim2=2).zero_()
        if mask is not None:
            real = mask > 0
            distance = torch.where(real[:, None, :], distance, distance.max() + 1)
        density = (-distance.topk(k, dim=2, largest=False).values.square().mean(dim=2)).exp()
        if noise is not None:
            density = density + noise * 1e-6
        if mask is not None:
            density = density * real
        denser = density[:, None, :] > density[:, :, None]
        largest = distance.flatten(1).amax(dim=1)[:, None, None]
        delta = torch.where(denser, distance, largest).amin(dim=2)
        score = delta * density
        centers = score.argsort(dim=1, descending=True, stable=True)[:, :keep]
        rows = distance.gather(1, centers[..., None].expand(-1, -1, tokens))
        cluster = rows.argmin(dim=1)
        cluster.scatter_(1, centers, torch.arange(keep, device=x.device).expand_as(centers))
        return Parity(
            distance, density, delta, score, centers, cluster, Assignment.from_dense(cluster, keep, centers=centers)
        )
