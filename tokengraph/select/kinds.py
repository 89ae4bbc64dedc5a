"""A clear error for options of a wrong kind, in place of Python's own where they are first compared or counted."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

# By Python and torch for operands of a wrong kind.
RAISED = (TypeError, ValueError, AttributeError, KeyError, RuntimeError)


def explain_kinds(cls: type) -> None:
    """Makes the constructor of a new class name an option of a wrong kind."""
    for name in cls.__dict__.keys() & {"__init__", "__post_init__"}:
        setattr(cls, name, explains(cls.__dict__[name]))


def explains(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``__init__`` or ``__post_init__``: where it fails over an option's kind, the error names the option.

    Nothing is checked beforehand: right options cost one more call.

    Raises:
        TypeError: ``Expected NAME of GTP as float (got (0.5,)).``, from the error that it replaces.
    """

    @functools.wraps(function)
    def explained(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(self, *args, **kwargs)
        except RAISED as error:
            if "Expected" in str(error):
                raise
            name = type(self).__name__
            wrong = [
                f"{key} of {name} as {kind} (got {value!r})"
                for key, kind, value in _wrong(self, function, args, kwargs)
            ]
            if not wrong:
                raise
            raise TypeError(f"Expected {'; '.join(wrong)}.") from error

    return explained


def _wrong(self: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> list[tuple[str, str, Any]]:
    """Options whose values do not fit their annotations: name, annotation and value."""
    if function.__name__ == "__post_init__":
        fields = [field for field in dataclasses.fields(self) if field.init]
        given = {field.name: getattr(self, field.name, None) for field in fields}
        written, owner = {field.name: field.type for field in fields}, type(self)
    else:
        try:
            given = dict(inspect.signature(function).bind(self, *args, **kwargs).arguments)
        except TypeError:  # an option is missing or unknown: Python's error says which
            return []
        written, owner = function.__annotations__, function
    try:
        kinds = typing.get_type_hints(owner)
    except Exception:  # a name that only type checkers import
        return []
    return [
        (name, getattr(written[name], "__name__", str(written[name])), value)
        for name, value in given.items()
        if name in kinds and name in written and not fits(value, kinds[name])
    ]


def fits(value: Any, kind: Any) -> bool:
    """Returns whether a value is of an annotated kind; True for kinds that it does not know.

    Example:
        >>> fits((0.5, 1), tuple[float, ...]), fits("a", float | None)
        (True, False)
    """
    if kind is Any:
        return True
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind in (None, type(None), bool, str):
        return isinstance(value, type(None) if kind is None else kind)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is Callable or kind is Callable:
        return callable(value)
    listed = origin if isinstance(origin, type) else kind
    if not isinstance(listed, type):
        return True
    if issubclass(listed, Mapping):
        return isinstance(value, Mapping)
    if issubclass(listed, Collection) and listed is not str:
        return _fits_each(value, parts, listed is tuple and ... not in parts)
    return isinstance(value, listed)


def _fits_each(value: Any, parts: tuple[Any, ...], counted: bool) -> bool:
    """Returns whether a list or tuple has entries of these kinds; ``counted``: one kind for each entry."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    if not parts:
        return True
    if counted:
        return len(value) == len(parts) and all(map(fits, value, parts))
    return all(fits(each, parts[0]) for each in value)
