"""GTP: dropped tokens pass their features to their neighbours in a graph of the input patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.edges.local import WINDOW
from tokengraph.errors import check_finite, check_positive, check_tokens
from tokengraph.flat.tables import counting
from tokengraph.kinds import explains
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.peaks import check_order
from tokengraph.select.parts.graphs.propagation import PropagationGraph, check_graph, connect_patches
from tokengraph.select.parts.reductions.propagate import MODES, check_patch, kept_as_they_are, propagation
from tokengraph.select.parts.scores.attention import check_score, gtp_score, sparsify
from tokengraph.select.parts.scores.random import random_score
from tokengraph.select.tokens import Tokens, clamp_budget

# Tokens removed in each layer: density of the attention maps and alpha, as the authors tuned them for DeiT-B.
DEIT_B = {
    1: (0.8, 0.1), 2: (0.7, 0.1), 3: (0.9, 0.4), 4: (1.0, 0.4), 5: (0.6, 0.15), 6: (0.6, 0.15), 7: (0.6, 0.1),
    8: (0.6, 0.1), 9: (0.7, 0.2), 10: (0.5, 0.2), 11: (0.8, 0.3), 12: (0.8, 0.3), 13: (0.7, 0.3), 14: (0.8, 0.3),
}  # fmt: skip


@explains
def gtp(
    score: Tensor,
    keep: int,
    graph: PropagationGraph | None = None,
    *,
    alpha: float = 0.1,
    patch: Tensor | None = None,
    mode: str = "propagate",
    order: str = "index",
) -> SoftAssignment:
    r"""Keeps the tokens with the highest scores; the others pass their features along the graph and are dropped.

    .. math:: x'_i = x_i + \alpha \sum_{j \text{ dropped}} \hat A_{ij} x_j, \qquad
              s'_i = s_i + \alpha \sum_{j \text{ dropped}} \hat A_{ij} s_j

    Args:
        score: ``[B, N]``, highest stay; ties go to the lower index.
        keep: Clusters an image, at least 1; clamped to N. With N or more the map is the identity.
        graph: Edges from senders to receivers, in patch ids; only ``mode="propagate"`` needs it.
        alpha: Strength of the propagation, at least 0.
        patch: Input patch of each token, ``[B, N]`` int64; ``None`` means token i is patch i.
        mode: ``"propagate"``; ``"none"``: only drops tokens; ``"mean"``: keeps the mean of dropped tokens as one more
            token, after the others and counted in ``keep``.
        order: ``"index"``: kept tokens stay in order; ``"score"``: highest first, as in the published code.

    Returns:
        The weighted map (``normalize=False``), whose ``reduce`` gives ``x'`` and ``s'``; ``centers`` are the kept
        tokens (for the mean, the best dropped one). ``lift`` gives a dropped token the weighted mean of its receivers,
        zeros if it has none, or the mean token in mode ``"mean"``.

    Raises:
        ValueError: If an option is out of range, shapes do not fit, or scores are not finite.
        TypeError: If ``graph`` is another kind of graph.

    Cost: one sort of ``[B, N]``, then the edges of dropped tokens. On CUDA and under ``torch.compile`` shapes are
    fixed, so unused edges stay with weight 0: 8 a token on a spatial graph, else all edges of the graph.

    Source: Xu et al., *GTP-ViT*, WACV 2024, and its code. Differs: kept tokens stay in order, ties go to the lower
    index, nothing to remove is no error, every mode has token scales.
    """
    if not isinstance(score, Tensor) or score.dim() != 2:
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(f"Expected score of shape [B, N] (got {got}).")
    _check(alpha, mode, order)
    check_patch(score, graph, patch, mode)
    check_finite(score[..., None], "scores")
    return _gtp(score, keep, graph, alpha, patch, mode, order)


def propagate(
    x: Tensor,
    kept: Tensor,
    graph: PropagationGraph | None = None,
    *,
    size: Tensor | None = None,
    alpha: float = 0.1,
    patch: Tensor | None = None,
    mode: str = "propagate",
) -> tuple[Tensor, Tensor]:
    """Runs one step of GTP for given kept tokens; the others pass their features on and are dropped.

    Args:
        x: Tokens, ``[B, N, C]``.
        kept: Kept tokens, ``[B, K]`` int64, each once, in the order of the result.
        graph: As for :func:`gtp`, likewise ``alpha``, ``patch`` and ``mode``.
        size: Token scales, ``[B, N]``; ``None`` means ones.
        alpha: Strength of the propagation.
        patch: Input patch of each token, ``[B, N]`` int64.
        mode: ``"propagate"``, ``"none"`` or ``"mean"``.

    Returns:
        ``[B, K, C]`` in the dtype of ``x`` (sums in float32 or wider) and scales ``[B, K]``; in mode ``"mean"`` with
        one more row at the end, if any token is dropped. Both are differentiable.

    Raises:
        ValueError: If an option is out of range or shapes do not fit.
        TypeError: If ``graph`` is another kind of graph.

    Cost: one gather of the kept rows, and one row for each edge in use; see :func:`gtp`.
    """
    check_tokens(x)
    _check(alpha, mode, "index")
    check_patch(x[..., 0], graph, patch, mode)
    fewest = int(mode != "mean")
    if kept.dim() != 2 or kept.size(0) != x.size(0) or not fewest <= kept.size(1) <= x.size(1):
        want = f"[B={x.size(0)}, {fewest} <= K <= N={x.size(1)}]"
        raise ValueError(f"Expected kept of shape {want} (got {list(kept.shape)}).")
    if size is not None and size.shape != x.shape[:2]:
        raise ValueError(f"Expected size of shape [B, N] = {list(x.shape[:2])} (got {list(size.shape)}).")
    images, tokens, channels = x.shape
    stays = torch.zeros(images, tokens, dtype=torch.uint8, device=x.device).scatter_(1, kept, 1)
    removed = stays.argsort(dim=1, stable=True)[:, : tokens - kept.size(1)]
    scales = x.new_ones(images, tokens, dtype=torch.float32) if size is None else size
    whole = removed.size(1) == 0
    a = kept_as_they_are(kept, tokens) if whole else propagation(kept, removed, tokens, graph, alpha, patch, mode)
    y, scale = a.reduce(x.reshape(images * tokens, channels), scales.reshape(images * tokens))
    clusters = kept.size(1) + (mode == "mean" and removed.size(1) > 0)
    return y.view(images, clusters, channels), scale.view(images, clusters)


@dataclass(frozen=True)
class GTP(Select):
    """GTP as a strategy, between attention and MLP; see :func:`gtp` and :func:`gtp_score`.

    :func:`~tokengraph.propagation_graph` builds the graph once a run: from the first block's input, or given tokens.

    Args:
        graph: ``"spatial"``, ``"semantic"``, ``"mixed"``, or ``"local"``: semantic within windows, linear in patches.
        neighbors: Semantic neighbours; clamped to the number of other patches.
        alpha: Strength of propagation.
        score: One of :func:`gtp_score`'s, or ``"random"``. All but cls and random scores read the whole attention map.
        sparsity: Share of kept entries in each map, in (0, 1], in layers that remove tokens; see :func:`sparsify`.
        scales: Adds token scales to the attention logits of later layers.
        mode: ``"propagate"``, ``"none"`` or ``"mean"``.
        include_self: Counts a token's attention to itself in the sums of image, mixed and sum scores.
        order: ``"index"`` or ``"score"``.
        seed: Seed of ``score="random"``; each layer draws new numbers.
        window: Patches around each receiver that ``graph="local"`` compares.
    """

    name: ClassVar[str] = "gtp"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"gtp-vit": {}}
    alone: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    graph: str = "mixed"
    neighbors: int = 8
    alpha: float = 0.1
    score: str = "mixed-max"
    sparsity: float = 1.0
    scales: bool = True
    mode: str = "propagate"
    include_self: bool = True
    order: str = "index"
    seed: int = 0
    window: int = WINDOW

    def __post_init__(self) -> None:
        check_graph(self.graph, self.neighbors)
        check_positive(window=self.window)
        _check(self.alpha, self.mode, self.order)
        check_score(self.score, also=("random",))
        if not 0 < self.sparsity <= 1:
            raise ValueError(f"Expected sparsity in (0, 1], the share kept (got sparsity={self.sparsity}).")

    @classmethod
    def published(cls, removed: int) -> GTP:
        """Returns the authors' settings for DeiT-B without fine-tuning, for 1 to 14 tokens ``removed`` in each layer.

        The authors tuned them for each number, on a mixed graph with token scales; the graph's 8 neighbours are their
        code's default. Most sparsify attention, which costs more time than it could save.

        Source: the README of GTP-ViT's code.
        """
        if removed not in DEIT_B:
            raise ValueError(f"Expected 1 <= removed <= 14 tokens a layer (got {removed!r}). Others are unpublished.")
        sparsity, alpha = DEIT_B[removed]
        return cls("mixed", 8, alpha, "mixed-max", sparsity, True)

    @property
    def needs_class_token(self) -> bool:
        """True for cls scores."""
        return self.score.startswith("cls")

    @property
    def reads(self) -> str:  # type: ignore[override]
        """``"map"``, except for cls and random scores without sparsification."""
        plain = self.sparsity >= 1 and (self.score == "random" or self.needs_class_token)
        return "map" if not plain else "class" if self.needs_class_token else "nothing"

    @property
    def edits_attention(self) -> bool:
        """True for sparsification."""
        return self.sparsity < 1

    @property
    def weighs(self) -> bool:
        """True if attention weighs keys by token scales."""
        return self.scales

    def begin(self, tokens: Tokens) -> PropagationGraph | None:
        """Builds the graph from a run's input tokens; ``None`` if the mode needs none."""
        if self.mode != "propagate":
            return None
        if self.graph != "semantic" and (tokens.grid is None or not tokens.full):
            raise ValueError(
                f"Expected the full patch grid for graph={self.graph!r} (got tokens that are coarsened, dropped in "
                "train mode or shuffled as in ViTMAE). Use graph='semantic' there."
            )
        neighbors = min(self.neighbors, max(tokens.x.size(1) - 1, 0))
        with torch.no_grad():
            return connect_patches(tokens.x, tokens.grid if tokens.full else None, self.graph, neighbors, self.window)

    def edit_attention(self, attention: Tensor) -> Tensor:
        """Zeroes the smallest entries of the map if ``sparsity`` is below 1; see :func:`sparsify`."""
        return sparsify(attention, self.sparsity)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        keep = clamp_budget(budget, tokens.x, None)
        if tokens.mask is not None or isinstance(keep, list):
            raise ValueError(
                "Expected equal numbers of tokens in all images and one budget (got a ragged batch or several "
                "budgets). Call the strategy image by image."
            )
        (images, count), device = tokens.x.shape[:2], tokens.x.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            if keep >= count:
                return kept_as_they_are(counting(count, device).expand(images, -1), count)
            graph, patch = tokens.memory, tokens.patch
            if graph is None:  # outside a model the given tokens are the patches
                graph, patch = self.begin(tokens), None
            check_patch(tokens.x[..., 0], graph, patch, self.mode)
            return _gtp(self._score(tokens), keep, graph, self.alpha, patch, self.mode, self.order)  # type: ignore[arg-type]

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts one pass over the attention map and the propagation, but not the graph, which is built once a run."""
        heads = max(channels // head_width, 1)
        map_cost = Cost(heads * num_tokens**2, 4 * heads * num_tokens**2)
        if self.score == "random" or self.needs_class_token:
            map_cost = Cost(2 * num_tokens * channels, 4 * num_tokens * channels)
        degree = {"spatial": 8, "mixed": 8 + self.neighbors}.get(self.graph, self.neighbors)
        edges = (num_tokens - keep) * degree if self.mode == "propagate" else 0
        return map_cost + Cost(2 * edges * channels, 4 * edges * (channels + 4))

    def _score(self, tokens: Tokens) -> Tensor:
        if self.score == "random":
            drawn = random_score(tokens.x.size(1), self.seed + 1000003 * (tokens.layer + 1), device=tokens.x.device)
            return drawn.expand(tokens.x.size(0), -1)
        if tokens.attention is None:
            raise ValueError(
                f"Expected tokens with attention for score={self.score!r} (got tokens outside a model's block). "
                "Use score='random', or the function gtp with scores of your own."
            )
        return gtp_score(tokens.attention, self.score, include_self=self.include_self)


def _gtp(
    score: Tensor,
    keep: int,
    graph: PropagationGraph | None,
    alpha: float,
    patch: Tensor | None,
    mode: str,
    order: str,
) -> SoftAssignment:
    tokens = score.size(1)
    keep = clamp_budget(keep, score, None)  # type: ignore[assignment]
    if isinstance(keep, list):
        raise ValueError(f"Expected one budget for all images (got {keep}). Call gtp image by image.")
    if keep >= tokens:
        return kept_as_they_are(counting(tokens, score.device).expand(score.size(0), -1), tokens)
    ranked = score.detach().argsort(dim=1, descending=True, stable=True)
    single = keep - (mode == "mean")
    kept, removed = ranked[:, :single], ranked[:, single:]
    if order == "index":
        kept = kept.sort(dim=1).values
    return propagation(kept, removed, tokens, graph, alpha, patch, mode)


def _check(alpha: float, mode: str, order: str) -> None:
    if isinstance(alpha, bool) or not (alpha >= 0 and math.isfinite(alpha)):
        raise ValueError(f"Expected a finite alpha >= 0 (got alpha={alpha}).")
    if mode not in MODES:
        raise ValueError(f"Expected mode to be one of {', '.join(MODES)} (got {mode!r}).")
    check_order(order)
