"""IdleViT: some tokens idle in a block, and all are candidates again in the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule
from tokengraph.schedule.running import Running, in_stages
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import among_best, keep_best
from tokengraph.select.tokens import Tokens


@dataclass(frozen=True)
class IdleViT(Select):
    r"""Runs each block on the patches that the class token's query meets most, and leaves the others as they are.

    The score is the mean over heads of :math:`q_\text{cls} \cdot k_j`, before the softmax, of the block that has not
    run yet. No token is lost: each may be chosen again in the next block, and all are there at the end.

    Training needs no other form, as the choice has no gradient. :class:`tokengraph.losses.IdleCutLoss` pulls the
    attention of running and idle tokens apart; for it give ``cut=True`` and the loss ``handle.trace.seen``.

    Args:
        keep: Runs the shares ``keep``, ``keep**2`` and ``keep**3`` of the input, each in a third of the layers.
        layers: Blocks with idle tokens, from 0; ``None``: all but the first quarter, as published (3 to 11 of 12).
        ratios: Shares of the input, one for each layer, instead of powers of ``keep``.
        cut: Keeps, in each layer, what the loss needs: ``[B, P+N, P+N]`` floats.

    Raises:
        ValueError: If a share is out of (0, 1], or there is not one for each layer.

    Source: Xu et al., *No Token Left Behind: Efficient Vision Transformer via Dynamic Token Idling*, AJCAI 2023, and
    its code (inference). Differs: ties; the released training takes other layers than its inference, here both are
    ``layers``.
    """

    name: ClassVar[str] = "idlevit"
    placement: ClassVar[str] = "around"
    around: ClassVar[str] = "block"
    merges: ClassVar[bool] = False
    reads: ClassVar[str] = "class"
    peeks: ClassVar[bool] = True
    keep: float = 0.7
    layers: Sequence[int] | None = None
    ratios: Sequence[float] | None = None
    cut: bool = False

    def __post_init__(self) -> None:
        for share in (self.keep, *(self.ratios or ())):
            if not 0 < share <= 1:
                raise ValueError(f"Expected shares in (0, 1] (got {share}).")
        if self.ratios is not None and (self.layers is None or len(self.layers) != len(self.ratios)):
            raise ValueError(f"Expected one ratio for each layer (got {self.layers} and {self.ratios}).")

    @classmethod
    def published(cls, keep: float = 0.7) -> IdleViT:
        """Returns the released inference: blocks 3 to 11, three for each power of ``keep``.

        Source: the code of Xu et al., 2023.
        """
        return cls(keep)

    @property
    def restores(self) -> bool:
        """Every token comes back."""
        return True

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy and its schedule; see :meth:`tokengraph.Select.bind`.

        Raises:
            ValueError: If a layer is outside the model.
        """
        if schedule is not None:
            return self, schedule
        layers = tuple(range(depth // 4, depth)) if self.layers is None else tuple(self.layers)
        if not layers or min(layers) < 0 or max(layers) >= depth:
            raise ValueError(f"Expected blocks in [0, {depth - 1}] as layers (got {list(layers)}).")
        shares = tuple(self.ratios) if self.ratios is not None else in_stages(self.keep, layers)
        return replace(self, layers=layers), Running(tuple(zip(layers, shares, strict=True)))

    def observes(self, index: int) -> bool:
        """Where tokens idle, if the loss needs it."""
        return self.cut and self.layers is not None and index in self.layers

    def observe(self, tokens: Tokens) -> Any:
        """Adds this block's mean logits ``[B, P+N, P+N]``, scaled, and which tokens run, ``[B, P+N]``."""
        assert tokens.attention is not None
        assert self.layers is not None
        count, place = tokens.x.size(1), list(self.layers).index(tokens.layer)
        shares = self.ratios if self.ratios is not None else in_stages(self.keep, tuple(self.layers))
        idle = Running(((0, shares[place]),))(1, count)[0]
        runs = among_best(self._score(tokens), count - idle, tokens.mask).float()
        runs = torch.cat([runs.new_ones(runs.size(0), tokens.num_prefix), runs], dim=1)
        return (*(tokens.seen or ()), (tokens.attention.mean_logits(), runs))

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to those that run; see :class:`tokengraph.Select`."""
        return keep_best(self._score(tokens), budget, tokens.mask)

    def _score(self, tokens: Tokens) -> Tensor:
        if tokens.attention is None or tokens.num_prefix == 0:
            raise ValueError("Expected tokens of a block with a class token (got tokens without). Attach IdleViT.")
        return tokens.attention.class_logits()

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts a norm, one product with each token, and two of a query with the projections."""
        return Cost(2 * num_tokens * channels + 2 * channels**2, 4 * (3 * num_tokens * channels + 2 * channels**2))
