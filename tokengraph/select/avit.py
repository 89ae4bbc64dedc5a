"""A-ViT: each token halts when its halting scores add up, and its output is the mean of its layers by these."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.kinds import explains
from tokengraph.losses.ponder import Pondered
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule
from tokengraph.select.base import Select
from tokengraph.select.gated import select_marked
from tokengraph.select.parts.choices.best import among_best
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts


@dataclass(frozen=True)
class Halting:
    """What the tokens of the input, prefix tokens in front, have done so far.

    Args:
        y: Their outputs, ``[B, P+N, C]`` float32: layers weighted by halting scores.
        total: Sums of their halting scores, ``[B, P+N]``.
        rest: 1 less the scores so far, for each, ``[B, P+N]``.
        ran: Blocks that each ran, ``[B, P+N]``.
        scores: Halting scores of each block, each ``[B, P+N]``; 0 where a token had left.
        valid: ``[B, P+N]`` bool, True where there is a token; ``None``: everywhere.
        num_prefix: P.
    """

    y: Tensor
    total: Tensor
    rest: Tensor
    ran: Tensor
    scores: tuple[Tensor, ...]
    valid: Tensor | None
    num_prefix: int


@explains
def halt(score: Tensor, total: Tensor, rest: Tensor, eps: float = 0.01) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of adaptive computation: how much a block's output counts for each token.

    Args:
        score: Halting scores of the block, ``[...]`` in [0, 1].
        total: Sums of the scores so far.
        rest: 1 less the scores so far.
        eps: A token halts once its sum reaches ``1 - eps``.

    Returns:
        The weight of the block's output, the new sum, the new rest, and True where a token halts now; a token that had
        halted before has weight 0 and does not change.

    Example:
        >>> one = torch.tensor([0.5])
        >>> w, total, rest, now = halt(one, torch.zeros(1), torch.ones(1))
        >>> [t.item() for t in halt(torch.tensor([0.6]), total, rest)]
        [0.5, 1.100000023841858, 0.5, True]

    Source: Graves, *Adaptive Computation Time*, 2016; Yin et al., *A-ViT*, CVPR 2022.
    """
    runs = total < 1 - eps
    summed = torch.where(runs, total + score, total)
    now = runs & (summed >= 1 - eps)
    weight = torch.where(now, rest, torch.where(runs, score, 0.0))
    return weight, summed, torch.where(runs & ~now, rest - score, rest), now


@dataclass(frozen=True)
class _Places:
    """Where the tokens of a block lie among those of the input, prefix tokens in front.

    Args:
        index: Their places, ``[B, P+n]``; ``None``: token i is in place i, so that nothing need be gathered.
        there: ``[B, P+n]`` bool, True where there is a token; ``None``: everywhere.
    """

    index: Tensor | None
    there: Tensor | None

    @classmethod
    def of(cls, tokens: Tokens, x: Tensor) -> _Places:
        prefix, index = tokens.num_prefix, None
        if tokens.patch is not None:
            ahead = torch.arange(prefix, device=x.device).expand(x.size(0), -1)
            index = torch.cat([ahead, tokens.patch + prefix], dim=1)
        return cls(index, None if tokens.mask is None else F.pad(tokens.mask, (prefix, 0), value=True))

    def take(self, rows: Tensor) -> Tensor:
        """Numbers of the input's tokens, ``[B, P+N]``, for these."""
        return rows if self.index is None else rows.gather(1, self.index)

    def add(self, into: Tensor, change: Tensor, new: Tensor | None = None) -> Tensor:
        """Adds these tokens' ``change``; ``new``: the sums, where known."""
        if self.index is not None:
            return into.scatter_add(1, self.index, change)
        return into + change if new is None else new

    def add_rows(self, into: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Adds ``weight * x`` to rows ``[B, P+N, C]``; padding, where the weight is 0, may hold anything."""
        wide = x.float() if self.there is None else torch.where(self.there[..., None], x.float(), 0.0)
        if self.index is None:
            return torch.addcmul(into, weight[..., None], wide)
        ids = (self.index + torch.arange(into.size(0), device=x.device)[:, None] * into.size(1)).flatten()
        rows = (weight[..., None] * wide).flatten(0, 1)
        return into.flatten(0, 1).index_add(0, ids, rows).view_as(into)


@dataclass(frozen=True)
class AViT(Select):
    r"""A-ViT as a strategy: behind each block tokens whose halting scores add up leave, image by image.

    The score of a token is :math:`h = \operatorname{sigmoid}(\gamma x_0 - \beta)` of channel 0 of the block's output.
    The model reads, for every input token, its layers weighted by their scores, the rest of one for the last; so
    ``lift`` and feature maps have all tokens. It adds no parameters, but the model must be trained for it:
    :class:`tokengraph.losses.PonderLoss` with ``handle.select.pondered(handle.trace.seen)``. Removing tokens is
    exact in training too. A schedule gives the fewest tokens that each image keeps, ``{2: 49}`` from two blocks on; 1,
    the default, lets all of them halt.

    Args:
        scale: :math:`\gamma`, published: 10.
        center: :math:`\beta`, published: 30 (T), 75 (S).
        eps: A token halts once its sum reaches ``1 - eps``.
        halt_class: Whether the class token halts too, as published: its output then no longer changes, and the others
            do not see it. Further prefix tokens never halt.

    Raises:
        ValueError: If ``eps`` is out of (0, 1).

    Source: Yin et al., *A-ViT: Adaptive Tokens for Efficient Vision Transformer*, CVPR 2022, and its code (inference
    and ponder cost).
    """

    name: ClassVar[str] = "avit"
    placement: ClassVar[str] = "after"
    merges: ClassVar[bool] = False
    reads: ClassVar[str] = "nothing"
    ragged: ClassVar[bool] = True
    scale: float = 10.0
    center: float = 30.0
    eps: float = 0.01
    halt_class: bool = True
    depth: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise ValueError(f"Expected eps in (0, 1) (got {self.eps}).")

    @classmethod
    def published(cls, size: str = "tiny") -> AViT:
        """Returns the released settings of the ``"tiny"`` or the ``"small"`` model.

        Source: the code of Yin et al., CVPR 2022.
        """
        return cls(10.0, {"tiny": 30.0, "small": 75.0}[size])

    @property
    def restores(self) -> bool:
        """Every token has an output."""
        return True

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy for a model of ``depth`` blocks; it acts behind all but the last."""
        bound = copy.copy(self)
        object.__setattr__(bound, "depth", depth)
        return bound, dict.fromkeys(range(1, depth), 1) if schedule is None else schedule

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """Behind each block but the last, where more tokens are there than the fewest."""
        return 0 < finished < self.depth and count > 0 and (keep < count or keep == 1)

    def observes(self, index: int) -> bool:
        """True, inside a model."""
        return self.depth > 0

    def scores(self, x: Tensor) -> Tensor:
        """Halting scores ``[...]`` of rows ``[..., C]``, in float32."""
        return (self.scale * x[..., 0].float() - self.center).sigmoid()

    def observe(self, tokens: Tokens) -> Halting:
        """Adds this block's output to those of the tokens that ran it."""
        prefix = tokens.num_prefix
        assert tokens.ahead is not None
        x = torch.cat([tokens.ahead, tokens.x], dim=1)
        seen: Halting | None = tokens.seen
        if seen is None:
            zeros = x.new_zeros(x.shape[:2], dtype=torch.float32)
            valid = None if tokens.mask is None else F.pad(tokens.mask, (prefix, 0), value=True)
            seen = Halting(x.new_zeros(x.shape, dtype=torch.float32), zeros, zeros + 1, zeros, (), valid, prefix)
        own = _Places.of(tokens, x)
        h = self.scores(x)
        if tokens.layer + 1 == self.depth:
            h = torch.ones_like(h)
        elif prefix > self.halt_class:
            h = torch.cat(
                [h[:, : int(self.halt_class)], torch.zeros_like(h[:, int(self.halt_class) : prefix]), h[:, prefix:]],
                dim=1,
            )
        total, rest = own.take(seen.total), own.take(seen.rest)
        runs = total < 1 - self.eps if own.there is None else own.there & (total < 1 - self.eps)
        h = torch.where(runs, h, 0.0)
        weight, summed, left, _ = halt(h, total, rest, self.eps)
        if own.there is not None:
            weight, summed, left = (torch.where(runs, t, s) for t, s in ((weight, 0.0), (summed, total), (left, rest)))
        return Halting(
            own.add_rows(seen.y, weight, x),
            own.add(seen.total, summed - total, summed),
            own.add(seen.rest, left - rest, left),
            own.add(seen.ran, runs.float()),
            (*seen.scores, own.add(torch.zeros_like(seen.total), h, h)),
            seen.valid,
            prefix,
        )

    def outputs(self, seen: Halting | None) -> Tensor | None:
        """The tokens' own outputs."""
        return None if seen is None else seen.y

    def barred(self, seen: Halting | None) -> Tensor | None:
        """The class token, where it has halted."""
        if seen is None or not self.halt_class or seen.num_prefix == 0:
            return None
        return seen.total[:, : seen.num_prefix] >= 1 - self.eps

    def pondered(self, seen: Halting) -> Pondered:
        """What the last run spent, for :class:`tokengraph.losses.PonderLoss`; ``seen`` is ``handle.trace.seen``."""
        return Pondered(seen.ran + seen.rest, torch.stack(seen.scores, dim=1), seen.valid, seen.num_prefix)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to those that have not halted, at least the budget; outside a model by one block's scores."""
        least = clamp_budget(budget, tokens.x, tokens.mask)
        floors = least if isinstance(least, list) else [least] * tokens.x.size(0)
        if isinstance(tokens.seen, Halting):
            h = tokens.seen.total[:, tokens.num_prefix :].detach()
            h = h if tokens.patch is None else h.gather(1, tokens.patch)
            floors = [0 if k == 1 and n > 1 else k for k, n in zip(floors, self._began(tokens.seen), strict=True)]
        else:
            h = self.scores(tokens.x.detach())
        runs = h < 1 - self.eps
        runs = runs if tokens.mask is None else runs & tokens.mask
        if any(floors):
            counts = valid_counts(tokens.x, tokens.mask)
            made = [min(max(k, f), n) for k, f, n in zip(runs.sum(dim=1).tolist(), floors, counts, strict=True)]
            runs = among_best(-h, made, tokens.mask)
        return select_marked(runs, tokens.mask)

    @staticmethod
    def _began(seen: Halting) -> list[int]:
        """Patch tokens of each image at the input: one that had a single one keeps it, as its plan removes nothing."""
        whole = seen.y[:, seen.num_prefix :]
        return valid_counts(whole, None if seen.valid is None else seen.valid[:, seen.num_prefix :])

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts the sum of outputs."""
        return Cost(num_tokens * channels, 12 * num_tokens * channels)
