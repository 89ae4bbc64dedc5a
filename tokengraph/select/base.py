"""The strategy class, its registry, and the resolver from names."""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from tokengraph.cost import Cost
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.tokens import Tokens

if TYPE_CHECKING:
    from tokengraph.attention.keep_mask import KeepMask
    from tokengraph.schedule import Schedule

READS = ("nothing", "keys", "class", "map")
FLAGS = ("reads_attention", "needs_class_token", "needs_map")  # what subclasses said before there was ``reads``
_REGISTRY: dict[str, type[Select]] = {}
_ALIASES: dict[str, tuple[type[Select], Mapping[str, Any]]] = {}


class Select(ABC):
    """Chooses which tokens become which clusters. One file a method; a subclass registers under ``name``.

    Write ``__call__``, and say by class attributes how the method wants to be used. Nothing here knows any model.

    Attributes:
        name: What ``resolve`` and ``attach(model, "name")`` find it by.
        aliases: Other names that it was published under, and the settings that each stands for.
        placement: Where in a block it acts: ``"before"`` it, ``"inside"`` (between attention and MLP) or ``"after"``.
        merges: Whether clusters stand for all their tokens, so that attention should weigh them by size.
        reduction: How ``Assignment.reduce`` pools: ``"mean"``, ``"sum"``, ``"max"``, ``"absmax"``, ``"mlerp"`` or
            ``"center"``.
        needs_grid: Whether it works on the full patch grid only, so once a model.
        reads: The most that it reads of the attention of its block: ``"nothing"``; ``"keys"``: keys and values, or
            attention by rows; ``"class"``: what a class token pays, which the model must have; ``"map"``: the whole
            map, so that layers that reduce leave their fused kernel.
        learns: Whether it has parameters to train.
        alone: Whether images of their own shapes in one batch come to it one at a time: it takes no mask, or one grid.
        ragged: Whether a threshold of its own says how many tokens each image keeps. The budget is then the fewest that
            may stay, and images keep different numbers: ``handle.trace.counts_per_image(layer)`` says how many.
    """

    name: ClassVar[str] = ""
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    placement: ClassVar[str] = "inside"
    merges: ClassVar[bool] = True
    reduction: ClassVar[str] = "mean"
    needs_grid: ClassVar[bool] = False
    reads: ClassVar[str] = "keys"
    learns: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    ragged: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.placement not in ("before", "inside", "after"):
            raise ValueError(f"Expected placement to be before, inside or after (got {cls.placement!r}).")
        own = cls.__dict__
        if "reads" not in own and any(flag in own for flag in FLAGS):
            cls.reads = property(_reads_by_flags)  # type: ignore[assignment,misc]
        elif isinstance(cls.reads, str) and cls.reads not in READS:
            raise ValueError(f"Expected reads to be one of {', '.join(READS)} (got {cls.reads!r}).")
        if not cls.__dict__.get("name"):  # an inherited name stays with the class that has it
            return
        known = _REGISTRY.setdefault(_key(cls.name), cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"Expected a new strategy name (got {cls.name!r}, which is {known.__name__}'s).")
        _REGISTRY[_key(cls.name)] = cls  # the same class again: a reloaded module
        for alias, settings in cls.__dict__.get("aliases", {}).items():
            _ALIASES[_key(alias)] = cls, settings

    @abstractmethod
    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters.

        Args:
            tokens: The patch tokens, ``[B, N, C]``, with all that is known of them.
            budget: Clusters to keep an image: one int, or one an image.

        Returns:
            A map over the ``B*N`` tokens (over the True ones, where ``tokens.mask`` is given), whose clusters lie
            image by image.
        """

    def begin(self, tokens: Tokens) -> Any:
        """What the method needs to know of a run's input: called once a run, with the tokens that come to block 0.

        The result is ``tokens.memory`` in every layer of that run. Runs without gradients. A method that overrides it
        is also called outside a model, with no ``memory``.
        """
        return None

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """The strategy for one model, and what it does when: called by ``attach``, before anything is changed.

        A strategy that learns returns a copy with parameters of its own. One that knows its schedule may be attached
        without.

        Args:
            channels: C of the model.
            depth: Its blocks.
            schedule: What the user gave; ``None``: nothing.
        """
        if schedule is None:
            raise ValueError(f"Expected a schedule for {type(self).__name__} (got none). For example {{4: 0.5}}, or 8.")
        return self, schedule

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What ``attach`` puts into the model, and ``remove`` takes out of it, by name; where it learns."""
        return {}

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """Whether it acts once ``finished`` blocks are done, with ``keep`` of ``count`` tokens planned to stay.

        A method whose threshold says how many stay overrides it: more than the planned tokens are left then, and by
        this rule it would act again in every later block. It gives its layers by :meth:`bind`, with the fewest tokens
        that may be left, as ``{l: 1}``::

            def bind(self, channels, depth, schedule=None):
                return self, {layer: 1 for layer in self.layers}

            def acts(self, finished, keep, count):
                return finished in self.layers and count > 1
        """
        return keep < count

    def decide(self, tokens: Tokens) -> KeepMask | None:
        """Instead of a map: the cumulative keep mask over ``[B, N]``, differentiable, of a strategy that trains.

        All tokens then stay, and attention leaves dropped ones out as keys. ``None``: it makes a map.
        """
        return None

    def residue(self, x: Tensor, assignment: Assignment | SoftAssignment) -> Tensor | None:
        """What reconstruction adds on the way back over a map, ``[M, C]``: what dropped tokens come back with.

        Only called where :attr:`stores` holds. ``x [M, C]`` are the tokens that the map was made for.
        """
        return None

    @property
    def stores(self) -> bool:
        """Whether it keeps what :meth:`residue` says, for tokens to come back with."""
        return False

    def edit_attention(self, attention: Tensor) -> Tensor:
        """What the map ``[B, H, P+N, P+N]`` after softmax becomes in layers that reduce; itself, usually.

        Only called where :attr:`needs_map` holds. Must not write into its argument.
        """
        return attention

    def reduction_at(self, layer: int) -> str:
        """How maps made at block ``layer`` (0-based; -1: outside a model) pool, for methods that change with depth.

        L, the depth, is what :meth:`bind` is told.
        """
        return self.reduction

    @property
    def reads_attention(self) -> bool:
        """Whether it may ask for keys or attention; if not, none are kept for it. See ``reads``."""
        return self.reads != "nothing"

    @property
    def needs_class_token(self) -> bool:
        """Whether it reads the attention of a class token. See ``reads``."""
        return self.reads == "class"

    @property
    def needs_map(self) -> bool:
        """Whether it reads a whole attention map: layers that reduce then leave their fused kernel. See ``reads``."""
        return self.reads == "map"

    @property
    def edits_attention(self) -> bool:
        """Whether :meth:`edit_attention` changes anything."""
        return False

    @property
    def weighs(self) -> bool:
        """Whether the sizes that the maps make go on to attention and to later means; where it merges, usually."""
        return self.merges

    @property
    def prop_attn(self) -> bool | str:
        """What ``attach`` takes for ``prop_attn`` where the user gives none: by sizes where it :attr:`weighs`.

        ``"none"`` beside ``weighs`` keeps sizes for later means, and attention does not see them.
        """
        return self.weighs

    @property
    def restores(self) -> bool:
        """Whether every input patch can be reconstructed from what is left; where it merges, usually."""
        return self.merges

    @property
    def own_budget(self) -> int | None:
        """Clusters an image that the strategy itself is set to make; ``None``: the schedule says."""
        return None

    def makes(self, keep: int, num_tokens: int, grid: tuple[int, int] | None = None) -> int:
        """Clusters an image that a budget of ``keep`` gives: ``keep``, unless the method knows only some numbers."""
        return min(keep, num_tokens)

    def fewest(self, num_tokens: int) -> int:
        """The fewest clusters that one step can leave of ``num_tokens`` tokens."""
        return min(1, num_tokens)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost | None:
        """What choosing costs for one image; ``None`` where nobody has counted it.

        Args:
            num_tokens: Patch tokens it chooses from.
            keep: Clusters it makes.
            channels: C of the features.
            head_width: D of one attention head, for strategies that work on keys.
        """
        return None


def _reads_by_flags(select: Select) -> str:
    """``reads`` of a strategy that says it by the older attributes."""

    def says(flag: str, default: bool) -> bool:
        return default if getattr(type(select), flag) is getattr(Select, flag) else getattr(select, flag)

    if says("needs_map", False):
        return "map"
    if not says("reads_attention", True):
        return "nothing"
    return "class" if says("needs_class_token", False) else "keys"


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def registry() -> dict[str, type[Select]]:
    """The known strategies by name."""
    return {cls.name: cls for cls in _REGISTRY.values()}


def resolve(select: str | type[Select] | Select) -> Select:
    """Takes a strategy by name, class or instance and returns an instance.

    Names that a method was published under work too: ``"evit"`` is ``TopK(fuse=True)``, ``"tcformer"`` is ``DPCKNN()``.

    Raises:
        ValueError: For an unknown name; the message gives the nearest known one.
        TypeError: For anything else.

    Example:
        >>> resolve("DPC-KNN")
        DPCKNN(k=5, include_self=True, order='index')
    """
    if isinstance(select, Select):
        return select
    if isinstance(select, type) and issubclass(select, Select):
        return select()
    if not isinstance(select, str):
        raise TypeError(f"Expected a strategy as name, class or instance (got {type(select).__name__}).")
    key = _key(select)
    if key in _REGISTRY:
        return _REGISTRY[key]()
    if key in _ALIASES:
        cls, settings = _ALIASES[key]
        return cls(**settings)
    names = {**{k: cls.name for k, cls in _REGISTRY.items()}, **{k: k for k in _ALIASES}}
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    hint = f"Did you mean {names[near[0]]!r}? " if near else ""
    raise ValueError(f"Expected a strategy name (got {select!r}). {hint}Known: {', '.join(sorted(registry()))}.")
