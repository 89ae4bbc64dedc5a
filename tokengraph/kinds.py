"""A clear error for arguments of a wrong kind, in place of Python's own where they are first compared or counted."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

# By Python and torch for operands of a wrong kind.
RAISED = (TypeError, ValueError, AttributeError, LookupError, RuntimeError)
OF_THE_DEVICE = ("OutOfMemoryError", "AcceleratorError")  # RuntimeErrors that no argument's kind explains
MAKING = ("__init__", "__post_init__")
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


def explain_kinds(cls: C) -> C:
    """Makes the constructor of a class name an argument of a wrong kind; returns the class."""
    for name in cls.__dict__.keys() & set(MAKING):
        setattr(cls, name, explains(cls.__dict__[name]))
    return cls


def explain_methods(cls: C) -> C:
    """Makes the constructor and the public methods of a class name an argument of a wrong kind; returns the class."""
    for name, each in list(vars(cls).items()):
        if isinstance(each, classmethod) and not name.startswith("_"):
            setattr(cls, name, classmethod(explains(each.__func__)))
        elif inspect.isfunction(each) and not name.startswith("_"):
            setattr(cls, name, explains(each))
    return explain_kinds(cls)


def explains(function: F) -> F:
    """Wraps a function: where it fails over an argument's kind, the error names the argument.

    Nothing is checked beforehand: right arguments cost one more call.

    Raises:
        TypeError: ``Expected keep of tome as int (got 'a').``, from the error that it replaces.
    """

    @functools.wraps(function)
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RAISED as error:
            if "Expected" in str(error) or type(error).__name__ in OF_THE_DEVICE:
                raise
            name = type(args[0]).__name__ if function.__name__ in MAKING else function.__name__
            found = _wrong(function, args, kwargs)
            if not found:
                raise
            told = "; ".join(f"{key} of {name} as {kind} (got {shown(value)})" for key, kind, value in found)
            raise TypeError(f"Expected {told}.") from error

    return typing.cast(F, explained)


def shown(value: Any) -> str:
    """Returns how an error shows a value: short, and without reading a tensor's numbers."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {list(shape)}" if isinstance(shape, tuple) else type(value).__name__
    text = repr(value)
    return text if len(text) <= 80 else f"{type(value).__name__}: {text[:60]}..."


def _wrong(function: Callable[..., Any], args: Any, kwargs: Any) -> list[tuple[str, str, Any]]:
    """Arguments whose values do not fit their annotations: name, annotation and value."""
    if function.__name__ == "__post_init__":
        owner = type(args[0])
        fields = [field for field in dataclasses.fields(owner) if field.init]
        given = {field.name: getattr(args[0], field.name, None) for field in fields}
        written = {field.name: field.type for field in fields}
    else:
        owner, written = function, function.__annotations__
        try:
            given = _given(inspect.signature(function), args, kwargs)
        except TypeError:  # an argument is missing or unknown: Python's error says which
            return []
    kinds = _kinds(owner, written)
    return [
        (name, getattr(written[name], "__name__", str(written[name])), value)
        for name, value in given.items()
        if name in kinds and not fits(value, kinds[name])
    ]


def _given(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name, without those that a function collects."""
    collected = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    bound = signature.bind(*args, **kwargs).arguments
    return {name: value for name, value in bound.items() if signature.parameters[name].kind not in collected}


def _kinds(owner: Any, written: Mapping[str, Any]) -> dict[str, Any]:
    """Annotations as types; without those that only type checkers can read."""
    try:
        return {name: kind for name, kind in typing.get_type_hints(owner).items() if name in written}
    except Exception:  # a name that only type checkers import: the others are read one by one
        found = {}
        for name, text in written.items():
            one = types.SimpleNamespace(__annotations__={name: text})
            try:
                found |= typing.get_type_hints(one, globalns=getattr(owner, "__globals__", None))
            except Exception:
                continue
        return found


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
    if kind in (int, float, bool) and getattr(value, "shape", None) == ():
        return True  # a number of NumPy, or a tensor with one
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
    if getattr(listed, "_is_protocol", False) and listed.__module__ != "collections.abc":
        members = {*vars(listed), *vars(listed).get("__annotations__", ())}
        return all(hasattr(value, name) for name in members if not name.startswith("_"))
    if issubclass(listed, Mapping):
        return isinstance(value, Mapping) and (
            not parts or _fit_all(value, parts[0]) and _fit_all(value.values(), parts[1])
        )
    if issubclass(listed, Sequence) and listed is not str:
        return _fits_each(value, parts, listed is tuple and ... not in parts)
    return isinstance(value, listed)


def _fits_each(value: Any, parts: tuple[Any, ...], counted: bool) -> bool:
    """Returns whether a list or tuple has entries of these kinds; ``counted``: one kind for each entry."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    if counted and parts:
        return len(value) == len(parts) and all(map(fits, value, parts))
    return not parts or _fit_all(value, parts[0])


def _fit_all(values: Iterable[Any], kind: Any) -> bool:
    """Returns whether each value is of a kind."""
    return all(fits(each, kind) for each in values)
