"""DynamicViT: prediction modules that learn which tokens to keep."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.cost import Cost
from tokengraph.maps.hard import Assignment
from tokengraph.nn.decisions import gumbel_keep
from tokengraph.nn.predictor import TokenPredictor
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import keep_best
from tokengraph.select.parts.choices.peaks import check_order
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts

if TYPE_CHECKING:
    from tokengraph.schedule import Schedule
    from tokengraph.select.decided import Moved


class DynamicViT(Select):
    r"""Learned pruning in stages. Training masks tokens by sampled decisions; evaluation removes them.

    Stage s acts before block ``layers[s]`` and keeps ``int(N * ratios[s])`` of the N input patches. In train mode all
    tokens stay. Each stage samples a keep decision for every remaining token (straight-through Gumbel), and attention
    ignores dropped tokens as keys. ``handle.trace.decisions`` has the cumulative masks for
    :class:`~tokengraph.losses.DynamicViTLoss`.

    ``attach(model, DynamicViT(0.7))`` needs no schedule. It adds a :class:`~tokengraph.nn.TokenPredictor` for each
    stage to the model, as ``score_predictor``, so that ``parameters()``, ``state_dict()``, ``to()`` and ``train()``
    include them. ``remove()`` takes them out; ``handle.select`` keeps them and can be attached again.

    Args:
        keep: Keeps the shares ``keep``, ``keep**2``, ``keep**3``, ... of the input, in (0, 1].
        layers: Finished blocks at each stage, at least 1; default: a quarter, a half and three quarters of the depth.
        ratios: Shares of the input at each stage, instead of powers of ``keep``.
        threshold: Keeps the tokens whose probability is at least this, instead of a fixed number; images then differ.
        min_keep: Least number of tokens that each image keeps.
        at_least_one: In training, an image that would lose its last token keeps the best one.
        order: ``"index"``: kept tokens stay in order; ``"score"``: highest first, as in the published code. An
            image that keeps all its tokens leaves them in order.
        official: The published masked softmax, for parity; see :func:`tokengraph.nn.masked_softmax`.
        gradient_cap: Upper bound on the gradient weight of a dropped token's edge, relative to the best kept token's.
            The default is the published form's. With sharp attention, decision gradients reach this bound and
            overpower the ratio loss; then lower it, or normalise queries and keys.

    Raises:
        ValueError: If a share, a layer, a threshold or a choice is out of range.

    Source: Rao et al., *DynamicViT*, NeurIPS 2021, and its code. Differs: grids of any size, corrected numerics of
    the masked softmax and the masked mean, ties to the lower index, thresholds.
    """

    name: ClassVar[str] = "dynamicvit"
    placement: ClassVar[str] = "before"
    merges: ClassVar[bool] = False
    reads: ClassVar[str] = "nothing"
    learns: ClassVar[bool] = True

    def __init__(
        self,
        keep: float = 0.7,
        *,
        layers: Sequence[int] | None = None,
        ratios: Sequence[float] | None = None,
        threshold: float | None = None,
        min_keep: int = 1,
        at_least_one: bool = False,
        order: str = "index",
        official: bool = False,
        gradient_cap: float = 1e6,
    ) -> None:
        check_order(order)
        for share in (keep, *(ratios or ())):
            if not 0 < share <= 1:
                raise ValueError(f"Expected shares in (0, 1] (got {share}).")
        if layers is not None and (list(layers) != sorted(set(layers)) or not layers or layers[0] < 1):
            raise ValueError(f"Expected ascending layers, each at least 1 (got {list(layers)}).")
        if layers is not None and ratios is not None and len(layers) != len(ratios):
            raise ValueError(f"Expected one ratio a layer, S={len(layers)} (got {len(ratios)}).")
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"Expected threshold in (0, 1), a probability (got {threshold}).")
        if min_keep < 1:
            raise ValueError(f"Expected min_keep >= 1 tokens an image (got {min_keep}).")
        self.keep = keep
        self.layers = None if layers is None else tuple(layers)
        self.ratios = None if ratios is None else tuple(ratios)
        self.threshold = threshold
        self.min_keep = min_keep
        self.at_least_one = at_least_one
        self.order = order
        if not gradient_cap >= 1:
            raise ValueError(f"Expected gradient_cap >= 1 (got {gradient_cap}).")
        self.official = official
        self.gradient_cap = gradient_cap
        self.predictors: torch.nn.ModuleList | None = None
        self.noise: list[Tensor] | None = None  # fixed Gumbel noise for each stage, [B, N, 2]

    @classmethod
    def published(cls, keep: float = 0.7) -> DynamicViT:
        """Returns the released behaviour: its masked softmax in training, kept tokens by falling score in evaluation.

        Args:
            keep: Keeps the shares ``keep``, ``keep**2``, ...; released for 0.5 to 0.9.

        Source: the code of Rao et al., NeurIPS 2021.
        """
        return cls(keep, order="score", official=True)

    def __repr__(self) -> str:
        stages = "" if self.layers is None else f", layers={list(self.layers)}, ratios={list(self.ratios or ())}"
        return f"DynamicViT(keep={self.keep}{stages})"

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Returns the predictors, under their name in published checkpoints."""
        return {} if self.predictors is None else {"score_predictor": self.predictors}

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[DynamicViT, Schedule]:
        """Returns a copy with predictors for a model, and its schedule; see :meth:`tokengraph.Select.bind`.

        Args:
            channels: C of the model.
            depth: Blocks in the model.
            schedule: ``None``, or ``{l: share}`` instead of ``layers`` and ``ratios``.

        Raises:
            ValueError: If layers, shares or the predictors do not fit the model.
        """
        bound = copy.copy(self)
        if schedule is not None:
            bound.layers, bound.ratios = _stages(schedule)
        elif bound.layers is None:
            bound.layers = tuple(sorted({max(1, depth * s // 4) for s in (1, 2, 3)}))
        assert bound.layers is not None
        if bound.layers[-1] >= depth:
            raise ValueError(f"Expected layers in [1, {depth - 1}] (got {list(bound.layers)}).")
        if bound.ratios is None:
            bound.ratios = tuple(self.keep ** (s + 1) for s in range(len(bound.layers)))
        if len(bound.ratios) != len(bound.layers):
            raise ValueError(f"Expected one ratio a layer, S={len(bound.layers)} (got {len(bound.ratios)}).")
        known = self.predictors
        if known is None:
            bound.predictors = torch.nn.ModuleList(TokenPredictor(channels) for _ in bound.layers)
        elif len(known) != len(bound.layers) or known[0].channels != channels:
            raise ValueError(
                f"Expected predictors for {len(bound.layers)} stages of C={channels} (got {len(known)} of "
                f"C={known[0].channels}). Create a new DynamicViT."
            )
        return bound, Floors(bound.layers, bound.ratios, self.min_keep)

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """Returns whether a stage acts: always with sampled decisions or thresholds, else if it removes tokens."""
        assert self.layers is not None and self.predictors is not None
        return finished in self.layers and (self.predictors.training or self.threshold is not None or keep < count)

    def decide(self, tokens: Tokens) -> KeepMask | Moved | None:
        """Samples a differentiable cumulative keep mask over ``[B, N]`` in train mode; ``None`` in eval mode."""
        assert self.predictors is not None
        if not self.predictors.training:
            return None
        stage = self._stage(tokens)
        logp = self.predictors[stage](tokens.x, tokens.keep)
        noise = None if self.noise is None else self.noise[stage]
        keep = gumbel_keep(logp, tokens.keep, noise=noise, at_least_one=self.at_least_one)
        return KeepMask(keep, official=self.official, cap=self.gradient_cap)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Keeps the tokens with the highest scores; see :class:`tokengraph.Select`."""
        score, budget = self.score(tokens, budget)
        return keep_best(score, budget, tokens.mask, self.order)

    def score(self, tokens: Tokens, budget: int | list[int]) -> tuple[Tensor, int | list[int]]:
        """Returns the log-probability of each token to be kept, ``[B, N]``, and the budget, by threshold or as asked.

        Raises:
            ValueError: Before ``attach`` or ``bind``.
        """
        if self.predictors is None:
            name = type(self).__name__
            raise ValueError(f"Expected a {name} after attach or bind(channels, depth) (got an unbound one).")
        budget = clamp_budget(budget, tokens.x, tokens.mask)
        predictor = self.predictors[self._stage(tokens)]
        logp = predictor(tokens.x, None if tokens.mask is None else tokens.mask.float())
        score = logp[..., 0]
        if self.threshold is not None:
            likely = score.exp() >= self.threshold
            likely = likely if tokens.mask is None else likely & tokens.mask
            counts = zip(likely.sum(dim=1).tolist(), valid_counts(tokens.x, tokens.mask), strict=True)
            budget = [min(max(k, self.min_keep), n) for k, n in counts]
        return score, budget

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """One predictor."""
        return Cost(2.75 * num_tokens * channels**2, 4 * (1.4 * channels**2 + 4 * num_tokens * channels))

    def _stage(self, tokens: Tokens) -> int:
        finished = tokens.layer + 1
        return self.layers.index(finished) if self.layers is not None and finished in self.layers else 0


@dataclass(frozen=True)
class Floors:
    """A schedule that keeps ``int(N * ratio)`` tokens after each stage, as the published code rounds."""

    layers: tuple[int, ...]
    ratios: tuple[float, ...]
    least: int

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        """Returns the number of tokens removed in each block."""
        removed, left = [0] * depth, num_tokens
        for layer, ratio in zip(self.layers, self.ratios, strict=True):
            keep = min(max(int(num_tokens * ratio), self.least), left)
            removed[layer - 1], left = left - keep, keep
        return removed


def _stages(schedule: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Reads layers and shares from a schedule ``{l: share}``."""
    shares = isinstance(schedule, Mapping) and all(isinstance(s, float) and 0 < s <= 1 for s in schedule.values())
    if not shares or not schedule or min(schedule) < 1:
        raise ValueError(
            f"Expected a schedule {{layer: share}} with layers of at least 1 for DynamicViT (got {schedule!r}). "
            "You can also leave it out, because layers and shares have defaults."
        )
    layers = tuple(sorted(schedule))
    return layers, tuple(schedule[layer] for layer in layers)
