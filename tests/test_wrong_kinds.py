"""Options of a wrong kind are named, whichever strategy they are of."""

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pytest
import torch
from right_arguments import RIGHT

import tokengraph as tg
from tokengraph.kinds import explains, fits
from tokengraph.spatial import DynamicSpatialLoss
from tokengraph.testing import tiny_vit

WRONG = ((1.0,), [0.5], "x", None, {1: 2}, float("nan"), 1j, torch.ones(2), object(), ("a",), lambda: 1)


def options():
    """Every option of every registered strategy that is made without arguments, and of the two that stand alone."""
    kinds = {kind.__name__: (kind, {}) for kind in tg.registry().values() if kind.__module__.startswith("tokengraph.")}
    kinds |= {"DynamicSpatial": (tg.DynamicSpatial, {}), "WindowCoarsening": (tg.WindowCoarsening, {})}
    kinds["Around"] = (tg.Around, {"select": tg.ToMe()})
    for kind, needed in kinds.values():
        for name, option in inspect.signature(kind).parameters.items():
            if option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
                yield pytest.param(kind, needed, name, id=f"{kind.__name__}-{name}")


@pytest.mark.parametrize(("kind", "needed", "name"), list(options()))
def test_no_strategy_gives_an_error_of_python_for_an_option_of_a_wrong_kind(kind, needed, name):
    for value in WRONG:
        try:
            kind(**needed | {name: value})
        except FileNotFoundError:  # a path, of no file
            continue
        except Exception as error:
            assert str(error).startswith("Expected"), (value, error)


def test_the_error_names_option_kind_and_value():
    with pytest.raises(TypeError, match=r"^Expected keep of DynamicViT as .*float.* \(got \(1.0,\)\)\.$"):
        tg.DynamicViT((1.0,))
    with pytest.raises(TypeError, match=r"^Expected keep of DynamicSpatial as .*float.* \(got \(1.0,\)\)\.$"):
        tg.DynamicSpatial((1.0,))
    with pytest.raises(TypeError, match=r"Expected ratios of DynamicSpatialLoss as Sequence\[float\] \(got None\)"):
        DynamicSpatialLoss(None)


def test_strategies_of_users_are_explained_too():
    @dataclass(frozen=True)
    class Half(tg.Select):
        share: float = 0.5
        seen: int = field(default=0, init=False)

        def __post_init__(self):
            if not 0 < self.share < 1:
                raise ValueError("Expected share in (0, 1).")
            if self.share == 0.25:
                raise RuntimeError("of another kind")

        def __call__(self, tokens, budget):
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"Expected share of Half as float \(got 'a'\)"):
        Half("a")
    with pytest.raises(ValueError, match=r"^Expected share in \(0, 1\)\.$"):
        Half(2.0)
    with pytest.raises(RuntimeError, match="of another kind"):  # all options are right: the error stays
        Half(0.25)
    with pytest.raises(TypeError, match="unexpected keyword argument 'part'"):
        Half(part=1)
    assert [f.name for f in fields(Half)] == ["share", "seen"] and Half(0.75).share == 0.75


@pytest.mark.parametrize(
    ("value", "kind", "fit"),
    [
        (1, float, True),
        (True, float, False),
        (1.0, int, False),
        (None, int | None, True),
        ("a", int | None, False),
        ((1, 2.0), tuple[float, ...], True),
        ([1], Sequence[int], True),
        ("12", Sequence[int], False),
        ((1, "a"), tuple[int, str], True),
        ((1,), tuple[int, str], False),
        ({}, dict[str, int], True),
        ("mean", Literal["mean"], True),
        ("sum", Literal["mean"], False),
        (len, type(len), True),
        (object(), Any, True),
        (torch.tensor(2), int, True),
        (torch.tensor([2]), int, False),
    ],
)
def test_fits_reads_annotations(value, kind, fit):
    assert fits(value, kind) is fit


GRAPH = tg.TokenGraph.from_tokens(torch.randn(1, 16, 4), grid=(4, 4)).connect_grid()
PUBLIC = {
    "model to attach": lambda wrong: tg.attach(wrong, "tome", 2),
    "prop_attn": lambda wrong: tg.attach(tiny_vit(), "tome", 2, prop_attn=wrong),
    "graph to coarsen": lambda wrong: tg.coarsen(wrong, "tome", 0.5),
    "tokens of a graph": tg.TokenGraph.from_tokens,
    "layer of a model": lambda wrong: tg.TokenGraph.from_model(tiny_vit(), torch.randn(1, 3, 32, 32), layer=wrong),
    "neighbours on a grid": GRAPH.connect_grid,
    "neighbours": GRAPH.connect_knn,
    "images of fidelity": lambda wrong: tg.fidelity(tiny_vit(), wrong, "tome:2"),
    "model to plan": lambda wrong: tg.plan(wrong, torch.randn(8, 3, 32, 32), cost=0.5),
    "images to plan on": lambda wrong: tg.plan(tiny_vit(), wrong, cost=0.5),
    "graph of quality": lambda wrong: tg.quality(wrong, tg.tome(torch.randn(1, 16, 4), 8)),
    "budget": lambda wrong: tg.tome(torch.randn(1, 16, 4), wrong),
}


@pytest.mark.parametrize("what", PUBLIC)
def test_no_public_function_gives_an_error_of_python_for_a_wrong_kind(what):
    for wrong in (0.3, "x", (1.5,), [0.5, "a"], {1: 2}, object(), 1j):
        with pytest.raises((TypeError, ValueError), match="^Expected"):
            PUBLIC[what](wrong)


ROOMS = ("schedule", "losses", "nn", "models", "windows", "vlm", "datasets", "spatial", "viz", "testing")


def found(name):
    """The public function, class or constructor of a name."""
    room, _, rest = name.partition(".")
    part = importlib.import_module(f"tokengraph.{room}") if room in (*ROOMS, "cost") else getattr(tg, room)
    return getattr(part, rest) if rest else part


def arguments():
    for name in RIGHT:
        for argument in inspect.signature(found(name)).parameters.values():
            if argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
                yield pytest.param(name, argument.name, id=f"{name}-{argument.name}")


@pytest.mark.parametrize("name", RIGHT)
def test_right_arguments_are_taken(name):
    assert found(name)(**RIGHT[name]) is not None


@pytest.mark.parametrize(("name", "argument"), list(arguments()))
def test_no_public_function_gives_an_error_of_python_for_an_argument_of_a_wrong_kind(name, argument):
    for value in ((1.5,), [0.5, "a"], "x", {1: 2}, 1j, object()):
        try:
            found(name)(**RIGHT[name] | {argument: value})
        except (FileNotFoundError, ImportError):  # a path, or an extra, of no file
            continue
        except Exception as error:
            assert str(error).startswith("Expected"), (value, error)


def test_every_public_function_explains_wrong_kinds():
    unexplained = set()
    for room in (tg, *(importlib.import_module(f"tokengraph.{room}") for room in ROOMS)):
        for name in room.__all__:
            each = getattr(room, name)
            if inspect.isfunction(each) and inspect.signature(each).parameters and not hasattr(each, "__wrapped__"):
                unexplained.add(name)
    assert unexplained == {"warn_of_idle"}  # a frame more would move the line that its warning names


def test_the_error_names_argument_function_and_annotation():
    with pytest.raises(TypeError, match=r"^Expected scale of toma as float \(got None\)\.$"):
        tg.toma(torch.randn(1, 4, 4), 2, scale=None)
    with pytest.raises(TypeError, match=r"^Expected score of tps as Tensor \(got 0\.5\)\.$"):
        tg.tps(x=torch.randn(1, 4, 4), score=0.5, keep=2)
    with pytest.raises(TypeError, match=r"^Expected cosine of knn_neighbors as bool \(got Tensor of shape \[2\]\)\.$"):
        tg.knn_neighbors(torch.randn(4, 4), 2, cosine=torch.ones(2))


def test_the_error_before_it_is_the_cause_and_other_errors_stay():
    with pytest.raises(TypeError) as raised:
        tg.toma(torch.randn(1, 4, 4), 2, scale=None)
    assert isinstance(raised.value.__cause__, TypeError)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'keep'"):
        tg.toma(torch.randn(1, 4, 4))


def test_errors_of_the_device_stay():
    class OutOfMemoryError(RuntimeError): ...

    @explains
    def fails(count: int, run):
        return run()

    def run():
        raise OutOfMemoryError("out of memory")

    with pytest.raises(OutOfMemoryError):
        fails("a", run)
    with pytest.raises(TypeError, match=r"^Expected count of fails as int \(got 'a'\)\.$"):
        fails("a", None)
