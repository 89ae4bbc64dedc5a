"""How good a coarsening is: against its graph, and against a segmentation of the image."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tokengraph.errors import check_kind
from tokengraph.graph.masks import Segments, against_mask, check_mask_of
from tokengraph.graph.partition import linked
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.coarsening.methods import Linked
from tokengraph.select.parts.graphs.laplacian import laplacian, low_eigenvectors
from tokengraph.select.parts.graphs.pairs import Pairs, join_pairs


@dataclass(frozen=True, eq=False)
class Quality:
    """Measures of a coarsening, one number for each image, ``[B]`` float64; NaN where a measure does not apply.

    Args:
        clusters: Number of clusters.
        spectral: Distance of the fine graph's spectrum to that of the coarse graph, lifted; lower is better.
        cut: Share of the edge weight that is not inside clusters; lower is better.
        modularity: Edge weight inside clusters beyond chance; higher is better.
        variance: Share of the features' variance inside clusters; lower is better.
        compactness: Roundness of clusters on the grid, 1 for a disc; higher is better.
        accuracy: Achievable segmentation accuracy; higher is better.
        recall: Share of the segmentation's borders that clusters have too; higher is better.
        leakage: Under-segmentation error; lower is better.
    """

    clusters: Tensor
    spectral: Tensor
    cut: Tensor
    modularity: Tensor
    variance: Tensor
    compactness: Tensor
    accuracy: Tensor
    recall: Tensor
    leakage: Tensor

    def mean(self) -> dict[str, float]:
        """Returns the mean of each measure over the images to which it applies."""
        return {f.name: float(getattr(self, f.name).nanmean()) for f in fields(self)}

    def __repr__(self) -> str:
        shown = [f"{name}={value:.5g}" for name, value in self.mean().items() if value == value]
        return f"{type(self).__name__}({', '.join(shown)})"


@explains
@torch.no_grad()
def quality(
    graph: TokenGraph,
    assignment: Assignment | SoftAssignment,
    mask: Tensor | None = None,
    *,
    weight: str = "cosine",
    eigenvalues: int | None = None,
    tolerance: int | None = None,
    ignore: int = 255,
) -> Quality:
    r"""Measures a coarsening of a graph.

    With W the edge weights (:math:`w_{ij} = w_{ji}`, no loops), :math:`d_i = \sum_j w_{ij}`, :math:`2m = \sum_i d_i`,
    S the 0/1 matrix of the map, and N tokens and K clusters of an image:

    * **spectral**: :math:`\frac1N \sum_i | \lambda_i - \mu_i |`, the sorted eigenvalues of the normalised Laplacians of
      W and of the graph lifted from :math:`S^T W S` (loops kept). The lifted graph has the K eigenvalues of the coarse
      one, and :math:`N - K` times 1. (Jin, Loukas & JaJa, *Graph Coarsening with Preserved Spectral Properties*,
      AISTATS 2020.)
    * **cut**: :math:`1 - \sum_c w_{cc} / 2m`, with :math:`w_{cc} = \sum_{c(i) = c(j) = c} w_{ij}`.
    * **modularity**: :math:`\sum_c w_{cc} / 2m - (d_c / 2m)^2` (Newman, PNAS 2006).
    * **variance**: :math:`\sum_i s_i \lVert x_i - \bar x_{c(i)} \rVert^2 / \sum_i s_i \lVert x_i - \bar x \rVert^2`
      with sizes :math:`s_i`: 1 minus the *explained variation* of Moore et al., CVPR 2008.
    * **compactness**: :math:`\sum_c \frac{A_c}{N} \frac{4 \pi A_c}{P_c^2}` with area and perimeter in patches; the
      image's border counts (Schick, Fischer & Stiefelhagen, ICPR 2012). It needs a full grid ``(H, W)``.

    and, against a mask, with its segments G and clusters S in pixels:

    * **accuracy** (achievable segmentation accuracy): :math:`\frac1N \sum_S \max_G |S \cap G|` (Liu et al.,
      *Entropy Rate Superpixel Segmentation*, CVPR 2011).
    * **recall** (boundary recall): the share of border pixels of G with a border pixel of the clusters in the square
      of ``2 * tolerance + 1`` pixels around them (Martin, Fowlkes & Malik, PAMI 2004; Stutz et al., CVIU 2018).
    * **leakage** (under-segmentation error): :math:`\frac1N \sum_G \sum_{S \cap G \ne \emptyset} \min(|S \cap G|,
      |S \setminus G|)` (Neubert & Protzel, 2012).

    Args:
        graph: Any token graph with edges, B images.
        assignment: A map over its tokens. Of a soft map each token's heaviest cluster counts. Dropped tokens belong to
            no cluster: their edges are cut, their variance is not explained, their pixels are never right.
        mask: Segment of each pixel, ``[B, H, W]`` or ``[H, W]`` integers, at any resolution; needs a full grid
            ``(H, W)``. Negative pixels and those that equal ``ignore`` are left out.
        weight: Similarity along an edge; see :class:`tokengraph.HeavyEdges`.
        eigenvalues: Compares only so many of the lowest eigenvalues (at most K), as a mean over these; ``None``: all;
            0 leaves the measure out.
        tolerance: In pixels; ``None``: 0.0025 of the diagonal, rounded, as Stutz et al. have it.
        ignore: A value of the mask that means no segment.

    Returns:
        The measures of each image.

    Raises:
        ValueError: If the map or the mask does not fit the graph, the graph has no edges, or for another weight.
        TypeError: If the mask is not of integers.

    Cost: a dense decomposition, ``O(N^3)``, for all eigenvalues (0.2 s for 1,024 tokens); everything else is linear in
    tokens, edges and pixels.

    Example:
        >>> graph = TokenGraph.from_tokens(torch.tensor([[[1.0], [1.0], [-1.0], [-1.0]]]), (1, 4)).connect_grid()
        >>> quality(graph, Assignment(torch.tensor([0, 0, 1, 1]), 2))
        Quality(clusters=2, spectral=0.5, cut=0, modularity=0.5, variance=0, compactness=0.69813)
    """
    check_kind(graph, TokenGraph, "graph")
    cluster, count = _hard(graph, assignment)
    if mask is not None:
        mask = check_mask_of(graph, mask)
    tokens = linked(graph, weight)
    grids = graph.grids or [None] * graph.num_images
    rows = []
    for b, size in enumerate(graph.counts):
        pairs, start, _ = tokens.of_image(b)
        own = cluster[start : start + size]
        kept = own < count
        label = torch.full_like(own, -1)
        label[kept] = torch.unique(own[kept], return_inverse=True)[1]
        row = _on_graph(tokens, pairs, start, label, eigenvalues)
        grid = grids[b]
        full = grid is not None and len(grid) == 2 and grid[0] * grid[1] == size
        row["compactness"] = _compactness(label.view(grid[0], grid[1])) if full and grid else torch.nan
        segments = Segments(torch.nan, torch.nan, torch.nan)
        if mask is not None and full and grid:
            segments = against_mask(label.view(grid[0], grid[1]), mask[b], tolerance, ignore)
        rows.append([*row.values(), *segments])
    return Quality(*torch.tensor(rows, dtype=torch.float64).view(-1, 9).unbind(1))


def _hard(graph: TokenGraph, assignment: Assignment | SoftAssignment) -> tuple[Tensor, int]:
    """Returns the cluster of each token, K for dropped ones, and K."""
    if not isinstance(assignment, Assignment | SoftAssignment):
        raise TypeError(f"Expected an Assignment or a SoftAssignment (got {type(assignment).__name__}).")
    if assignment.num_tokens != graph.x.size(0):
        raise ValueError(
            f"Expected a map over the graph's M={graph.x.size(0)} tokens (got one over {assignment.num_tokens}). Of "
            "several steps take the composed one: hierarchy(...).between(-1)."
        )
    if isinstance(assignment, Assignment):
        return assignment.cluster, assignment.num_clusters
    order = assignment.cluster.argsort(descending=True, stable=True)  # ties go to the lower cluster, written last
    order = order[assignment.weight.detach()[order].argsort(stable=True)]
    cluster = torch.full((assignment.num_tokens,), assignment.num_clusters, device=order.device)
    token, last = assignment.token[order], torch.arange(order.numel(), device=order.device)
    top = torch.full_like(cluster, -1).scatter_reduce(0, token, last, "amax")
    there = top >= 0
    cluster[there] = assignment.cluster[order[top[there]]]
    return cluster, assignment.num_clusters


def _on_graph(tokens: Linked, pairs: Pairs, start: int, label: Tensor, eigenvalues: int | None) -> dict[str, float]:
    """Returns the measures on the edges and features of one image, whose dropped tokens have the label -1."""
    pairs = pairs._replace(weight=pairs.weight.double())
    x, size = (t[start : start + label.numel()].double() for t in (tokens.x, tokens.size))
    count = int(label.max()) + 1 if label.numel() else 0
    inside = (label[pairs.a] == label[pairs.b]) & (label[pairs.a] >= 0)
    whole = 2.0 * pairs.weight.sum()
    loops = 2.0 * x.new_zeros(count).index_add_(0, label[pairs.a][inside], pairs.weight[inside])
    degree = x.new_zeros(count + 1)  # the last one is of dropped tokens
    for ends in (label[pairs.a], label[pairs.b]):
        degree.index_add_(0, torch.where(ends < 0, count, ends), pairs.weight)
    share, degrees = loops / whole, (degree[:count] / whole).square()
    return {
        "clusters": float(count),
        "spectral": _spectral(pairs, label, count, loops, eigenvalues),
        "cut": float(1 - share.sum()) if whole > 0 else torch.nan,
        "modularity": float((share - degrees).sum()) if whole > 0 else torch.nan,
        "variance": _variance(x, size, label, count),
    }


def _spectral(pairs: Pairs, label: Tensor, count: int, loops: Tensor, eigenvalues: int | None) -> float:
    if eigenvalues is not None and eigenvalues < 0:
        raise ValueError(f"Expected eigenvalues >= 0 (got {eigenvalues}).")
    nodes = label.numel()
    if not nodes or eigenvalues == 0:
        return torch.nan
    kept = (label[pairs.a] >= 0) & (label[pairs.b] >= 0)
    between = join_pairs(label[pairs.a][kept], label[pairs.b][kept], pairs.weight[kept], count)
    coarse = torch.linalg.eigvalsh(laplacian(between, count, loops=loops))
    if eigenvalues is None:
        fine = torch.linalg.eigvalsh(laplacian(pairs, nodes))
        lifted = torch.cat([coarse, coarse.new_ones(nodes - count)]).sort().values
        return float((fine - lifted).abs().mean())
    some = min(eigenvalues, count)
    fine = low_eigenvectors(pairs, nodes, some)[0]
    return float((fine - coarse[:some]).abs().mean())


def _variance(x: Tensor, size: Tensor, label: Tensor, count: int) -> float:
    mean = (size[:, None] * x).sum(0) / size.sum()
    total = ((x - mean).square().sum(1) * size).sum()
    kept, home = label >= 0, torch.where(label < 0, count, label)
    mass = size.new_zeros(count + 1).index_add_(0, home, size)
    means = x.new_zeros(count + 1, x.size(1)).index_add_(0, home, size[:, None] * x) / mass[:, None]
    means = torch.where(kept[:, None], means[home], mean)  # a dropped token is not explained by any cluster
    within = ((x - means).square().sum(1) * size).sum()
    return float(within / total) if total > 0 else torch.nan


def _compactness(label: Tensor) -> float:
    """Returns the mean isoperimetric quotient of clusters ``[H, W]`` by area; -1 is no cluster."""
    count = int(label.max()) + 1
    if count < 1:
        return torch.nan
    framed = torch.full((label.size(0) + 2, label.size(1) + 2), -1, device=label.device)
    framed[1:-1, 1:-1] = label
    sides = torch.zeros(count + 1, dtype=torch.float64, device=label.device)  # the last one is no cluster's
    for first, second in ((framed[1:], framed[:-1]), (framed[:, 1:], framed[:, :-1])):
        apart = first != second
        for ends in (first[apart], second[apart]):
            sides += torch.bincount(torch.where(ends < 0, count, ends), minlength=count + 1)
    area = torch.bincount(label[label >= 0], minlength=count).double()
    return float((area / area.sum() * 4 * torch.pi * area / sides[:count].square()).sum())
