"""WindowCoarsening: fewer tokens in every attention window, for backbones whose maps must keep their shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from tokengraph.attach.handle import Handle
from tokengraph.attach.planner import Standalone
from tokengraph.schedule import tokens_to_keep
from tokengraph.select.base import Select, resolve
from tokengraph.select.cubist_merge import CubistMerge, coarse_grid
from tokengraph.select.expedite.expedite import Expedite, cluster_grid
from tokengraph.select.tome import ToMe
from tokengraph.windows.grid import Pair, area
from tokengraph.windows.plan import WindowPlan
from tokengraph.windows.record import WindowRecord

PADDING = ("tokens", "ignore")


@dataclass(eq=False, repr=False)
class WindowAttachment(Handle):
    """WindowCoarsening attached to a model. Calling it calls the model; as a context manager it detaches at the end.

    Attributes:
        model: The model that was given, changed in place.
        trace: The record of its last run: ``grid``, ``coarse_grid``, ``clusters``.
        select: The strategy.
        plan: The size of windows, the tokens kept and the range of blocks: ``window``, ``keep``, ``before``, ``until``.
    """

    trace: WindowRecord
    select: WindowCoarsening
    plan: WindowPlan


class WindowCoarsening(Standalone[WindowAttachment]):
    """Coarsens every attention window of a SAM-style ViT, or of one stage of a Swin, as a graph of its own.

    The windows of all images form one batch of graphs with equal token counts. With :class:`~tokengraph.Expedite`
    or :class:`~tokengraph.CubistMerge` every window becomes a small grid before block ``before``; windowed blocks then
    run on small windows, global ones on all clusters, and every token comes back after block ``until - 1``: as a
    mixture of near clusters with Expedite, as a copy of its own with CubistMerge. With :class:`~tokengraph.ToMe`
    the MLP of every windowed block runs on merged tokens, and each token takes its cluster's update; attention, shifts
    and global blocks do not change. Either way the maps around these blocks keep their shape, and no parameter changes.

    Args:
        select: Expedite, CubistMerge or ToMe, by name, class or instance.
        keep: Tokens kept per window, an int or a share; leave it out for an Expedite with ``clusters`` or a
            CubistMerge with ``coarse``. CubistMerge leaves half of each side at least.
        stage: The stage of a Swin, from 0; default: 2, the third.
        before: First changed block, within the stage. Default: 0 for ToMe, else a third of the blocks.
        until: Last changed block + 1; default: the depth.
        padding: For small grids, if windows reach beyond the map. ``"tokens"``: clusters padding like tokens, as
            published. ``"ignore"``: leaves padding out of clusters.

    Raises:
        ValueError: For another strategy, or where ``keep`` and ``clusters`` are both given or both missing.

    Cost: Expedite clusters and reconstructs once, CubistMerge merges and copies once; blocks run on ``keep`` of ``a*b``
        tokens. ToMe matches in each block, and only the MLP runs on ``keep`` of ``a*b`` tokens.

    Example:
        >>> from tokengraph import Expedite
        >>> WindowCoarsening(Expedite(clusters=(9, 9)), before=6)
        WindowCoarsening(Expedite, keep=81, before=6)

    Source: Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*, NeurIPS
    2022, released code for SAM and Swin; Bolya et al., *Token Merging*, ICLR 2023. Differs: parameters stay; shift
    masks of clustered Swin windows follow the shift; ToMe, which has no published form for windows, merges for the MLP.
    """

    HINT: ClassVar[str] = "Its maps keep their shape; give it keep and before."

    def __init__(
        self,
        select: str | type[Select] | Select = "expedite",
        *,
        keep: int | float | None = None,
        stage: int | None = None,
        before: int | None = None,
        until: int | None = None,
        padding: str = "tokens",
    ) -> None:
        self.select = resolve(select)
        if not isinstance(self.select, Expedite | CubistMerge | ToMe):
            raise ValueError(
                f"Expected Expedite, CubistMerge or ToMe for windows (got {type(self.select).__name__}). "
                "Others need a plain ViT: tg.attach(model, strategy, schedule)."
            )
        own = self.select.own_budget
        if (keep is None) == (own is None):
            what = "neither" if keep is None else f"both, keep={keep} and clusters={own}"
            raise ValueError(
                f"Expected keep, or an Expedite with clusters or CubistMerge with coarse (got {what}). "
                "Give one of them."
            )
        if padding not in PADDING:
            raise ValueError(f"Expected padding to be one of {', '.join(PADDING)} (got {padding!r}).")
        if keep is not None:
            tokens_to_keep(keep, 1)  # checks
        self.keep = own if keep is None else keep
        self.stage = stage
        self.before = before
        self.until = until
        self.padding = padding

    def __repr__(self) -> str:
        told = {"keep": self.keep, "stage": self.stage, "before": self.before, "until": self.until}
        shown = [f"{name}={value}" for name, value in told.items() if value is not None]
        return f"WindowCoarsening({', '.join([type(self.select).__name__, *shown])})"

    def plan(self, window: Pair, depth: int) -> WindowPlan:
        """Makes the plan for ``depth`` blocks with windows ``(a, b)``.

        Raises:
            ValueError: If blocks are out of range, or the strategy cannot keep so few tokens.
        """
        tokens, select = area(window), self.select
        assert self.keep is not None
        keep = tokens_to_keep(self.keep, tokens)
        clusters = None if isinstance(select, ToMe) else _small_grid(select, window, keep)
        if clusters is not None:
            keep = math.prod(clusters)
        elif keep < select.fewest(tokens):
            raise ValueError(f"Expected keep >= {select.fewest(tokens)} of {tokens} tokens for ToMe (got {keep}).")
        first = (depth // 3 if clusters else 0) if self.before is None else self.before
        until = depth if self.until is None else self.until
        if not 0 <= first < until <= depth:
            raise ValueError(f"Expected 0 <= before < until <= {depth} blocks (got before={first}, until={until}).")
        return WindowPlan(select, window, keep, clusters, first, until, self.padding)


def _small_grid(select: Select, window: Pair, keep: int) -> Pair:
    """The grid ``(h, w)`` that a strategy makes of every window ``(a, b)``.

    Raises:
        ValueError: If the strategy cannot make it.
    """
    whole = keep == area(window)
    if isinstance(select, Expedite):
        made = select.clusters or (window if whole else cluster_grid(window, keep))
        if len(made) != 2 or made[0] > window[0] or made[1] > window[1]:
            raise ValueError(f"Expected clusters within windows of {window} (got {made}).")
        return made[0], made[1]
    assert isinstance(select, CubistMerge)
    made = select.coarse or (window if whole else coarse_grid(window, keep))
    least = (window[0] + 1) // 2, (window[1] + 1) // 2
    fits = len(made) == 2 and least[0] <= made[0] <= window[0] and least[1] <= made[1] <= window[1]
    if not fits or math.prod(made) > keep:
        raise ValueError(
            f"Expected a grid from {least} to {window} in each window for CubistMerge (got "
            f"{f'keep={keep}' if select.coarse is None else made}). It merges half of each row and column at most."
        )
    return made
