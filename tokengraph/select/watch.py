"""What a strategy may follow through a run besides the tokens that it chooses from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from tokengraph.select.tokens import Tokens


class Watching:
    """The part of :class:`tokengraph.Select` for methods with a memory that changes from block to block.

    Attributes:
        peeks: With placement ``"around"`` a whole block: it reads queries and keys that the block makes of its input,
            before the block runs.
    """

    peeks: ClassVar[bool] = False

    @property
    def replans(self) -> bool:
        """True if its schedule may give other counts in the next run, as one that learns them does."""
        return False

    def observes(self, index: int) -> bool:
        """Returns whether :meth:`observe` is to see block ``index`` (from 0), whether tokens leave there or not."""
        return False

    def observe(self, tokens: Tokens) -> Any:
        """Returns what the next block finds as ``tokens.seen``, from that of the block before and this block's tokens.

        It runs at the strategy's place in the block, before the strategy chooses there; around a block before it, by
        its queries and keys. ``tokens.seen`` is ``None`` at first. It must not change in place: gradient checkpointing
        reads old ones again.
        """
        return tokens.seen

    def outputs(self, seen: Any) -> Tensor | None:
        """Returns rows ``[B, P+N, C]`` that the model reads behind its last block, one a token of the input.

        ``None``: those of the last block, which also count where the schedule removes nothing.
        """
        return None

    def barred(self, seen: Any) -> Tensor | None:
        """Returns prefix tokens that the others no longer see as keys, ``[B, P]`` bool; ``None``: they see all."""
        return None
