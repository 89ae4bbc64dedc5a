"""DiffRate: drops the least attended tokens of a block, and merges the next ones, at rates for each block."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.nn.rates import Rates
from tokengraph.schedule import Schedule
from tokengraph.schedule.listed import Listed, scaled
from tokengraph.select.base import Select
from tokengraph.select.decided import Moved
from tokengraph.select.parts.choices.prune_merge import (
    all_cosines,
    check_merge_by,
    merge_in_place,
    prune_and_merge,
    ranks,
    ranks_by_similarity,
)
from tokengraph.select.parts.rate_lists import read_rates, write_rates
from tokengraph.select.tokens import Tokens, valid_counts


@explains
def diffrate(
    score: Tensor,
    x: Tensor,
    prune: int | list[int],
    merge: int | list[int],
    *,
    size: Tensor | None = None,
    mask: Tensor | None = None,
    official: bool = False,
    merge_by: str = "attention",
) -> Assignment:
    r"""Drops the tokens of the lowest scores, and merges the next ones into the most similar of those above them.

    Of the best ``prune`` tokens the best ``merge`` stay, and each other one joins that of these with the highest
    cosine c. Rows are plain means; sizes grow by :math:`\max(c, 0) s_i`, not by all of a token's size.

    With ``merge_by="similarity"``, our own, the best ``prune`` are as before, but of these the ones most similar to a
    token of a higher score merge. Then a token that has no like stays, however low its score is.

    Args:
        score: ``[B, N]``; ties go to the lower index.
        x: Features, ``[B, N, C]``.
        prune: Tokens an image that do not drop.
        merge: Clusters an image.
        size: Size of each token, ``[B, N]``; ``None``: one each.
        mask: ``[B, N]`` bool, True where there is a token.
        official: Sizes grow by :math:`c s_i` also where c is negative, as in the code, where a size may fall below 0.
        merge_by: ``"attention"``: the lowest scores merge, as published; or ``"similarity"``.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``), with ``mass``; clusters are the best tokens in order.

    Raises:
        ValueError: If shapes do not fit or a value is not finite.

    Cost: a sort, and ``O(B (prune - merge) merge C)``, by similarity ``O(B N^2 C)``; no host synchronisation without a
    mask.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 4.0], [-1.0, 0.0]]])
        >>> a = diffrate(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), x, 4, 2, size=torch.tensor([[1.0, 1.0, 2.0, 3.0]]))
        >>> rows, size = a.reduce(x[0])
        >>> [round(v, 4) for v in rows[1].tolist()], round(size[1].item(), 4)
        ([0.6667, 1.6667], 2.6)

    Source: Chen et al., *DiffRate*, ICCV 2023, and its code. Differs: negative similarities add nothing, ties, zero
    vectors have similarity 0.
    """
    check_tokens(x)
    check_mask(mask, x)
    check_merge_by(merge_by)
    if score.shape != x.shape[:2]:
        raise ValueError(f"Expected score of shape {list(x.shape[:2])} (got {list(score.shape)}).")
    check_finite(score if mask is None else score[mask])
    return prune_and_merge(score, x, prune, merge, size, mask, official, merge_by == "similarity")


class DiffRate(Select):
    r"""DiffRate as a strategy, between attention and MLP, by class attention; see :func:`diffrate`.

    Give it the rates of each block, or let it learn them: ``DiffRate(learn=True)`` adds :class:`tokengraph.nn.Rates` to
    the model. In train mode all tokens stay, attention ignores those that are gone, and gradients reach the rates alone
    if the model is frozen; :class:`tokengraph.losses.DiffRateLoss` pulls their cost to a target. In evaluation the same
    rates remove tokens. ``handle.select.rates`` returns lists that can be stored with :meth:`save`.

    Without either, a schedule says how many tokens stay, and half of those that leave drop.

    Args:
        prune: Tokens that each block does not drop, the class token counted, as published: 197 for 196 patches.
        merge: Tokens behind each block's merging, likewise. Entries above what is there do nothing.
        rates: A JSON file with both lists, ``{"prune": [...], "merge": [...], "patches": 196}``.
        patches: Patches for which the lists are; ``None``: the first entry of ``prune`` less one. For another number
            they are scaled.
        learn: Learns rates, from none removed; with lists or a file of logits, from these.
        granularity: Learned rates choose between counts this far apart.
        first: The first block for which rates are learned; published: 1. Blocks before it keep all tokens.
        official: Training as in the code: its masked softmax, and sizes of at least 1.
        merge_by: Which tokens merge first, of those that do not drop: ``"attention"``, those of the lowest class
            attention, as published; ``"similarity"``, our own, those most similar to a better attended token. ``None``:
            what the file says, or ``"attention"``.

    Raises:
        ValueError: If lists do not fit.

    Source: Chen et al., *DiffRate: Differentiable Compression Rate for Efficient Vision Transformers*, ICCV 2023, and
    its code. Differs: see :func:`diffrate`; one size rule in training and evaluation (the code has two).
    """

    name: ClassVar[str] = "diffrate"
    merges: ClassVar[bool] = False  # tokens drop
    reads: ClassVar[str] = "class"

    def __init__(
        self,
        prune: Sequence[int] | None = None,
        merge: Sequence[int] | None = None,
        *,
        rates: str | Path | None = None,
        patches: int | None = None,
        learn: bool = False,
        granularity: int = 4,
        first: int = 1,
        official: bool = False,
        merge_by: str | None = None,
    ) -> None:
        stored = "attention"
        if rates is not None:
            prune, merge, patches, stored = read_rates(rates)
        self.merge_by = stored if merge_by is None else merge_by
        check_merge_by(self.merge_by)
        if (prune is None) != (merge is None):
            raise ValueError("Expected both prune and merge, or neither (got one). Repeat a list to do one of both.")
        self.prune = None if prune is None else tuple(int(k) for k in prune)
        self.merge = None if merge is None else tuple(int(k) for k in merge)
        if self.prune is not None and (len(self.prune) != len(self.merge or ()) or min(*self.prune, *self.merge) < 2):  # type: ignore[misc]
            raise ValueError(
                "Expected prune and merge of one length, with entries of at least 2: the class token and a patch "
                f"(got {list(self.prune)}, {list(self.merge or ())})."
            )
        self.patches = patches if patches is not None or self.prune is None else self.prune[0] - 1
        self.learn, self.granularity, self.first, self.official = learn, granularity, first, official
        self.learned: Rates | None = None

    def __repr__(self) -> str:
        by = "" if self.merge_by == "attention" else f"merge_by={self.merge_by!r}"
        how = f"learn=True, granularity={self.granularity}" if self.learn else ""
        if not self.learn and self.prune is not None:
            how = f"prune={list(self.prune)}, merge={list(self.merge or ())}"
        return f"DiffRate({', '.join(part for part in (how, by) if part)})"

    @property
    def learns(self) -> bool:  # type: ignore[override]
        """True if it learns rates."""
        return self.learn

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Returns the rates."""
        return {} if self.learned is None else {"diffrate": self.learned}

    @property
    def weighs(self) -> bool:
        """Merged tokens weigh by size."""
        return True

    @property
    def rates(self) -> tuple[list[int], list[int]]:
        """The lists ``(prune, merge)``: given, or of the rates as they are now.

        Raises:
            ValueError: If there are none.
        """
        if self.learned is not None:
            return self.learned.lists()
        if self.prune is None or self.merge is None:
            raise ValueError("Expected a DiffRate with rates (got none). Give lists, or learn=True and attach it.")
        return list(self.prune), list(self.merge)

    def save(self, file: str | Path) -> None:
        """Writes the rates to a JSON file, for ``DiffRate(rates=file)``."""
        prune, merge = self.rates
        write_rates(file, prune, merge, self.patches, self.merge_by)

    def begin(self, tokens: Tokens) -> int | list[int]:
        """The number of patches at the input."""
        return tokens.x.size(1) if tokens.mask is None else valid_counts(tokens.x, tokens.mask)

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy for a model, with rates to learn if asked for, and its schedule.

        Args:
            channels: C of the model.
            depth: Blocks in the model.
            schedule: ``None`` where it has rates.

        Raises:
            ValueError: If lists have not one entry a block, or the number of patches is not known.
        """
        if schedule is not None:
            if self.learn or self.prune is not None:
                raise ValueError(f"Expected no schedule for {self!r}, which has rates (got {schedule!r}).")
            return self, schedule
        if self.prune is not None and len(self.prune) != depth:
            raise ValueError(f"Expected rates for each of {depth} blocks (got {len(self.prune)}).")
        if not self.learn:
            return (
                (self, Listed(self._lists, self.patches)) if self.prune is not None else super().bind(channels, depth)
            )
        if self.patches is None:
            raise ValueError("Expected patches for rates to learn (got None). For 224 pixels, patches of 16: 196.")
        bound = copy.copy(self)
        if bound.learned is None:
            bound.learned = Rates(depth, self.patches, self.granularity, self.first)
            if self.prune is not None and self.merge is not None:
                bound.learned.start_at(list(self.prune), list(self.merge))
        elif len(bound.learned.prune) != depth:
            raise ValueError(
                f"Expected rates of {depth} blocks (got {len(bound.learned.prune)}). Create a new DiffRate."
            )
        return bound, Listed(bound._lists, self.patches)

    def _lists(self) -> tuple[list[int], list[int]]:
        return self.rates

    @property
    def replans(self) -> bool:
        """True while its rates may change between runs."""
        return self.learned is not None

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """Where tokens leave; in training in each block with rates to learn."""
        if self.learned is not None and self.learned.training:
            return finished > self.learned.first
        return keep < count

    def decide(self, tokens: Tokens) -> Moved | None:
        """In train mode: the mask of both rates, with merged rows and sizes; ``None`` in eval mode."""
        rates = self.learned
        if rates is None or not rates.training:
            return None
        prune, merge = rates.prune[tokens.layer], rates.merge[tokens.layer]
        k, m = prune.count().detach(), merge.count().detach()  # type: ignore[operator]
        before = rates.left()[tokens.layer - 1] if tokens.layer else k.new_tensor(rates.patches + 1.0)
        there = torch.ones_like(tokens.x[..., 0], dtype=torch.float32) if tokens.keep is None else tokens.keep
        counted = there.new_full((there.size(0), 1), there.size(1) + 1)
        if tokens.mask is not None:
            counted = tokens.mask.sum(dim=1, keepdim=True) + 1
        present = torch.minimum(before, counted)
        score = tokens.class_attention()
        rank = ranks(score, there.detach() > 0.5)[1] + 1
        keep = there * torch.where(k < present, prune.mask(rank, k, present), 1.0)  # type: ignore[operator]
        until = torch.minimum(present, k)
        if self.merge_by == "similarity":
            rank = ranks_by_similarity(rank, all_cosines(tokens.x), until)[1] + 1
        keep = keep * torch.where(m < until, merge.mask(rank, m, until), 1.0)  # type: ignore[operator]
        size = torch.ones_like(keep.detach()) if tokens.size is None else tokens.size
        rows, size = merge_in_place(tokens.x, size, rank, torch.minimum(m, until), until, self.official)
        return Moved(KeepMask(keep, official=self.official), rows, size)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        score = tokens.class_attention()
        prune, similar_first = self._pruned(tokens, budget), self.merge_by == "similarity"
        return prune_and_merge(score, tokens.x, prune, budget, tokens.size, tokens.mask, False, similar_first)

    def _pruned(self, tokens: Tokens, budget: int | list[int]) -> int | list[int]:
        """Tokens that this block does not drop; at least the budget."""
        listed = None if self.prune is None and self.learned is None else self.rates[0]
        if listed is None or not 0 <= tokens.layer < len(listed):
            if isinstance(budget, list):
                counts = valid_counts(tokens.x, tokens.mask)
                return [max(k, (k + n + 1) // 2) for k, n in zip(budget, counts, strict=True)]
            if tokens.mask is None:
                return max(budget, (budget + tokens.x.size(1) + 1) // 2)
            return [max(budget, (budget + n + 1) // 2) for n in valid_counts(tokens.x, tokens.mask)]
        at = tokens.memory if tokens.memory is not None else tokens.x.size(1)
        own = [scaled(listed[tokens.layer], self.patches, n) for n in (at if isinstance(at, list) else [at])]
        if isinstance(budget, list):
            return [max(k, p) for k, p in zip(budget, own * len(budget) if len(own) == 1 else own, strict=True)]
        return max(budget, own[0]) if len(own) == 1 else [max(budget, p) for p in own]

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts one row of the map, and the products of a half of those that leave with those that stay."""
        row = Cost(2 * num_tokens * channels, 4 * num_tokens * channels)
        return row + distance_cost((num_tokens - keep + 1) // 2, keep, channels)
