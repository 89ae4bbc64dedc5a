"""The methods as functions of flat tokens with edges: each returns the cluster of every token of the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.select.parts.choices.contraction import Level, Match, Pick, contract, first_level, matching
from tokengraph.select.parts.choices.contraction_sets import still_neighborhoods
from tokengraph.select.parts.choices.kmeans import kmeans
from tokengraph.select.parts.choices.matching import graclus_matching, heavy_matching
from tokengraph.select.parts.graphs.laplacian import low_eigenvectors
from tokengraph.select.parts.graphs.pairs import Pairs
from tokengraph.select.parts.scores import merges


class Linked(NamedTuple):
    """The tokens of a batch with edges: ``x [M, C]``, ``size [M]``, ``image [M]``, ``ptr [B+1]`` and their pairs."""

    x: Tensor
    size: Tensor
    image: Tensor
    ptr: Tensor
    pairs: Pairs

    def level(self) -> Level:
        """Returns the finest level of a contraction; edges of weight 0 connect nothing."""
        return first_level(self.x, self.size, self.image, self.pairs.of(self.pairs.weight > 0))

    def of_image(self, b: int) -> tuple[Pairs, int, int]:
        """Returns the pairs of image b in its own ids, its first token and its number of tokens."""
        start, stop = int(self.ptr[b]), int(self.ptr[b + 1])
        return self.pairs.of(self.image[self.pairs.a] == b).moved(-start), start, stop - start


Method = Callable[[Linked, "list[int]", int, int], Tensor]  # tokens, budgets, eigenvectors, neighbours when relinked


def heavy_edges(
    tokens: Linked,
    budgets: list[int],
    rank: int,
    relink: int,
    *,
    score: Callable[[Level], Tensor] = merges.by_weight,
    match: Match = heavy_matching,
) -> Tensor:
    """Contracts heavy-edge matchings; see :class:`tokengraph.HeavyEdges`."""
    level = tokens.level()
    return contract(level, budgets, matching(score, match), relink=relink)


def greedy_modularity(tokens: Linked, budgets: list[int], rank: int, relink: int) -> Tensor:
    """Merges communities; see :class:`tokengraph.Modularity`."""
    level = tokens.level()
    return contract(level, budgets, matching(merges.modularity_gain), relink=relink)


def local_variation(
    tokens: Linked,
    budgets: list[int],
    rank: int,
    relink: int,
    *,
    pick: Pick = matching(merges.little_variation),  # noqa: B008
) -> Tensor:
    """Contracts edges of little variation; see :class:`tokengraph.LocalVariation`."""
    level = tokens.level()
    basis = tokens.x.new_zeros(tokens.x.size(0), rank, dtype=torch.float64)
    for b, keep in enumerate(budgets):
        pairs, start, count = tokens.of_image(b)
        if keep < count:
            values, vectors = low_eigenvectors(pairs, count, rank, normalized=False)
            there = values > 1e-8 * values.abs().max().clamp_min(1e-30)
            scaled = vectors * torch.where(there, values.clamp_min(1e-300).rsqrt(), 0.0)
            basis[start : start + count, : scaled.size(1)] = scaled
    level.basis = basis
    return contract(level, budgets, pick, renew=_orthogonal, relink=relink)


def _orthogonal(level: Level) -> Level:
    r"""Makes each image's basis orthonormal again: :math:`A = B (B^T L B)^{+1/2}`, by the contracted Laplacian."""
    assert level.basis is not None
    pairs, basis = level.pairs, level.basis
    gap = (basis[pairs.a] - basis[pairs.b]) * pairs.weight.double().sqrt()[:, None]
    images = int(level.image[-1]) + 1
    gram = basis.new_zeros(images, basis.size(1), basis.size(1))
    own = level.image[pairs.a]
    for b in range(images):
        rows = gap[own == b]
        gram[b] = rows.T @ rows  # B^T L B
    values, vectors = torch.linalg.eigh(gram)
    there = values > 1e-10 * values.amax(dim=1, keepdim=True).clamp_min(1e-30)
    root = torch.where(there, values.clamp_min(1e-300).rsqrt(), 0.0)
    turned = (vectors * root[:, None]) @ vectors.transpose(1, 2)
    for b in range(images):
        mine = level.image == b
        basis[mine] = basis[mine] @ turned[b]
    return level


def spectral(tokens: Linked, budgets: list[int], rank: int, relink: int) -> Tensor:
    """Clusters eigenvectors; see :class:`tokengraph.SpectralClustering`."""
    label, taken = tokens.image.new_zeros(tokens.x.size(0)), 0
    for b, keep in enumerate(budgets):
        pairs, start, count = tokens.of_image(b)
        own = torch.arange(count, device=label.device)
        if keep < count:
            _, vectors = low_eigenvectors(pairs, count, min(rank or keep, count))
            own = kmeans(torch.nn.functional.normalize(vectors, dim=1), keep)
        label[start : start + count] = own + taken
        taken += keep if count else 0
    return label


METHODS: dict[str, Method] = {
    "cosine": partial(heavy_edges, score=merges.by_cosine),
    "weight": heavy_edges,
    "normalized": partial(heavy_edges, score=merges.by_normalized_weight),
    "cosine/graclus": partial(heavy_edges, score=merges.by_cosine, match=graclus_matching),
    "weight/graclus": partial(heavy_edges, match=graclus_matching),
    "normalized/graclus": partial(heavy_edges, score=merges.by_normalized_weight, match=graclus_matching),
    "modularity": greedy_modularity,
    "variation": local_variation,
    "variation/neighborhoods": partial(local_variation, pick=still_neighborhoods),
    "spectral": spectral,
}
