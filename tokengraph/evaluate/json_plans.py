"""Reads settings that JSON holds: plans written by hand, and the files of :mod:`tokengraph.planning`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokengraph.attach.planner import Standalone
from tokengraph.evaluate.grammar import read_layers, read_resolution, read_schedule
from tokengraph.schedule import Schedule, relative
from tokengraph.select.base import Select, resolve

OWN_OPTIONS = ("prop_attn", "size_bias", "weights", "then")  # options of the setting; all others are the strategy's
PLAN_KIND, PLAN_FORMAT = "tokengraph plan", 1  # of the files of tokengraph.plan, which hold a setting
KEYS = ("strategy", "schedule", "options", "resolution", "model", *OWN_OPTIONS)


def read_json(text: str) -> Mapping[str, Any]:
    """Reads a JSON plan from its text, or from the file that the text names.

    Raises:
        ValueError: If the file is not there, or it is no JSON object.
    """
    try:
        plan = json.loads(text if text.startswith("{") else Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Expected a file with a JSON plan (got {text!r}: {error.strerror}).") from error
    except ValueError as error:
        raise ValueError(
            f"Expected a JSON plan (got {text!r}: {error}). Schedules in text: ailurus:{{5: 0.5}}."
        ) from error
    if not isinstance(plan, Mapping):
        raise ValueError(f"Expected a JSON plan as an object (got {type(plan).__name__}).")
    return plan


def fields_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a setting from a plan as JSON has it, where layers of a schedule are text.

    Raises:
        ValueError: If the plan has unknown keys, values of other kinds, or another format.
    """
    made_for = None
    if plan.get("kind") == PLAN_KIND:
        made_for, plan = _made_for(plan), plan["setting"]
    unknown = [str(key) for key in plan if key not in (*KEYS, "label")]
    if unknown:
        raise ValueError(f"Expected keys of a plan: {', '.join(KEYS)} (got {', '.join(unknown)}).")
    strategy, options, size_bias = plan.get("strategy"), plan.get("options") or {}, plan.get("size_bias") or "auto"
    for key, value, kinds in (
        ("strategy", strategy, (str, Select, Standalone)),
        ("model", plan.get("model"), (str,)),
        ("options", options, (Mapping,)),
        ("prop_attn", plan.get("prop_attn"), (str, bool)),
        ("size_bias", size_bias, (str,)),
        ("weights", plan.get("weights"), (str,)),
        ("label", plan.get("label"), (str,)),
    ):
        if value is not None and not isinstance(value, kinds):
            raise ValueError(f"Expected {key} of a plan as {kinds[0].__name__} (got {value!r}).")
    if isinstance(strategy, Standalone):
        pass  # checked where it is attached
    elif strategy is not None:
        resolve(strategy)
    elif plan.get("schedule") is not None or options or plan.get("then"):
        raise ValueError("Expected a strategy beside the schedule and options of a plan (got none).")
    resolution = plan.get("resolution")
    return dict(
        strategy=strategy,
        schedule=_schedule(plan.get("schedule")),
        options=dict(options),
        resolution=None if resolution is None else read_resolution(resolution),
        model=plan.get("model"),
        prop_attn=plan.get("prop_attn"),
        size_bias=size_bias,
        weights=plan.get("weights"),
        label=plan.get("label") or "",
        then=plan.get("then"),
        made_for=made_for,
    )


def _made_for(plan: Mapping[str, Any]) -> tuple[int, int, int]:
    """Checks a file of the planner; returns blocks, channels and patches of the model that it is for.

    Raises:
        ValueError: If it has another format, or its schedule and model do not fit its token counts.
    """
    setting, target, tokens = plan.get("setting"), plan.get("target"), plan.get("tokens")
    if plan.get("format") != PLAN_FORMAT or not isinstance(setting, Mapping):
        raise ValueError(
            f"Expected a plan of format {PLAN_FORMAT} with a setting (got format {plan.get('format')!r}). Make the "
            "plan again, or use the version of tokengraph that made it."
        )
    numbers: list[Any] = (
        [target.get(key) for key in ("depth", "channels", "patches")] if isinstance(target, Mapping) else []
    )
    if not numbers or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise ValueError(f"Expected depth, channels and patches of the plan's target (got {target!r}).")
    if not isinstance(tokens, list) or not all(isinstance(n, int) for n in tokens) or len(tokens) != numbers[0] + 1:
        raise ValueError(f"Expected {numbers[0] + 1} token counts for {numbers[0]} blocks of a plan (got {tokens!r}).")
    falls = [a - b for a, b in zip(tokens[:-1], tokens[1:], strict=True)]
    if setting.get("strategy") is not None and setting.get("schedule") != falls:
        raise ValueError(
            f"Expected the schedule that gives the plan's tokens, {falls} (got {setting.get('schedule')!r})."
        )
    return numbers[0], numbers[1], numbers[2]


def _schedule(value: Any) -> Schedule | None:
    found: Any = value  # a rule of the user's own, or nothing
    if isinstance(value, str):
        return read_schedule(value)
    if isinstance(value, Mapping):
        if set(value) == {"relative"} and isinstance(value["relative"], Mapping):
            return relative(read_layers(value["relative"]))
        return read_layers(value)
    if value is None or callable(value):
        return found
    if isinstance(value, bool) or not isinstance(value, int | list | tuple):
        raise ValueError(f"Expected schedule of a plan as int, list, object or text (got {value!r}).")
    return list(value) if isinstance(value, tuple) else value
