"""ToFu: tokens are pruned in early blocks and merged in later ones, without loss of length."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule, ratio
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.edges import merge_halves
from tokengraph.select.parts.choices.receivers import with_receivers
from tokengraph.select.tokens import Tokens

REDUCE = {"mlerp": "mlerp", "mean": "mean", "released": "released-mlerp", "prune": "center"}


@explains
def tofu(metric: Tensor, keep: int | list[int], *, num_prefix: int = 0, mask: Tensor | None = None) -> Assignment:
    r"""Pairs tokens as :func:`~tokengraph.tome` does, and names of each pair the token that the other merges into.

    Rows then follow by the map's ``reduce``. With :math:`b` the center, :math:`a_1, \dots, a_j` what merges into it
    and :math:`m` their plain mean, b among them:

    .. math:: \text{"center": } x' = x_b \qquad
              \text{"mlerp": } x' = \frac{m}{\lVert m \rVert} \max(\lVert x_b \rVert, \lVert x_{a_1} \rVert, \dots)
              \qquad \text{"released-mlerp": } x' = \frac{m}{\lVert x_b \rVert} \max(\dots)

    Args:
        metric: What similarity is measured on, published: keys, mean over heads; ``[B, N, D]`` of patch tokens.
        keep: Clusters an image; at most half the tokens leave in one step.
        num_prefix: Prefix tokens in front of the sequence: they take part in the alternation, never in a merge.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.

    Returns:
        The map of :func:`~tokengraph.tome` over ``B*N`` tokens (the True ones of ``mask``), with ``centers``.

    Raises:
        ValueError: If ``keep`` is below 1, tokens are not finite or ``mask`` has holes.

    Cost: that of ``tome`` and a maximum over ``[M]``; no host synchronisation without a mask.

    Example:
        >>> pair = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [1.0, 0.0], [2.0, 0.1]]])
        >>> a = tofu(pair, 3)
        >>> a.cluster.tolist(), a.centers.tolist(), a.reduce(pair[0], reduce="mlerp")[0].norm(dim=1).round().tolist()
        ([2, 1, 0, 2], [2, 1, 3], [1.0, 4.0, 3.0])

    Source: Kim et al., *Token Fusion: Bridging the Gap between Token Pruning and Token Merging*, WACV 2024. Its authors
    published no code: the choice follows two public ports, MLERP the paper's text. Differs: nothing to remove is the
    identity (ports: another order), prefix tokens never merge.
    """
    check_tokens(metric)
    check_mask(mask, metric, leading=True)
    check_finite(metric if mask is None else metric[mask])
    return _tofu(metric, keep, num_prefix, mask)


@dataclass(frozen=True)
class ToFu(Select):
    """ToFu as a strategy, between attention and MLP, on the attention keys; see :func:`tofu`.

    Score: cosine of keys. Graph: alternating halves. Choice: the heaviest edges. Reduction: the receiving token in
    early blocks, MLERP in later ones. Sizes weigh neither means nor attention, as none are published.

    Args:
        until: The last block (0-based) that prunes; ``None``: block ``L // 2`` of L. Outside a model nothing prunes.
        reduce: Of later blocks: ``"mlerp"``, ``"mean"`` (as the port for MAE), ``"prune"``, or ``"released"``, what the
            ports compute in place of MLERP: it divides by the receiving token's length, not by the mean's.
        depth: L; ``attach`` fills it in.

    Pruned tokens stay in the map, so that lifted features have a row for every patch. As a schedule,
    :meth:`published_schedule` counts the tokens as the ports do.
    """

    name: ClassVar[str] = "tofu"
    until: int | None = None
    reduce: str = "mlerp"
    depth: int | None = None

    def __post_init__(self) -> None:
        if self.reduce not in REDUCE:
            raise ValueError(f"Expected reduce to be one of {', '.join(REDUCE)} (got {self.reduce!r}).")

    @classmethod
    def published(cls) -> ToFu:
        """What the public ports compute: ``reduce="released"`` behind the first half."""
        return cls(reduce="released")

    @staticmethod
    def published_schedule(keep: float = 0.9) -> Schedule:
        """The ports' removals for a model with a class token: the share ``1 - keep`` of all tokens, rounded down."""
        return ratio(keep, prefix=1)

    @property
    def weighs(self) -> bool:
        """Sizes weigh neither later means nor attention: none are published."""
        return False

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """The strategy for a model of ``depth`` blocks; see :meth:`tokengraph.Select.bind`."""
        bound = copy.copy(self)  # with what an instance has beside its fields, such as a reduction of its own
        object.__setattr__(bound, "depth", depth)
        return super(ToFu, bound).bind(channels, depth, schedule)

    def reduction_at(self, layer: int) -> str:
        """``"center"`` up to block ``until``, then by ``reduce``."""
        until = self.until if self.until is not None or self.depth is None else self.depth // 2
        return "center" if until is not None and 0 <= layer <= until else REDUCE[self.reduce]

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        return _tofu(tokens.keys, budget, tokens.num_prefix, tokens.mask)

    def fewest(self, num_tokens: int) -> int:
        """A round leaves at least one set: ``ceil(N / 2)``."""
        return num_tokens - num_tokens // 2

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Keys averaged over heads, products between the halves, a maximum over each row."""
        half = num_tokens // 2
        keys = Cost(num_tokens * channels, 4 * num_tokens * (channels + head_width))
        return keys + distance_cost(half, num_tokens - half, head_width) + Cost(half * half, 4 * half * half)


def _tofu(metric: Tensor, keep: int | list[int], num_prefix: int, mask: Tensor | None) -> Assignment:
    assignment = merge_halves(metric, keep, num_prefix, mask, receivers=True)
    return assignment if assignment.centers is not None else with_receivers(assignment, num_prefix % 2, mask)
