"""Mixins for swapped blocks and models, and the protocols through which adapters read a run.

Adapters do not import ``attach``. A swapped block hands its input to the site that ``attach`` left on it. Heads read
the last run through :class:`Reader`, and per-token inputs (RoPE tables, biases) are coarsened through a
:class:`~tokengraph.maps.lineage.Lineage`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from torch import Tensor, nn

from tokengraph.adapters.parts.tracing import refuse_script, refuse_tracing
from tokengraph.maps.lineage import Lineage
from tokengraph.nn.modes import in_backward

SITE = "_tokengraph"  # attribute that an attached module carries
KEPT = "_tokengraph_kept"  # outputs of parts of a block, which hooks keep for it to read


class Writer(Protocol):
    """What families ask of the run that is going on; see :class:`tokengraph.attach.run.Run`."""

    whole: bool

    def note_caller(self, whole: bool) -> None:
        """Notes whether a head that needs every patch has called the model."""
        ...

    def lineage_at(self, index: int, x: Tensor) -> Lineage | None:
        """Where the tokens ``x [B, P+n, C]`` that come to block ``index`` are from."""
        ...


class Reader(Protocol):
    """What heads and poolings read of the last run; see :class:`tokengraph.attach.trace.Trace`."""

    @property
    def run(self) -> Writer:
        """What the blocks write."""
        ...

    @property
    def num_prefix(self) -> int:
        """P, the prefix tokens in front of the sequence."""
        ...

    @property
    def depth(self) -> int:
        """Blocks in the model."""
        ...

    @property
    def present(self) -> Tensor | None:
        """``[B, N]`` bool, True where the input has a patch; ``None``: everywhere."""
        ...

    @property
    def decisions(self) -> list[Tensor]:
        """Cumulative keep masks ``[B, N]`` of a strategy that trains, stage by stage."""
        ...

    def lineage(self, layer: int | None = None) -> Lineage:
        """Where the tokens after ``layer`` blocks (default: all) come from, and how they lie."""
        ...

    def valid(self, layer: int | None = None) -> Tensor:
        """Where there are tokens, ``[B, n]`` bool."""
        ...

    def lift(
        self, tokens: Tensor, *, layer: int | None = None, fill: Tensor | None = None, replenish: bool = False
    ) -> Tensor:
        """Tokens ``[B, n, C]`` brought back to one row per input patch, ``[B, N, C]``."""
        ...

    def lift_sequence(self, tokens: Tensor) -> Tensor:
        """``[B, P+n, C]`` after the last block to ``[B, P+N, C]``."""
        ...

    def as_map(self, tokens: Tensor | None = None, *, layer: int | None = None, replenish: bool = False) -> Tensor:
        """A feature map at full resolution, ``[B, C, H, W]``."""
        ...


class CoarseSite(Protocol):
    """What ``attach`` leaves on a module, under the attribute ``SITE``."""

    index: int
    original: type | None

    @property
    def trace(self) -> Reader:
        """The record of the model's last run."""
        ...

    @property
    def lift(self) -> bool:
        """Whether the model gives every input patch back."""
        ...

    @property
    def stores(self) -> bool:
        """Whether tokens that leave come back with something of their own."""
        ...

    def run_block(self, block: nn.Module, x: Tensor, mask: Tensor | None, side: dict[str, Any]) -> Tensor:
        """Runs the coarsened block on ``x [B, P+n, C]`` and returns ``[B, P+n', C]``."""
        ...


def site_of(module: Any) -> CoarseSite:
    """The site that ``attach`` left on a module."""
    return getattr(module, SITE)


def ours(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a hook as tokengraph's, so that ``detach`` knows it, also in a copy of the model."""
    hook.of_tokengraph = True  # type: ignore[attr-defined]
    return hook


class Coarse:
    """Mixin of every swapped class: what copying, pickling and replicating need."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        original = getattr(self, SITE).original
        state = {k: v for k, v in self.__dict__.items() if k != "_compiled_call_impl"}  # as nn.Module itself does
        return _rebuild, (next(b for b in type(self).__bases__ if issubclass(b, Coarse)), original), state

    def __prepare_scriptable__(self) -> Any:
        return refuse_script(self)

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "Expected an attached model outside nn.DataParallel: its replicas would share one record. "
            "Use DistributedDataParallel."
        )


class CoarseBlock(Coarse):
    """Mixin of a swapped block; a family's own mixin gives ``forward`` the block's signature and calls ``coarse``."""

    @property
    def _compiled_call_impl(self) -> Any:
        """The compiled call of the block, under the name that ``nn.Module`` reads; ``None``: it is not compiled.

        Raises:
            RuntimeError: If gradient checkpointing runs a block that is compiled by itself.
        """
        compiled = self.__dict__.get("_compiled_call_impl")
        if compiled is not None and in_backward():
            raise RuntimeError(
                "Expected no gradient checkpointing around blocks that are compiled one by one (got both): a compiled "
                "block cannot tell which run it is computed again for. Compile the whole model: torch.compile(model)."
            )
        return compiled

    @_compiled_call_impl.setter
    def _compiled_call_impl(self, compiled: Any) -> None:
        self.__dict__["_compiled_call_impl"] = compiled

    def coarse(self, x: Tensor, mask: Tensor | None = None, **side: Any) -> Tensor:
        """Runs the block on ``x [B, P+n, C]`` and returns ``[B, P+n', C]``; ``side``: the block's other inputs."""
        refuse_tracing(x)
        return site_of(self).run_block(self, x, mask, side)  # type: ignore[arg-type]


@cache
def coarse_class(mixin: type, original: type) -> type:
    """The class ``mixin`` + ``original``, one for each pair."""
    return type(f"Coarse{original.__name__}", (mixin, original), {"__module__": original.__module__})


def _rebuild(mixin: type, original: type) -> Any:
    cls: Any = coarse_class(mixin, original)
    return cls.__new__(cls)
