"""DTEM: ToMe on a metric that is learned, with a differentiable merging step in training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.cost import Cost, distance_cost
from tokengraph.maps.hard import Assignment
from tokengraph.nn.relaxed_merge import Relaxed, relaxed_merge
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.edges import merge_halves
from tokengraph.select.tokens import Tokens, valid_counts

if TYPE_CHECKING:
    from tokengraph.schedule import Schedule

FLOOR = 1e-6  # sizes below count as this in the logarithm; the gradient passes


class DTEM(Select):
    r"""Merges by a learned metric: a linear layer on the rows that the block's attention projects.

    In evaluation it is :func:`tokengraph.tome` on that metric in place of keys. In train mode no token leaves: by
    :func:`tokengraph.nn.relaxed_merge` tokens give shares of themselves to similar ones, sizes say how much is left of
    each, and attention weighs keys by them. So any loss on the model's output trains the metric. As published, the rest
    of the model can stay frozen: give an optimizer ``handle.select.modules["metric_layers"].parameters()``.

    ``attach`` adds the layers to the model as ``metric_layers``, so that ``parameters()``, ``state_dict()``, ``to()``
    and ``train()`` include them. ``remove()`` takes them out; ``handle.select`` keeps them and can be attached again.

    Args:
        width: D of the metric; published: that of a head, 64, and twice that from 1024 channels on.
        neighbors: Edges that each token has in a relaxed step.
        tau: Temperatures of similarity and of choice.
        detach: Whether the metric's gradient stops at its input, as published.

    Raises:
        ValueError: If a number is out of range.

    Source: Lee and Hong, *Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers*,
    NeurIPS 2024, and its code; its relaxed step is reproduced, the training around it is not. Differs: prefix tokens
    do not take part in the alternation of a relaxed step; sizes below 1e-6 count as that in attention.
    """

    name: ClassVar[str] = "dtem"
    reads: ClassVar[str] = "norm"
    learns: ClassVar[bool] = True

    def __init__(
        self, *, width: int = 64, neighbors: int = 3, tau: tuple[float, float] = (0.1, 0.1), detach: bool = True
    ) -> None:
        if min(width, neighbors) < 1 or len(tau) != 2 or not min(tau) > 0:
            raise ValueError(
                f"Expected width and neighbors of at least 1 and two temperatures above 0 (got {width}, {neighbors}, "
                f"{tau})."
            )
        self.width, self.neighbors, self.tau, self.detach = width, neighbors, tau, detach
        self.layers: tuple[int, ...] = ()
        self.metrics: nn.ModuleList | None = None

    def __repr__(self) -> str:
        return f"DTEM(width={self.width})"

    @staticmethod
    def published_schedule() -> Schedule:
        """The released DeiT: 16 tokens in every block."""
        return 16

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Returns the layers of the metric."""
        return {} if self.metrics is None else {"metric_layers": self.metrics}

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[DTEM, Schedule]:
        """Returns a copy with layers for a model, and its schedule; see :meth:`tokengraph.Select.bind`.

        Args:
            channels: C of the model.
            depth: Blocks in the model; each has a layer, or the ones that a mapping names.
            schedule: ``None``: 16 tokens in every block.

        Raises:
            ValueError: If layers that are there already do not fit the model.
        """
        bound, schedule = copy.copy(self), 16 if schedule is None else schedule
        named = sorted(int(layer) for layer in schedule) if isinstance(schedule, Mapping) else range(1, depth + 1)
        bound.layers = tuple(named)
        if bound.metrics is None:
            bound.metrics = nn.ModuleList(nn.Linear(channels, self.width) for _ in bound.layers)
        elif len(bound.metrics) != len(bound.layers) or bound.metrics[0].in_features != channels:
            raise ValueError(
                f"Expected {len(bound.layers)} metric layers of C={channels} (got {len(bound.metrics)} of "
                f"C={bound.metrics[0].in_features}). Create a new DTEM."
            )
        return bound, schedule

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Merges the most similar pairs by the metric; see :class:`tokengraph.Select`."""
        return merge_halves(self._metric(tokens), budget, tokens.num_prefix, tokens.mask)

    def relax(self, tokens: Tokens, keep: int | list[int]) -> Relaxed | None:
        """The training form: shares move, and every token keeps its place. Padded images go one by one."""
        if self.metrics is None or not self.metrics.training:
            return None
        images, count = tokens.x.shape[:2]
        order, active = tokens.relaxed or (None, None)
        if order is None:
            order = torch.arange(count, device=tokens.x.device).expand(images, -1)
        size = tokens.x.new_ones(images, count, dtype=torch.float32) if tokens.size is None else tokens.size
        whole = (tokens.x, self._metric(tokens), size, order)
        if tokens.mask is None and not isinstance(keep, list):
            return self._relaxed(*whole, count if active is None else active, keep)  # type: ignore[arg-type]
        counts = valid_counts(tokens.x, tokens.mask)
        actives = counts if active is None else active if isinstance(active, list) else [active] * images
        keeps = keep if isinstance(keep, list) else [keep] * images
        parts = []
        for b in range(images):  # real tokens lie in front of padding
            x, metric, mass, place = (t[b : b + 1, : counts[b]] for t in whole)
            parts.append(self._relaxed(x, metric, mass, place, actives[b], min(keeps[b], counts[b])))
        rows = torch.cat([torch.cat([p.x, tokens.x[b : b + 1, counts[b] :]], dim=1) for b, p in enumerate(parts)])
        sizes = torch.cat([F.pad(p.size, (0, count - counts[b])) for b, p in enumerate(parts)])  # 0 hides padding
        order = torch.cat([torch.cat([p.order, order[b : b + 1, counts[b] :]], dim=1) for b, p in enumerate(parts)])
        return Relaxed(rows, sizes, [p.active for p in parts], parts[0].assign, order)

    def _relaxed(self, x: Tensor, metric: Tensor, size: Tensor, order: Tensor, active: int, keep: int) -> Relaxed:
        """A step of images without padding: shares move in the order of the last step, rows stay in place."""

        def in_order(rows: Tensor) -> Tensor:  # with a row in front that stands aside
            index = order[..., None].expand(-1, -1, rows.size(2))
            return torch.cat([rows.new_zeros(rows.size(0), 1, rows.size(2)), rows.gather(1, index)], dim=1)

        step = relaxed_merge(
            in_order(x),
            in_order(metric),
            in_order(size[..., None])[..., 0],
            max(active - keep, 0),
            active=active + 1,
            neighbors=self.neighbors,
            tau=self.tau,
        )
        order = order.gather(1, step.order[:, 1:] - 1)
        rows = torch.empty_like(step.x[:, 1:]).scatter(1, order[..., None].expand_as(x), step.x[:, 1:])
        size = torch.empty_like(step.size[:, 1:]).scatter(1, order, step.size[:, 1:])
        size = size + (size.clamp_min(FLOOR) - size).detach()
        return Relaxed(rows, size, step.active - 1, step.assign, order)

    def fewest(self, num_tokens: int) -> int:
        """One step keeps at least half of the tokens, ``ceil(N / 2)``."""
        return num_tokens - num_tokens // 2

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """The linear layer, and ToMe's products and maxima on its output."""
        half = num_tokens // 2
        layer = Cost(2 * num_tokens * channels * self.width, 4 * (num_tokens + self.width) * channels)
        return layer + distance_cost(half, num_tokens - half, self.width) + Cost(half * half, 4 * half * half)

    def _metric(self, tokens: Tokens) -> Tensor:
        if self.metrics is None:
            raise ValueError("Expected a DTEM after attach or bind(channels, depth) (got an unbound one).")
        rows = tokens.x if tokens.normed is None else tokens.normed
        finished = tokens.layer + 1
        index = self.layers.index(finished) if finished in self.layers else 0
        return self.metrics[index](rows.detach() if self.detach else rows)
