"""The strategy class, its registry, and the resolver from names."""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from tokengraph.cost import Cost
from tokengraph.kinds import explain_kinds, explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.flags import FLAGS, reads_by_flags
from tokengraph.select.tokens import Tokens
from tokengraph.select.watch import Watching

if TYPE_CHECKING:
    from tokengraph.attention.keep_mask import KeepMask
    from tokengraph.nn.relaxed_merge import Relaxed
    from tokengraph.schedule import Schedule
    from tokengraph.select.decided import Moved

PLACEMENTS = ("before", "inside", "after", "ahead", "around")
SPANS = ("attention", "mlp", "both", "block")
READS = ("nothing", "norm", "keys", "class", "map", "map+keys")
_REGISTRY: dict[str, type[Select]] = {}
_ALIASES: dict[str, tuple[type[Select], Mapping[str, Any]]] = {}


class Select(Watching, ABC):
    """Chooses which tokens become which clusters; depends on no model. A subclass registers under ``name``.

    Implement ``__call__``; class attributes describe the method.

    Attributes:
        name: For ``resolve`` and ``attach``; ``aliases``: other published names, and the settings each stands for.
        placement: Where in a block it acts: ``"before"`` it, ``"inside"`` (between attention and MLP), ``"after"``,
            ``"ahead"`` (before it, by the map of its attention; see :attr:`pools_map`), or ``"around"`` (tokens are
            fewer inside :attr:`around` alone and return; it then reads no attention).
        around: With that placement, the modules that run on fewer tokens: ``"attention"``, ``"mlp"``, ``"both"`` of
            them one after another by one map, or the whole ``"block"``.
        merges: True if clusters stand for all their tokens, so that attention should weigh them by size.
        reduction: How ``reduce`` pools: ``"mean"``, ``"sum"``, ``"max"``, ``"absmax"``, ``"mlerp"`` or ``"center"``.
        needs_grid: True if it works on the full patch grid only, and therefore once a model.
        reads: The most that it reads of its block's attention: ``"nothing"``; ``"norm"``: the rows that attention
            projects, ``tokens.normed``; ``"keys"``: keys and values, or attention by rows; ``"class"``: the class
            token's attention; ``"map"``, ``"map+keys"``: the whole map, so blocks that reduce use no fused kernel.
        learns: True if it has parameters to train.
        alone: True if it takes neither masks nor several grids: ragged batches reach it image by image.
        ragged: True if a threshold decides how many tokens each image keeps, and the budget is the fewest.
    """

    name: ClassVar[str] = ""
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    placement: ClassVar[str] = "inside"
    around: ClassVar[str] = "attention"
    merges: ClassVar[bool] = True
    reduction: ClassVar[str] = "mean"
    needs_grid: ClassVar[bool] = False
    reads: ClassVar[str] = "keys"
    learns: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    ragged: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(cls.placement, str) and cls.placement not in PLACEMENTS:
            raise ValueError(f"Expected placement to be before, inside or after (got {cls.placement!r}), or around.")
        own = cls.__dict__
        explain_kinds(cls)
        if "reads" not in own and any(flag in own for flag in FLAGS):
            cls.reads = property(lambda select: reads_by_flags(select, Select))  # type: ignore[assignment,misc]
        elif isinstance(cls.reads, str) and cls.reads not in READS:
            raise ValueError(f"Expected reads to be one of {', '.join(READS)} (got {cls.reads!r}).")
        if not cls.__dict__.get("name"):  # an inherited name belongs to the parent class
            return
        known = _REGISTRY.setdefault(_key(cls.name), cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"Expected a new strategy name (got {cls.name!r}, which is {known.__name__}'s).")
        _REGISTRY[_key(cls.name)] = cls  # a reloaded module registers its class again
        _ALIASES.update({_key(alias): (cls, settings) for alias, settings in own.get("aliases", {}).items()})

    @abstractmethod
    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters.

        Args:
            tokens: The patch tokens, ``[B, N, C]``, with their sizes, positions and attention.
            budget: Clusters to keep an image: one int, or one an image.

        Returns:
            A map over the ``B*N`` tokens (only the True ones if ``tokens.mask`` is given), with clusters in the order
            of the images.
        """

    def begin(self, tokens: Tokens) -> Any:
        """Computes data that the method needs in every layer, once a run, from the input of block 0.

        The result is ``tokens.memory`` in every layer of that run, and ``None`` outside a model. Without gradients.
        """
        return None

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy for one model, and its schedule; ``attach`` calls it before it changes the model.

        A strategy that learns returns a copy with parameters of its own. A strategy with its own schedule accepts
        ``None``.

        Args:
            channels: C of the model.
            depth: Blocks in the model.
            schedule: The user's schedule; ``None`` if there is none.

        Raises:
            ValueError: If the strategy needs a schedule and there is none.
        """
        if schedule is None:
            raise ValueError(f"Expected a schedule for {type(self).__name__} (got none). For example {{4: 0.5}}, or 8.")
        return self, schedule

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Returns the modules to train, by name; ``attach`` adds them to the model and ``remove`` takes them out."""
        return {}

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """Returns whether it acts after ``finished`` blocks, where the plan keeps ``keep`` of ``count`` tokens.

        Override it if a threshold decides how many tokens stay: this default would act again in every later block.
        Such a method returns its layers from :meth:`bind` with the fewest tokens to keep, as ``{l: 1}``::

            def bind(self, channels, depth, schedule=None):
                return self, {layer: 1 for layer in self.layers}

            def acts(self, finished, keep, count):
                return finished in self.layers and count > 1
        """
        return keep < count

    def for_block(self, index: int) -> Select:
        """Returns the strategy that acts in block ``index`` (from 0): itself, or a composition's part."""
        return self

    def decide(self, tokens: Tokens) -> KeepMask | Moved | None:
        """Returns a differentiable keep mask over ``[B, N]`` in training; ``None`` to make a map instead.

        All tokens then stay, and dropped ones are no keys. It is cumulative, unless the strategy acts around blocks.
        """
        return None

    def relax(self, tokens: Tokens, keep: int | list[int]) -> Relaxed | None:
        """Returns new rows and sizes of all tokens in training (sizes say how much each counts), or ``None``.

        Args:
            tokens: As for :meth:`__call__`; ``relaxed`` is the order that the step before gave.
            keep: Clusters that a map would have; as many tokens' worth of mass moves as it would remove.
        """
        return None

    def residue(self, x: Tensor, assignment: Assignment | SoftAssignment) -> Tensor | None:
        """Returns rows ``[M, C]`` that reconstruction adds to the lifted tokens, such as features of dropped tokens.

        Only called if :attr:`stores` is True, with the tokens ``x [M, C]`` that the map was made for.
        """
        return None

    @property
    def stores(self) -> bool:
        """True if the run stores :meth:`residue`, so that dropped tokens return with features of their own."""
        return False

    @property
    def holds(self) -> bool:
        """True if tokens return as they left, with the change of their clusters added; it then :attr:`stores`."""
        return False

    def edit_attention(self, attention: Tensor) -> Tensor:
        """Changes the map ``[B, H, P+N, P+N]`` after softmax in layers that reduce; returns it as it is by default.

        Only called if :attr:`needs_map` is True. Must not write into its argument.
        """
        return attention

    def reduction_at(self, layer: int) -> str:
        """Returns the reduction for maps made at block ``layer`` (0-based; -1 outside a model).

        For methods whose reduction changes with depth.
        """
        return self.reduction

    @property
    def reads_attention(self) -> bool:
        """True if it reads keys or attention. See ``reads``."""
        return self.reads != "nothing"

    @property
    def needs_class_token(self) -> bool:
        """True if it reads the class token's attention. See ``reads``."""
        return self.reads == "class"

    @property
    def needs_map(self) -> bool:
        """True if it reads a whole attention map; blocks that reduce then cannot use a fused kernel. See ``reads``."""
        return self.reads in ("map", "map+keys")

    @property
    def edits_attention(self) -> bool:
        """True if :meth:`edit_attention` changes the map."""
        return False

    @property
    def pools_map(self) -> bool:
        """True if a block that it acts ahead of mixes values by the pooled map."""
        return False

    @property
    def weighs(self) -> bool:
        """True if later attention and means weigh tokens by size; by default if it merges."""
        return self.merges

    @property
    def prop_attn(self) -> bool | str:
        """The default of ``attach``'s ``prop_attn``: proportional attention if it :attr:`weighs`.

        With ``"none"`` and ``weighs``, later means use sizes and attention does not.
        """
        return self.weighs

    @property
    def restores(self) -> bool:
        """True if every input patch can be reconstructed; by default if it merges."""
        return self.merges

    @property
    def own_budget(self) -> int | None:
        """Clusters an image from the strategy's own settings; ``None`` if the schedule decides."""
        return None

    def makes(self, keep: int, num_tokens: int, grid: tuple[int, int] | None = None) -> int:
        """Returns the clusters an image for a budget of ``keep``; fewer if the method supports only some numbers."""
        return min(keep, num_tokens)

    def fewest(self, num_tokens: int) -> int:
        """Returns the fewest clusters that one step can make of ``num_tokens`` tokens."""
        return min(1, num_tokens)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost | None:
        """Returns the cost of choosing for one image; ``None`` if it is unknown.

        Args:
            num_tokens: Patch tokens before the step.
            keep: Clusters after it.
            channels: C of the features.
            head_width: D of one attention head, for strategies that work on keys.
        """
        return None


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def registry() -> dict[str, type[Select]]:
    """Returns the registered strategies by name."""
    return {cls.name: cls for cls in _REGISTRY.values()}


@explains
def resolve(select: str | type[Select] | Select) -> Select:
    """Returns an instance of a strategy given by name, published name (``"evit"``: EViT), class or instance.

    Raises:
        ValueError: For an unknown name; suggests the nearest known one.
        TypeError: For any other kind of object.

    Example:
        >>> resolve("DPC-KNN")
        DPCKNN(k=3, include_self=True, order='index', sizes=True, reduce=None, window=None)
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
