"""Top-K pruning by a score, and EViT's fusion of the pruned tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_mask
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import keep_best
from tokengraph.select.parts.reductions.fuse import keep_and_fuse
from tokengraph.select.parts.scores.norm import feature_norm
from tokengraph.select.tokens import Tokens


@explains
def topk(score: Tensor, keep: int | list[int], *, mask: Tensor | None = None) -> Assignment:
    """Keeps the tokens with the highest scores, in index order, and drops the others.

    Args:
        score: ``[B, N]``; ties go to the lower index.
        keep: Tokens an image, at least 1.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        A lossy map over ``B*N`` tokens (the True ones of ``mask``), with ``centers`` the kept tokens.

    Cost: one sort of ``[B, N]``; no host synchronisation without a mask.

    Example:
        >>> topk(torch.tensor([[0.1, 0.9, 0.5]]), 2).cluster.tolist()
        [2, 0, 1]

    Source: the pruning of Liang et al., *EViT*, ICLR 2022. Differs: kept tokens stay in order (published: by score).
    """
    _check_score(score)
    check_mask(mask, score)
    check_finite(score if mask is None else score[mask])
    return keep_best(score, keep, mask)


def fuse_rest(
    score: Tensor, keep: int | list[int], *, mask: Tensor | None = None, average: bool = False
) -> SoftAssignment:
    """Keeps the ``keep - 1`` tokens with the highest scores, and sums the others by score into one last cluster.

    The weights are the scores themselves, not divided by their sum, as in EViT's code; gradients reach them. ``lift``
    gives every fused token the fused row. An image that keeps all its tokens has no fused token.

    Args:
        score: ``[B, N]``.
        keep: Clusters an image, the fused one among them; at least 1.
        mask: ``[B, N]`` bool, True where there is a token.
        average: Divides the weights of the others by their sum. Needed for scores that are no shares of attention:
            feature norms, for example, would sum to a far longer token than any other.

    Cost: one sort of ``[B, N]``; no host synchronisation without a mask.

    Source: Liang et al., *EViT*, ICLR 2022, section 3.2, and its code.
    """
    _check_score(score)
    check_mask(mask, score)
    check_finite(score if mask is None else score[mask])
    return keep_and_fuse(score, keep, mask, average)


@dataclass(frozen=True)
class TopK(Select):
    """Top-K pruning as a strategy, between attention and MLP.

    Args:
        score: ``"class"``: the class token's attention, mean over heads; ``"norm"``: the L2 norm of the features.
        fuse: Fuses the pruned tokens into one (EViT); see :func:`fuse_rest`. True: with ``"class"`` it is their sum
            weighted by attention, as published; with ``"norm"`` it is their average weighted by norm. ``"average"``:
            their weighted average, for both scores.
    """

    name: ClassVar[str] = "topk"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"evit": {"fuse": True}, "top-k": {}}
    merges: ClassVar[bool] = False
    score: str = "class"
    fuse: bool | str = False

    @classmethod
    def published(cls) -> TopK:
        """Returns EViT: class attention and a fused token. The schedule sets the shares (0.7 at three layers there).

        Source: the code of Liang et al., ICLR 2022. Kept tokens stay in order, which changes no output of a block.
        """
        return cls("class", fuse=True)

    def __post_init__(self) -> None:
        if self.score not in ("class", "norm"):
            raise ValueError(f"Expected score to be 'class' or 'norm' (got {self.score!r}).")
        if self.fuse not in (False, True, "average"):
            raise ValueError(f"Expected fuse to be False, True or 'average' (got {self.fuse!r}).")

    @property
    def reads(self) -> str:  # type: ignore[override]
        """``"class"`` or, for ``score="norm"``, ``"nothing"``."""
        return "class" if self.score == "class" else "nothing"

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if self.score == "class":
            score = tokens.class_attention()
        else:
            score = feature_norm(tokens.x)
        if self.fuse:
            return keep_and_fuse(score, budget, tokens.mask, average=self.score == "norm" or self.fuse == "average")
        return keep_best(score, budget, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts one row of the attention map, or one norm a token."""
        return Cost(2 * num_tokens * channels, 4 * num_tokens * channels)


def _check_score(score: Tensor) -> None:
    if not isinstance(score, Tensor) or score.dim() != 2:
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(f"Expected score of shape [B, N] (got {got}).")
