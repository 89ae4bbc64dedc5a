"""The registry of planners. A planner serves strategies of one class and lists the changes to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.attach.changes import Change
from tokengraph.attach.handle import Handle
from tokengraph.kinds import explain_kinds
from tokengraph.schedule import Schedule

H = TypeVar("H", bound=Handle, covariant=True)


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`tokengraph.attach` besides model and strategy, under the same names."""

    schedule: Schedule | None = None
    prop_attn: bool | str | None = None
    size_bias: str = "auto"
    lift: bool = False
    adapter: Adapter | None = None


class Standalone(Generic[H]):
    """A strategy that brings its own settings and takes no options of ``attach``. ``H`` is the type of its handle.

    Attributes:
        HINT: The error's hint, which names the settings to use instead.
        learns: True if it adds weights to the model that need training.
    """

    HINT: ClassVar[str]
    learns: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        explain_kinds(cls)


@dataclass(frozen=True)
class Found:
    """The part of a model in which a strategy will act.

    Attributes:
        core: The supported model, or one stage of it.
        list_blocks: Lists the blocks of ``core`` in order; raises ValueError if some are unsupported.
        how: The adapter or family, for the planner only.
        decides: True if the planner replaces the ``forward`` of ``core`` too.
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
    """The changes that attach a strategy to a model.

    Attributes:
        changes: The changes of single modules, in order.
        record: The record of the model's runs; the site of every change refers to it.
        select: The strategy, bound to the model.
        handle: Makes the handle from model, record and strategy.
    """

    changes: Sequence[Change]
    record: Any
    select: Any
    handle: Callable[[nn.Module, Any, Any], Handle]


class Planner(NamedTuple):
    """The two functions of a planner; neither changes the model. ``attach`` runs its guards between them."""

    find: Callable[[nn.Module, Any, Options], Found]
    plan: Callable[[nn.Module, Found, Any, Options], Plan]


_PLANNERS: dict[type, Planner] = {}
_SPECIAL: dict[type, list[tuple[Callable[[nn.Module], bool], Planner]]] = {}

Planning = TypeVar("Planning", bound=Callable[[nn.Module, Found, Any, Options], Plan])


def planner(
    kind: type,
    find: Callable[[nn.Module, Any, Options], Found],
    *,
    serves: Callable[[nn.Module], bool] | None = None,
) -> Callable[[Planning], Planning]:
    """Registers a function that plans for strategies of class ``kind``.

    Args:
        kind: The strategy class. The nearest registered class in a strategy's MRO serves it.
        find: Finds the strategy's blocks in a model; raises ValueError if there are none.
        serves: Returns whether a model is of the kind that this planner is for; ``None``: it is for all others.
    """

    def register(plan: Planning) -> Planning:
        if serves is None:
            _PLANNERS[kind] = Planner(find, plan)
        else:
            _SPECIAL.setdefault(kind, []).append((serves, Planner(find, plan)))
        return plan

    return register


def planner_of(select: object, model: nn.Module) -> Planner:
    """Returns the planner of a strategy for a model.

    Raises:
        TypeError: If none is registered for its class.
    """
    for kind in type(select).__mro__:
        if kind in _PLANNERS:
            special = (made for serves, made in _SPECIAL.get(kind, ()) if serves(model))
            return next(special, _PLANNERS[kind])
    raise TypeError(f"Expected a strategy with a registered planner (got {type(select).__name__}).")
