"""Settings to evaluate, given as text, JSON plan or Python objects."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tokengraph.attach.planner import Standalone
from tokengraph.evaluate.grammar import read_layers, read_resolution, read_schedule, read_value, split, write_schedule
from tokengraph.evaluate.json_plans import OWN_OPTIONS, fields_of, read_json
from tokengraph.maps.pool import REDUCTIONS
from tokengraph.schedule import Schedule
from tokengraph.select.base import Select, resolve
from tokengraph.select.staged import Staged

REDUCE = ("reduce", "reduction")


@dataclass(frozen=True)
class Setting:
    """A variant of the model: a strategy with its schedule, another resolution, another model, or several of these.

    Args:
        strategy: By name or as an instance; ``None`` removes no tokens. :class:`tokengraph.WindowCoarsening` and
            :class:`tokengraph.DynamicSpatial`, which have their layers in themselves, as instances only.
        schedule: As for :func:`tokengraph.attach`.
        options: Options of the strategy by name; ``reduce`` is the reduction.
        resolution: Side of the input in pixels; ``None`` is the checkpoint's own.
        model: Another model, by name; ``None`` is the evaluated one.
        prop_attn: As for :func:`tokengraph.attach`.
        size_bias: As for :func:`tokengraph.attach`.
        weights: A checkpoint of the model with the strategy in it, for strategies that learn.
        label: Its name in reports; by default derived from the setting.
        then: ``{l: strategy}``: other strategies that act in block l (from 1) and after it, each a text with options
            but without a schedule.
        made_for: Blocks, channels and patches of the model that a plan is for; another model refuses it.
    """

    strategy: str | Select | Standalone[Any] | None = None
    schedule: Schedule | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    resolution: int | None = None
    model: str | None = None
    prop_attn: bool | str | None = None
    size_bias: str = "auto"
    weights: str | None = None
    label: str = ""
    then: Mapping[int, str] = field(default_factory=dict)
    made_for: tuple[int, int, int] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Its name in reports: the label, or else the text that :func:`read_setting` reads."""
        return self.label or self._text()

    @property
    def key(self) -> str:
        """The key of its stored predictions; settings with possibly different predictions have different keys."""
        own = vars(self.strategy) if isinstance(self.strategy, Select | Standalone) else ""  # a repr may leave some out
        file = Path(self.weights) if self.weights is not None else None
        stamp = f"{file.stat().st_size} {file.stat().st_mtime_ns}" if file is not None and file.is_file() else ""
        return " ".join(str(part) for part in (self._text(), own, stamp) if part)

    def _text(self) -> str:
        parts = [f"model:{self.model}"] if self.model else []
        parts += [f"resolution:{self.resolution}"] if self.resolution else []
        if self.strategy is not None:
            text = self.strategy if isinstance(self.strategy, str) else repr(self.strategy)
            text += f":{write_schedule(self.schedule)}" if self.schedule is not None else ""
            named = {"prop_attn": self.prop_attn, "size_bias": None if self.size_bias == "auto" else self.size_bias}
            named["weights"], named["then"] = self.weights, dict(self.then) or None
            named = {**self.options, **{k: v for k, v in named.items() if v is not None}}
            parts.append(text + "".join(f",{key}={value}" for key, value in named.items()))
        return "+".join(parts) or "dense"

    @property
    def dense(self) -> bool:
        """Whether it is the model as it is."""
        return self.strategy is None and self.resolution is None and self.model is None

    def select(self) -> Select | Standalone[Any] | None:
        """The strategy as an instance with its options.

        Raises:
            ValueError: For an unknown strategy or an option that it does not have.
        """
        if self.strategy is None:
            return None
        if isinstance(self.strategy, Standalone):
            if self.schedule is not None or self.options or self.then:
                raise ValueError(
                    f"Expected no schedule or options beside a {type(self.strategy).__name__} (got some). "
                    "It has its own as arguments."
                )
            return self.strategy
        chosen = self._chosen(resolve(self.strategy))
        if not self.then:
            return chosen
        return Staged({1: chosen, **{layer: _stage(text) for layer, text in self.then.items()}})

    def reducing(self) -> Select | None:
        """Returns the strategy, one for plain blocks.

        Raises:
            ValueError: As :meth:`select`, and for windows or spatial sparsification.
        """
        found = self.select()
        if isinstance(found, Standalone):
            raise ValueError(f"Expected a strategy for plain blocks (got {type(found).__name__}).")
        return found

    def _chosen(self, chosen: Select) -> Select:
        """The strategy with its options."""
        if not self.options:
            return chosen
        known = inspect.signature(type(chosen)).parameters
        given = {k: v for k, v in self.options.items() if k in known}
        kept = {k: getattr(chosen, k) for k in known if hasattr(chosen, k)}
        made = type(chosen)(**{**kept, **given})
        for key, value in self.options.items():
            if key in known:
                continue
            if key not in REDUCE:
                listed = ", ".join(known) or "no options"
                raise ValueError(
                    f"Expected options of {type(chosen).__name__}: {listed} (got {key!r}). All strategies take "
                    "prop_attn, size_bias and weights too, and reduce where they merge."
                )
            made = _pooled_by(made, value, known)
        return made


def _stage(text: str) -> Select:
    """Reads a later stage: a strategy with options, without anything else."""
    setting = read_setting(text)
    select = setting.reducing()
    if select is None or replace(setting, strategy=None, options={}) != Setting():
        raise ValueError(f"Expected a stage as a strategy with its own options (got {text!r}).")
    return select


def _stages(value: Any) -> dict[int, str]:
    """Checks the value of ``then``."""
    value = {} if value is None else value
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"Expected then as {{layer: strategy}}, {{5: 'tome'}} (got {value!r}).")
    stages = read_layers(value)
    for layer, text in stages.items():
        if layer < 2:
            raise ValueError(f"Expected layers of at least 2 for later stages (got {layer}).")
        _stage(text)
    return stages


def _pooled_by(select: Select, reduction: Any, known: Mapping[str, Any]) -> Select:
    """The strategy with another way to pool clusters: its own option, or the class's attribute for this instance."""
    own = next((key for key in REDUCE if key in known), None)
    if own is not None:
        return type(select)(**{**{k: getattr(select, k) for k in known}, own: reduction})
    inner = getattr(select, "select", None)
    if "select" in known and isinstance(inner, Select):  # a strategy of another one, which pools
        given = inspect.signature(type(inner)).parameters
        pooled = _pooled_by(copy.copy(inner), reduction, given)
        return type(select)(**{**{k: getattr(select, k) for k in known}, "select": pooled})
    if not select.merges or reduction not in REDUCTIONS:
        listed = ", ".join(REDUCTIONS) if select.merges else "nothing: it merges no tokens"
        raise ValueError(f"Expected reduce for {type(select).__name__} as {listed} (got {reduction!r}).")
    object.__setattr__(select, "reduction", reduction)  # ours alone, made a moment ago
    return select


@runtime_checkable
class Planned(Protocol):
    """A plan of :func:`tokengraph.plan`, which has a setting."""

    @property
    def setting(self) -> Setting:
        """The plan's setting."""
        ...


def read_setting(given: str | Mapping[str, Any] | Setting | Planned) -> Setting:
    """Reads one setting.

    The text is parts joined by ``+``: ``resolution:PX``, ``model:NAME``, and at most one strategy, written
    ``NAME:SCHEDULE,OPTION=VALUE,...``. ``"dense"`` is the model as it is. A text that begins with ``{`` is a JSON plan,
    one that ends in ``.json`` names a file with one. A plan of :func:`tokengraph.plan`, or its file, gives its setting.

    Raises:
        ValueError: If it cannot be read; the message says what would do.
        TypeError: For another kind of object.

    Example:
        >>> read_setting("resolution:196+tome:10,prop_attn=half-log").schedule
        10
        >>> read_setting('{"strategy": "ailurus", "schedule": {"5": 0.5}}').name
        'ailurus:{5: 0.5}'
    """
    if isinstance(given, Setting):
        return given
    if isinstance(given, Planned) and isinstance(given.setting, Setting):
        target = getattr(given, "target", None)
        made_for = None if target is None else (target.depth, target.channels, target.patches)
        return replace(given.setting, made_for=made_for)
    if isinstance(given, Mapping):
        return _of_plan(given)
    if not isinstance(given, str):
        raise TypeError(f"Expected a setting as text, dict or Setting (got {type(given).__name__}).")
    text = given.strip()
    if text.startswith("{") or text.endswith(".json"):
        return _of_plan(read_json(text))
    found: dict[str, Any] = {}
    for part in split(text, "+"):
        new = _part(part, given)
        if twice := sorted(set(found) & set(new)):
            raise ValueError(f"Expected each part of a setting once (got {', '.join(twice)} twice in {given!r}).")
        found |= new
    return Setting(**found)


def _of_plan(plan: Mapping[str, Any]) -> Setting:
    found = fields_of(plan)
    return Setting(**{**found, "then": _stages(found["then"])})


def _part(part: str, whole: str) -> dict[str, Any]:
    head, *options = split(part, ",")
    name, colon, value = (x.strip() for x in head.partition(":"))
    if name == "dense" and not colon and not options:
        return {}
    if name in ("resolution", "model") and not options and value:
        return {name: value if name == "model" else read_resolution(read_value(value))}
    if not name:
        raise ValueError(f"Expected a strategy, resolution:PX or model:NAME (got {part!r} in {whole!r}).")
    resolve(name)  # an unknown name is an error now, not after hours
    found: dict[str, Any] = {"strategy": name, "schedule": read_schedule(value) if colon else None, "options": {}}
    for option in options:
        key, equals, text = (x.strip() for x in option.partition("="))
        if not equals or not key or not text:
            raise ValueError(f"Expected options as NAME=VALUE (got {option!r} in {whole!r}).")
        value = read_value(text)
        (found if key in OWN_OPTIONS else found["options"])[key] = _stages(value) if key == "then" else value
    return found
