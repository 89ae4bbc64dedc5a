"""Which planner serves a strategy: one registers for a strategy's class, and says what changes in a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.attach.changes import Change
from tokengraph.attach.handle import Handle
from tokengraph.schedule import Schedule

H = TypeVar("H", bound=Handle, covariant=True)


@dataclass(frozen=True)
class Options:
    """What :func:`tokengraph.attach` was given beside model and strategy, under the same names."""

    schedule: Schedule | None = None
    prop_attn: bool | str | None = None
    size_bias: str = "auto"
    lift: bool = False
    adapter: Adapter | None = None


class Standalone(Generic[H]):
    """A strategy that brings its own settings and takes none of ``attach``; ``H`` is the handle it is attached by.

    Attributes:
        HINT: What to set instead, for the error.
    """

    HINT: ClassVar[str]


@dataclass(frozen=True)
class Found:
    """Where in a model a strategy is going to act.

    Attributes:
        core: The module that all of it lies in: the supported model, or one stage of it.
        list_blocks: Lists its blocks in order; raises ValueError where it holds others.
        how: What the planner alone reads: the adapter, or the family.
        decides: Whether the ``forward`` of ``core`` is replaced too.
    """

    core: nn.Module
    list_blocks: Callable[[], Sequence[nn.Module]]
    how: Any
    decides: bool = False

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.list_blocks())


@dataclass(frozen=True)
class Plan:
    """What attaching a strategy to a model comes to.

    Attributes:
        changes: What each module gets, in order.
        record: The record of the model's runs, which every site of the changes has.
        select: The strategy as it was bound to the model.
        handle: Makes the handle of model, record and strategy.
    """

    changes: Sequence[Change]
    record: Any
    select: Any
    handle: Callable[[nn.Module, Any, Any], Handle]


class Planner(NamedTuple):
    """The two steps of a planner; neither changes anything. Between them ``attach`` holds its guards."""

    find: Callable[[nn.Module, Any, Options], Found]
    plan: Callable[[nn.Module, Found, Any, Options], Plan]


_PLANNERS: dict[type, Planner] = {}

Planning = TypeVar("Planning", bound=Callable[[nn.Module, Found, Any, Options], Plan])


def planner(kind: type, find: Callable[[nn.Module, Any, Options], Found]) -> Callable[[Planning], Planning]:
    """Registers a function that plans for strategies of class ``kind``.

    Args:
        kind: The class; a strategy is served by the nearest class it inherits from.
        find: Finds the blocks in a model, for the strategy; raises ValueError where there are none.
    """

    def register(plan: Planning) -> Planning:
        _PLANNERS[kind] = Planner(find, plan)
        return plan

    return register


def planner_of(select: object) -> Planner:
    """The planner of a strategy.

    Raises:
        TypeError: If none is registered for its class.
    """
    for kind in type(select).__mro__:
        if kind in _PLANNERS:
            return _PLANNERS[kind]
    raise TypeError(f"Expected a strategy that a planner serves (got {type(select).__name__}).")
