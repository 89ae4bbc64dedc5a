"""Token migration as a strategy: redundant tokens skip later blocks, and return without attention."""

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
    """Drops tokens that resemble another one after some blocks, and returns them at the end with their last features.

    The idea is Fast-iTPN's (Tian et al., TPAMI 2024): redundant tokens leave the backbone and return in the pyramid,
    without attention. The authors published no code for it; the definition is this project's own.

    In :func:`~tokengraph.models.fast_itpn_tiny` and its siblings it acts in the main stage. Attached to a plain vision
    transformer, ``attach(model, TokenMigration())``, it restores every patch after the last block, so that dense heads
    get the full map. Give a schedule to restore earlier, as ``{4: 0.7, 8: "reconstruct"}``.

    Args:
        schedule: ``{layer: keep ratio}`` of the current tokens, layers counted from 1; an int removes that many tokens
            after every block; ``None`` keeps 0.7 after a quarter, a half and three quarters of the blocks; ``{}``
            removes none.
        replenish: ``"identity"``, ``"zero"``, ``"twin_copy"`` or ``"twin_delta"``; see
            :func:`~tokengraph.select.migration.redundancy.replenish`. The default, by measurement (``make truth``):
            a third of the tokens kept, returned patches have cosine 0.93 to the dense ones, and 0.44 by identity.
        similarity: Of the block's ``"tokens"``, or of the ``"keys"`` of its own attention. The default, by measurement:
            tokens keep features as near to the dense ones or nearer, on three kinds of images and two models.
        split: ``"checkerboard"``: at the first step, the black cells may leave; ``"rank"``: every other token. The
            default, by measurement: equal or nearer (class token .963 against .951 with a third of the tokens kept).
        size_weight: Weighs kept tokens by the number of tokens they stand for (adds its log to attention logits).
            Fast-iTPN only.
        pool: Positions that a Fast-iTPN classifier averages: ``"all"`` or the ``"kept"`` ones.

    Raises:
        ValueError: If an option is unknown, or a layer is below 1.
    """

    name: ClassVar[str] = "token-migration"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fast-itpn": {}}
    alone: ClassVar[bool] = True
    placement: ClassVar[str] = "after"
    merges: ClassVar[bool] = False
    schedule: Mapping[int, float] | int | None = None
    replenish: str = "twin_delta"
    similarity: str = "tokens"
    split: str = "checkerboard"
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
        """Returns the number of N tokens removed after each of ``depth`` blocks, without blocks that remove none.

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
        """``"keys"`` if the similarity is of keys, else ``"nothing"``."""
        return "keys" if self.similarity == "keys" else "nothing"

    @property
    def restores(self) -> bool:
        """True, because migration includes the reconstruction."""
        return True

    @property
    def stores(self) -> bool:
        """True if dropped tokens return with features of their own."""
        return self.replenish in ("identity", "twin_delta")

    def fewest(self, num_tokens: int) -> int:
        """One step removes at most every other token."""
        return num_tokens - at_most_half(num_tokens, num_tokens)

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[TokenMigration, Schedule]:
        """Returns itself, and the given schedule or its own with a reconstruction at the end."""
        if self.size_weight:
            raise ValueError("Expected size_weight=False in an attached model (got True). Only Fast-iTPN supports it.")
        return self, _Leave(self) if schedule is None else schedule

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Keeps the tokens that resemble no other; see :class:`tokengraph.Select`."""
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
        # reduce keeps the remaining tokens; lift reads each token's own row or its twin's.
        cluster = cluster.scatter(1, choice.dropped, cluster.gather(1, choice.twin))
        ptr, ends = equal_ptr(images, count, cluster.device), equal_ptr(images, left, cluster.device)
        kept, own = (choice.keep + ptr[:-1, None]).flatten(), torch.arange(images * left, device=cluster.device)
        ones = tokens.x.new_ones(images * count, dtype=torch.float32)
        everyone = torch.arange(images * count, device=cluster.device)
        up = everyone, (cluster + ends[:-1, None]).flatten(), ones
        flat = kept, own, ones[: images * left], images * count, images * left
        return SoftAssignment(*flat, False, up, ptr, ends, centers=kept, others=0)

    def residue(self, x: Tensor, assignment: Assignment | SoftAssignment) -> Tensor:
        """Returns the last features of dropped tokens; for ``"twin_delta"`` minus their twins' features then."""
        if isinstance(assignment, Assignment):
            return torch.where((assignment.cluster == assignment.num_clusters)[:, None], x, 0.0)
        assert assignment.centers is not None
        twin = assignment.centers[assignment.way_back()[1]]  # a kept token is its own twin
        return x - x.index_select(0, twin)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts the mean of keys over heads, and products between the halves."""
        half = num_tokens // 2
        return Cost(num_tokens * channels, 4 * num_tokens * channels) + distance_cost(
            half, num_tokens - half, head_width
        )


@dataclass(frozen=True)
class _Leave:
    """The schedule of a migration: removals, and a restore after the last block. A removal there changes nothing."""

    migration: TokenMigration

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        from tokengraph.schedule import RECONSTRUCT

        leave = self.migration.removed(depth, num_tokens)
        removed = [leave.get(layer, 0) for layer in range(1, depth + 1)]
        removed[-1] = RECONSTRUCT if any(removed[:-1]) else 0
        return removed
