"""Token migration as a strategy: redundant tokens leave the blocks, and come back without attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.flat.tables import equal_ptr
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.migration.redundancy import REPLENISH, at_most_half, pick_redundant, tokens_to_drop
from tokengraph.select.tokens import Tokens, clamp_budget

if TYPE_CHECKING:
    from tokengraph.schedule import Schedule

SIMILARITY, SPLIT, POOL = ("keys", "tokens"), ("rank", "checkerboard"), ("all", "kept")


@dataclass(frozen=True, eq=False)
class TokenMigration(Select):
    """Tokens that resemble another one leave after some blocks, and return at the end with what they left with.

    The idea is Fast-iTPN's (Tian et al., TPAMI 2024): redundant tokens leave the backbone and return in the pyramid,
    without attention. The authors published no code of it; the definition is this project's own.

    Given to a :func:`~tokengraph.models.fast_itpn_tiny` (or another) it acts in the main stage. Attached to a plain
    vision transformer, ``attach(model, TokenMigration())``, it brings every patch back after the last block, so that
    dense heads find the full map; a schedule of your own says where instead, as ``{4: 0.7, 12: "reconstruct"}``.

    Args:
        schedule: ``{layer: keep ratio}`` of the tokens there are, layers counted from 1; an int: so many tokens leave
            after every block; ``None``: 0.7 after a quarter, a half and three quarters of the blocks; ``{}``: nobody
            leaves.
        replenish: ``"identity"``, ``"zero"``, ``"twin_copy"`` or ``"twin_delta"``; see
            :func:`~tokengraph.select.migration.redundancy.replenish`.
        similarity: ``"keys"`` of the block's own attention, or the block's ``"tokens"``.
        split: ``"rank"``: every other token may leave; ``"checkerboard"``: at the first step, the black cells.
        size_weight: Tokens that stay stand for those that left: attention adds the log of their number. Fast-iTPN only.
        pool: What a classifier of Fast-iTPN averages: ``"all"`` positions or the ``"kept"`` ones.

    Raises:
        ValueError: If a word is unknown, or a layer is below 1.
    """

    name: ClassVar[str] = "token-migration"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fast-itpn": {}}
    alone: ClassVar[bool] = True
    placement: ClassVar[str] = "after"
    merges: ClassVar[bool] = False
    schedule: Mapping[int, float] | int | None = None
    replenish: str = "identity"
    similarity: str = "keys"
    split: str = "rank"
    size_weight: bool = False
    pool: str = "all"

    def __post_init__(self) -> None:
        words = {"replenish": REPLENISH, "similarity": SIMILARITY, "split": SPLIT, "pool": POOL}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"Expected {name} to be one of {', '.join(known)} (got {getattr(self, name)!r}).")
        if isinstance(self.schedule, Mapping) and any(layer < 1 for layer in self.schedule):
            raise ValueError(f"Expected layers counted from 1 (got {sorted(self.schedule)}).")
        if isinstance(self.schedule, int) and self.schedule < 0:
            raise ValueError(f"Expected a number of tokens >= 0 (got {self.schedule}).")

    def removed(self, depth: int, num_tokens: int) -> dict[int, int]:
        """How many of N tokens leave after which of ``depth`` blocks; blocks that nobody leaves after are left out.

        Raises:
            ValueError: If the schedule names a layer above ``depth``.

        Example:
            >>> TokenMigration().removed(12, 196)
            {3: 58, 6: 41, 9: 29}
        """
        plan = self.schedule
        if plan is None:
            plan = {depth * quarter // 4: 0.7 for quarter in (1, 2, 3) if depth * quarter // 4 > 0}
        if isinstance(plan, Mapping) and any(layer > depth for layer in plan):
            raise ValueError(f"Expected layers 1 to {depth} in the schedule (got {max(plan)}).")
        leave, left = {}, num_tokens
        for layer in range(1, depth + 1):
            if isinstance(plan, Mapping):
                gone = tokens_to_drop(left, plan[layer]) if layer in plan else 0
            else:
                gone = at_most_half(left, plan)
            if gone:
                leave[layer], left = gone, left - gone
        return leave

    @property
    def reads(self) -> str:  # type: ignore[override]
        """``"keys"`` where they tell who resembles whom."""
        return "keys" if self.similarity == "keys" else "nothing"

    @property
    def restores(self) -> bool:
        """True: that is its second half."""
        return True

    @property
    def stores(self) -> bool:
        """Whether tokens come back with something of their own."""
        return self.replenish in ("identity", "twin_delta")

    def fewest(self, num_tokens: int) -> int:
        """At most every other token leaves at once."""
        return num_tokens - at_most_half(num_tokens, num_tokens)

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[TokenMigration, Schedule]:
        """The strategy itself, and its own schedule with a reconstruction at the end, where none is given."""
        if self.size_weight:
            raise ValueError("Expected size_weight=False in an attached model (got True). Fast-iTPN takes it.")
        return self, _Leave(self) if schedule is None else schedule

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens that stay to themselves; see :class:`tokengraph.Select`."""
        keep = clamp_budget(budget, tokens.x, None)
        if tokens.mask is not None or isinstance(keep, list):
            raise ValueError("Expected as many tokens in all images and one budget (got a ragged batch or budgets).")
        images, count = tokens.x.shape[:2]
        removed = at_most_half(count, count - keep)
        features = tokens.keys if self.similarity == "keys" else tokens.x
        grid = tokens.grid if self.split == "checkerboard" and tokens.full else None
        choice = pick_redundant(features, removed, grid)
        left = count - removed
        place = torch.arange(left, device=tokens.x.device).expand(images, -1)
        cluster = torch.full((images, count), -1, device=tokens.x.device).scatter(1, choice.keep, place)
        if self.replenish in ("identity", "zero"):
            drops = removed > 0
            return Assignment.from_dense(cluster, left, drops=drops, centers=choice.keep, single=True)
        # Down the tokens that stay, up from each token's own place or its twin's.
        cluster = cluster.scatter(1, choice.dropped, cluster.gather(1, choice.twin))
        ptr, ends = equal_ptr(images, count, cluster.device), equal_ptr(images, left, cluster.device)
        kept, own = (choice.keep + ptr[:-1, None]).flatten(), torch.arange(images * left, device=cluster.device)
        ones = tokens.x.new_ones(images * count, dtype=torch.float32)
        everyone = torch.arange(images * count, device=cluster.device)
        up = everyone, (cluster + ends[:-1, None]).flatten(), ones
        return SoftAssignment(
            kept, own, ones[: images * left], images * count, images * left, False, up, ptr, ends, centers=kept
        )

    def residue(self, x: Tensor, assignment: Assignment | SoftAssignment) -> Tensor:
        """What dropped tokens left with; for ``"twin_delta"`` less what their twins had then."""
        if isinstance(assignment, Assignment):
            return torch.where((assignment.cluster == assignment.num_clusters)[:, None], x, 0.0)
        assert assignment.centers is not None
        twin = assignment.centers[assignment.way_back()[1]]  # itself for a token that stays
        return x - x.index_select(0, twin)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Keys averaged over heads, products between the halves."""
        half = num_tokens // 2
        return Cost(num_tokens * channels, 4 * num_tokens * channels) + distance_cost(
            half, num_tokens - half, head_width
        )


@dataclass(frozen=True)
class _Leave:
    """Removals of a migration, and everybody back after the last block. A drop there would change nothing."""

    migration: TokenMigration

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        from tokengraph.schedule import RECONSTRUCT

        leave = self.migration.removed(depth, num_tokens)
        removed = [leave.get(layer, 0) for layer in range(1, depth + 1)]
        removed[-1] = RECONSTRUCT if any(removed[:-1]) else 0
        return removed
