"""Names of the inputs and outputs of ONNX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch.utils import _pytree as pytree

UNNAMED = ("x", "input", "inputs", "img", "image", "args_0")  # names of a first argument that say little


def input_names(given: Sequence[str] | None, found: Sequence[str]) -> list[str]:
    """Returns the names of a file's inputs.

    Args:
        given: The user's names; ``None``: the argument names of the model's ``forward``, but ``"images"`` if the first
            one is just ``x`` or similar.
        found: The exporter's name for each input.

    Raises:
        ValueError: If ``given`` has another length or repeats a name.
    """
    if given is not None:
        return _checked(given, len(found), "input_names")
    return ["images" if i == 0 and name in UNNAMED else name for i, name in enumerate(found)]


def output_names(given: Sequence[str] | None, outputs: Any, count: int) -> list[str]:
    """Returns the names of a file's outputs.

    Args:
        given: The user's names; ``None``: the fields of the model's output (``"logits"``), with an index for fields of
            several tensors (``"hidden_states_0"``), and ``"output"`` for a bare tensor.
        outputs: The pytree spec of the model's output.
        count: Number of tensors in the output.

    Raises:
        ValueError: If ``given`` has another length or repeats a name.
    """
    if given is not None:
        return _checked(given, count, "output_names")
    names = list(_paths(pytree.tree_unflatten(list(range(count)), outputs), ""))
    unique = len(names) == count == len(set(names))
    return names if unique else [f"output_{i}" for i in range(count)]


def _paths(output: Any, path: str) -> list[str]:
    if isinstance(output, int):
        return [path or "output"]
    if is_dataclass(output) and not isinstance(output, Mapping):
        items: Any = [(f.name, getattr(output, f.name)) for f in fields(output)]
    elif isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, Sequence):
        items = [(i if path else f"output_{i}", value) for i, value in enumerate(output)]
    else:
        return []
    return [name for key, value in items for name in _paths(value, f"{path}_{key}" if path else str(key))]


def _checked(given: Sequence[str], count: int, what: str) -> list[str]:
    if isinstance(given, str) or len(given) != count or len(set(given)) != count:
        raise ValueError(f"Expected {count} different {what} in a list (got {given!r}).")
    return list(given)
