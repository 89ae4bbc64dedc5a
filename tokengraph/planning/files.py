"""Plans as JSON files, validated on reading."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tokengraph.evaluate.json_plans import PLAN_FORMAT, PLAN_KIND
from tokengraph.evaluate.settings import Setting, read_setting
from tokengraph.evaluate.store import write_text
from tokengraph.planning.facts import Figures, Target

PRESERVE = ("class", "patches", "logits", "features")
BUDGETS = ("speedup", "cost", "time", "tokens")
KEYS = (
    "kind", "format", "version", "target", "setting", "tokens", "preserve", "budget", "predicted", "measured",
    "sensitivity", "similarity", "notes", "seconds", "lift",
)  # fmt: skip


def json_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plan's fields as JSON.

    Raises:
        ValueError: If the strategy is an instance that has no name.
    """
    return {
        "kind": PLAN_KIND,
        "format": PLAN_FORMAT,
        "version": plan["version"],
        "target": asdict(plan["target"]),
        "setting": _setting(plan["setting"]),
        "tokens": list(plan["tokens"]),
        "preserve": plan["preserve"],
        "budget": dict(plan["budget"]),
        "predicted": _known(plan["predicted"]),
        "measured": _known(plan["measured"]),
        "sensitivity": {name: list(values) for name, values in plan["sensitivity"].items()},
        "similarity": list(plan["similarity"]),
        "notes": list(plan["notes"]),
        "seconds": plan["seconds"],
        "lift": plan["lift"],
    }


def write_plan(plan: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a plan's fields as JSON, whole or not at all.

    Raises:
        ValueError: If the file cannot be written, or the strategy is an instance that has no name.
    """
    made, file = json_of(plan), Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(made, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"Expected a file to write the plan to (got {str(path)!r}: {error.strerror}).") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a plan cannot be written to a file; makes its folder, and leaves the file as it is."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ValueError(f"Expected a file to write the plan to (got {str(path)!r}: {error.strerror}).") from error


def read_plan(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads and validates a file; returns the fields of a plan.

    Raises:
        ValueError: If anything in it is not as :func:`write_plan` writes it.
    """
    name = str(path)
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Expected a file with a plan (got {name!r}: {error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected a plan as JSON (got {name!r}: {error}).") from error
    _check(isinstance(found, dict) and found.get("kind") == PLAN_KIND, f"a plan of tokengraph in {name!r}", found)
    _check(
        _whole(found.get("format")) and found["format"] == PLAN_FORMAT,
        f"format {PLAN_FORMAT} of plans",
        found.get("format"),
        "Make the plan again, or use the version of tokengraph that made it.",
    )
    found = {"similarity": [], **found}  # the first plans had none
    _check_keys(found, KEYS, "a plan")
    target, tokens = _target(found["target"]), _tokens(found["tokens"], found["target"])
    return {
        "setting": _checked_setting(found, tokens, target),
        "tokens": tokens,
        "target": target,
        "preserve": _one_of(found["preserve"], PRESERVE, "preserve"),
        "budget": _budget(found["budget"]),
        "predicted": _figures(found["predicted"], "predicted"),
        "measured": _figures(found["measured"], "measured"),
        "sensitivity": _sensitivity(found["sensitivity"], target.depth),
        "similarity": _similarity(found["similarity"], target.depth),
        "notes": _texts(found["notes"]),
        "seconds": float(_number(found["seconds"], "seconds")),
        "lift": _bool(found["lift"]),
        "version": _text(found["version"], "version"),
    }


def _setting(setting: Setting) -> dict[str, Any]:
    if setting.strategy is not None and not isinstance(setting.strategy, str):
        raise ValueError(
            f"Expected a strategy by name in a plan to save (got the instance {setting.strategy!r}). "
            "Register it under a name and plan with that."
        )
    made = {"strategy": setting.strategy, "schedule": setting.schedule, "options": dict(setting.options)}
    made |= {"resolution": setting.resolution, "prop_attn": setting.prop_attn, "size_bias": setting.size_bias}
    made["then"] = dict(setting.then)
    return {k: v for k, v in made.items() if v is not None and v != {}}


def _checked_setting(found: dict[str, Any], tokens: tuple[int, ...], target: Target) -> Setting:
    given = found["setting"]
    _check(isinstance(given, dict), "setting as an object", given)
    setting = read_setting(given)
    _check(setting.model is None and setting.weights is None, "a setting without model and weights", given)
    setting.select()  # unknown options are an error now
    removed = [a - b for a, b in zip(tokens[:-1], tokens[1:], strict=True)]
    if setting.strategy is None:
        _check(not any(removed), "a strategy, because tokens fall", given)
    else:
        _check(setting.schedule == removed, f"the schedule that gives the plan's tokens, {removed}", setting.schedule)
    if setting.resolution is None:
        _check(tokens[0] == target.patches, f"{target.patches} tokens before the first block", tokens[0])
    else:
        side = math.isqrt(tokens[0])
        _check(target.side > 0 and side * side == tokens[0], "a square number of tokens at a resolution", tokens[0])
        _check(setting.resolution % side == 0, f"a resolution that is a multiple of {side} patches", setting.resolution)
    return setting


def _target(given: Any) -> Target:
    _check(isinstance(given, dict), "target as an object", given)
    _check_keys(given, [f.name for f in fields(Target)], "target")
    for key in ("depth", "channels", "patches"):
        _check(_whole(given[key]) and given[key] >= 1, f"{key} of the target as a number of at least 1", given[key])
    side = given["side"]
    _check(_whole(side) and side >= 0, "side of the target as a number of at least 0", side)
    _check(side == 0 or side * side == given["patches"], "side * side patches", given)
    return Target(**{**given, "name": _text(given["name"], "name of the target")})


def _tokens(given: Any, target: Any) -> tuple[int, ...]:
    _check(
        isinstance(given, list) and all(_whole(n) and n >= 1 for n in given), "tokens as numbers of at least 1", given
    )
    depth = target["depth"] if isinstance(target, dict) and _whole(target.get("depth")) else len(given) - 1
    _check(len(given) == depth + 1, f"{depth + 1} token counts for {depth} blocks", len(given))
    _check(all(b <= a for a, b in zip(given[:-1], given[1:], strict=True)), "tokens that never rise", given)
    return tuple(given)


def _budget(given: Any) -> dict[str, float]:
    right = isinstance(given, dict) and len(given) == 1 and next(iter(given)) in BUDGETS
    _check(right, f"budget as one of {', '.join(BUDGETS)}", given)
    return {k: _number(v, "budget") for k, v in given.items()}


def _figures(given: Any, what: str) -> Figures:
    _check(isinstance(given, dict), f"{what} as an object", given)
    known = [f.name for f in fields(Figures)]
    _check(set(given) <= set(known), f"figures: {', '.join(known)}", sorted(map(str, set(given) - set(known))))
    return Figures(**{k: _number(v, k) for k, v in given.items()})


def _known(figures: Figures) -> dict[str, float]:
    return {k: v for k, v in asdict(figures).items() if v is not None}


def _sensitivity(given: Any, depth: int) -> dict[str, Sequence[float | None]]:
    _check(isinstance(given, dict), "sensitivity as an object", given)
    for name, values in given.items():
        _check(isinstance(values, list) and len(values) == depth, f"{depth} losses for {name}", values)
    return {str(k): [None if v is None else _number(v, "sensitivity") for v in values] for k, values in given.items()}


def _similarity(given: Any, depth: int) -> tuple[float, ...]:
    _check(isinstance(given, list) and len(given) in (0, depth), f"similarity as {depth} cosines or none", given)
    return tuple(float(_number(v, "similarity")) for v in given)


def _texts(given: Any) -> tuple[str, ...]:
    _check(isinstance(given, list) and all(isinstance(v, str) for v in given), "notes as texts", given)
    return tuple(given)


def _text(given: Any, what: str) -> str:
    _check(isinstance(given, str), f"{what} as text", given)
    return given


def _bool(given: Any) -> bool:
    _check(isinstance(given, bool), "lift as true or false", given)
    return given


def _one_of(given: Any, known: Sequence[str], what: str) -> str:
    _check(isinstance(given, str) and given in known, f"{what} as one of {', '.join(known)}", given)
    return given


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any, what: str) -> Any:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _check(right, f"{what} as a finite number", value)
    return value


def _check_keys(given: dict[str, Any], known: Sequence[str], what: str) -> None:
    missing, unknown = [k for k in known if k not in given], [str(k) for k in given if k not in known]
    told = [f"without {', '.join(missing)}"] * bool(missing) + [f"with {', '.join(unknown)}"] * bool(unknown)
    _check(not told, f"keys of {what}: {', '.join(known)}", ", ".join(told))


def _check(right: bool, wanted: str, got: Any, hint: str = "") -> None:
    if not right:
        shown = repr(got) if len(repr(got)) < 200 else repr(got)[:200] + " ..."
        raise ValueError(f"Expected {wanted} (got {shown}).{' ' + hint if hint else ''}")
