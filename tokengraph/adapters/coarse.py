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

SITE = "_tokengraph"  # the attribute with an attached module's site
KEPT = "_tokengraph_kept"  # the attribute with the outputs that hooks keep for a block
GIVEN = "_tokengraph_given"  # the attribute with rows that a norm of a block gives in place of its own output


class Writer(Protocol):
    """The methods of the current run that families call; see :class:`tokengraph.attach.run.Run`."""

    whole: bool

    def note_caller(self, whole: bool) -> None:
        """Notes whether a head that needs every patch called the model."""
        ...

    def lineage_at(self, index: int, x: Tensor) -> Lineage | None:
        """Returns the lineage of ``x [B, P+n, C]``, the input of block ``index``."""
        ...


class Reader(Protocol):
    """The record of the last run that heads and pooling layers read; see :class:`tokengraph.attach.trace.Trace`."""

    @property
    def run(self) -> Writer:
        """The run that the blocks write."""
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
    def shares(self) -> list[Tensor]:
        """Weights ``[B, N]`` of tokens in poolings while the strategy trains, the last of them counts; else empty."""
        ...

    def lineage(self, layer: int | None = None) -> Lineage:
        """Returns the lineage of the tokens after ``layer`` blocks (default: all)."""
        ...

    def valid(self, layer: int | None = None) -> Tensor:
        """Returns the mask of tokens, ``[B, n]`` bool; False marks padding."""
        ...

    def lift(
        self, tokens: Tensor, *, layer: int | None = None, fill: Tensor | None = None, replenish: bool = False
    ) -> Tensor:
        """Expands tokens ``[B, n, C]`` to one row per input patch, ``[B, N, C]``."""
        ...

    def lift_sequence(self, tokens: Tensor) -> Tensor:
        """Expands ``[B, P+n, C]`` after the last block to ``[B, P+N, C]``."""
        ...

    def as_map(self, tokens: Tensor | None = None, *, layer: int | None = None, replenish: bool = False) -> Tensor:
        """Returns a feature map at full resolution, ``[B, C, H, W]``."""
        ...


class CoarseSite(Protocol):
    """The site that ``attach`` puts on a module, under the attribute ``SITE``."""

    index: int
    original: type | None

    @property
    def trace(self) -> Reader:
        """The record of the model's last run."""
        ...

    @property
    def lift(self) -> bool:
        """True if the model returns every input patch."""
        ...

    @property
    def stores(self) -> bool:
        """True if the strategy stores features of dropped tokens and restores them."""
        ...

    def run_block(self, block: nn.Module, x: Tensor, mask: Tensor | None, side: dict[str, Any]) -> Tensor:
        """Runs the coarsened block on ``x [B, P+n, C]`` and returns ``[B, P+n', C]``."""
        ...


def site_of(module: Any) -> CoarseSite:
    """Returns the site that ``attach`` put on a module."""
    return getattr(module, SITE)


def ours(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a hook as tokengraph's, so that ``detach`` recognises it, also in a copy of the model."""
    hook.of_tokengraph = True  # type: ignore[attr-defined]
    return hook


class Coarse:
    """Mixin of every swapped class, with the methods for copying, pickling and replicating."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        original = getattr(self, SITE).original
        state = {k: v for k, v in self.__dict__.items() if k != "_compiled_call_impl"}  # nn.Module leaves it out too
        return _rebuild, (next(b for b in type(self).__bases__ if issubclass(b, Coarse)), original), state

    def __prepare_scriptable__(self) -> Any:
        return refuse_script(self)

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "Expected an attached model outside nn.DataParallel (got one inside). Its replicas would share one record. "
            "Use DistributedDataParallel."
        )


class CoarseBlock(Coarse):
    """Mixin of a swapped block. A family's subclass calls ``coarse`` in a ``forward`` with the block's signature."""

    @property
    def _compiled_call_impl(self) -> Any:
        """The compiled call of the block, under the name that ``nn.Module`` reads; ``None`` if it is not compiled.

        Raises:
            RuntimeError: If gradient checkpointing runs a block that is compiled by itself.
        """
        compiled = self.__dict__.get("_compiled_call_impl")
        if compiled is not None and in_backward():
            raise RuntimeError(
                "Expected no gradient checkpointing around blocks that are compiled one by one (got both). A compiled "
                "block cannot find the run that it recomputes. Compile the whole model: torch.compile(model)."
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
    """Returns the class ``mixin`` + ``original``, created once for each pair."""
    return type(f"Coarse{original.__name__}", (mixin, original), {"__module__": original.__module__})


def _rebuild(mixin: type, original: type) -> Any:
    cls: Any = coarse_class(mixin, original)
    return cls.__new__(cls)
