"""Evo-ViT: slow tokens run a stage of blocks, the others wait, or follow a summary of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_mask
from tokengraph.flat.segment import TINY
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.schedule import Schedule
from tokengraph.schedule.stages import Stages
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import among_best, keep_best
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts


@explains
def slow_fast_stage(
    score: Tensor, keep: int | list[int], *, summary: bool = False, mask: Tensor | None = None
) -> Assignment | SoftAssignment:
    """Chooses the slow tokens of a stage, and the summary of the others.

    Args:
        score: The running class attention, ``[B, N]``; ties go to the lower index.
        keep: Tokens that run, the summary among them.
        summary: Whether the others (placeholders) have one more token, their mean weighted by score; ``lift`` gives
            them its row. Equal weights where all scores are 0.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``): slow tokens in order, then the summary.

    Raises:
        ValueError: If ``score`` has another shape or is not finite.

    Cost: one sort of ``[B, N]``; no host synchronisation without a mask.

    Example:
        >>> a = slow_fast_stage(torch.tensor([[0.4, 0.1, 0.3, 0.2]]), 3, summary=True)
        >>> [round(w, 4) for w in a.weight.tolist()]
        [1.0, 0.3333, 1.0, 0.6667]

    Source: Xu et al., *Evo-ViT*, AAAI 2022, and its code; the summary is that of its LeViT.
    """
    if score.dim() != 2:
        raise ValueError(f"Expected score of shape [B, N] (got {list(score.shape)}).")
    check_mask(mask, score)
    check_finite(score if mask is None else score[mask])
    return _stage(score, keep, mask, summary)


def _stage(score: Tensor, keep: int | list[int], mask: Tensor | None, summary: bool) -> Assignment | SoftAssignment:
    budget = clamp_budget(keep, score, mask)
    counts = None if isinstance(budget, int) else valid_counts(score, mask)
    whole = budget >= score.size(1) if counts is None else budget == counts  # type: ignore[operator]
    if not summary or whole:
        return keep_best(score, budget, mask)
    if isinstance(budget, list) and counts is not None:
        slow: int | list[int] = [k if k >= n else k - 1 for k, n in zip(budget, counts, strict=True)]
        last = torch.tensor(budget, dtype=torch.long, device=score.device)[:, None] - 1
        most = max(budget, default=0)
    else:
        slow, last, most = budget - 1, budget - 1, budget  # type: ignore[operator]
    runs = among_best(score, slow, mask)
    behind = runs if mask is None else runs & mask
    centers = (~behind).long().argsort(dim=1, stable=True)[:, :most]
    number = torch.where(runs, runs.cumsum(dim=1) - 1, last)
    hard = Assignment.from_dense(number, budget, mask=mask, centers=centers)
    waits = ~runs if mask is None else mask & ~runs
    share = torch.where(waits, score.detach().float(), 0.0)
    share = share / share.amax(dim=1, keepdim=True).clamp_min(TINY)
    total = share.sum(dim=1, keepdim=True)
    share = torch.where(total > 0, share / total.clamp_min(TINY), 1 / waits.sum(dim=1, keepdim=True).clamp_min(1))
    weight = torch.where(runs, 1.0, share)
    weight = weight.flatten() if mask is None else weight[mask]
    token = torch.arange(hard.num_tokens, device=score.device)
    return SoftAssignment(
        token, hard.cluster, weight, hard.num_tokens, hard.num_clusters, False,
        (token, hard.cluster, torch.ones_like(weight)), hard.ptr, hard.cluster_ptr, hard.centers, counts=hard.counts,
    )  # fmt: skip


@dataclass(frozen=True)
class EvoViT(Select):
    r"""Evo-ViT as a strategy: in each stage of blocks the tokens of the highest class attention run, all others wait.

    The score is a running one, :math:`g \leftarrow (1 - t) g + t \sum_h A_{h, \text{cls}}`, of every block: t is 1 in
    front of the first stage and ``tradeoff`` from there on, and tokens that wait keep theirs. At the end of a stage
    tokens come back as they left, or with the change of their summary, and the next stage chooses among all.

    Evo-ViT trains from scratch, with a head on the mean of all patches (timm: ``global_pool="avg"``) beside that on the
    class token; the head of a plain DeiT has not seen tokens that waited.

    Args:
        stages: ``(start, stop, share)``: blocks ``start`` to ``stop - 1`` (from 0, start at least 1) run on
            ``int(share * N)`` of the N input tokens; ``None``: the second and the last third of the depth on a half of
            them, as published. One-block stages are the layer form of its training.
        tradeoff: t.
        summary: Whether waiting tokens have a summary that runs, and add its change at the end; LeViT's form.
        restore: Whether tokens come back behind the last block too.

    Raises:
        ValueError: If a share or the tradeoff is out of (0, 1], or stages overlap.

    Source: Xu et al., *Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer*, AAAI 2022, and its code:
    DeiT's form (no summary), and LeViT's summary around plain ViT blocks. LeViT itself is not here.
    """

    name: ClassVar[str] = "evovit"
    placement: ClassVar[str] = "before"
    merges: ClassVar[bool] = False
    reads: ClassVar[str] = "class"
    stages: Sequence[tuple[int, int, float]] | None = None
    tradeoff: float = 0.5
    summary: bool = False
    restore: bool = True

    def __post_init__(self) -> None:
        shares = [share for _, _, share in self.stages or ()]
        if not all(0 < s <= 1 for s in (*shares, self.tradeoff)):
            raise ValueError(f"Expected shares and tradeoff in (0, 1] (got {shares}, {self.tradeoff}).")
        if self.stages is not None:
            ends = [0, *(end for start, stop, _ in self.stages for end in (start, stop))]
            rising = all(a < b if i % 2 else a <= b for i, (a, b) in enumerate(zip(ends[:-1], ends[1:], strict=True)))
            if not self.stages or not rising or ends[1] < 1:
                raise ValueError(f"Expected stages (start, stop, share) in turn, from block 1 on (got {self.stages}).")

    @classmethod
    def published(cls) -> EvoViT:
        """Returns the released DeiT: stages of blocks 4 to 7 and 8 to 11, half of the tokens.

        Source: the code of Xu et al., AAAI 2022.
        """
        return cls(((4, 8, 0.5), (8, 12, 0.5)))

    @property
    def stores(self) -> bool:
        """True: tokens come back."""
        return True

    @property
    def holds(self) -> bool:
        """True: as they left, with the change of their cluster."""
        return True

    @property
    def restores(self) -> bool:
        """True."""
        return True

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy and its schedule; see :meth:`tokengraph.Select.bind`.

        Raises:
            ValueError: If a stage ends outside of the model.
        """
        if schedule is not None:
            return self, schedule
        third = max(depth // 3, 1)
        stages = self.stages or ((third, 2 * third, 0.5), (2 * third, depth, 0.5))
        if stages[-1][1] > depth:
            raise ValueError(f"Expected stages within {depth} blocks (got {list(stages)}).")
        return self, Stages(tuple(tuple(s) for s in stages), int(self.summary), self.restore)  # type: ignore[arg-type]

    def observes(self, index: int) -> bool:
        """True: every block's class attention counts."""
        return True

    def observe(self, tokens: Tokens) -> tuple[Tensor, float | Tensor]:
        """The running class attention of all input tokens, ``[B, N]``, and its t from here on, for each image or all.

        t is ``tradeoff`` once tokens of the image have waited.
        """
        row = tokens.class_row().detach().float().sum(dim=1)
        if tokens.seen is None:
            return row if tokens.mask is None else row.masked_fill(~tokens.mask, 0.0), 1.0
        known, t = tokens.seen
        if tokens.patch is None:
            new = (1 - t) * known + t * row
            return (new if tokens.mask is None else torch.where(tokens.mask, new, known)), t
        spared = None if tokens.spared is None else torch.tensor(tokens.spared, device=row.device)[:, None]
        t = self.tradeoff if spared is None else torch.where(spared, t, self.tradeoff)
        there = torch.ones_like(row, dtype=torch.bool) if tokens.mask is None else tokens.mask
        if self.summary:  # the last token of an image that has fewer than at its input
            count = there.sum(dim=1, keepdim=True)
            last = torch.arange(row.size(1), device=row.device) == count - 1
            there = there & ~(last if spared is None else last & ~spared)
        change = torch.where(there, t * (row - known.gather(1, tokens.patch)), 0.0)
        return known.scatter_add(1, tokens.patch, change), t

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to those that run; see :class:`tokengraph.Select`."""
        if tokens.seen is None:
            return _stage(tokens.class_attention(), budget, tokens.mask, self.summary)
        score = tokens.seen[0]  # of all input tokens, of which some may have left by a schedule without returns
        score = score if tokens.patch is None else score.gather(1, tokens.patch)
        return _stage(score, budget, tokens.mask, self.summary)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts one row of the attention map, and the summary."""
        return Cost((2 + self.summary) * num_tokens * channels, 4 * num_tokens * channels)
