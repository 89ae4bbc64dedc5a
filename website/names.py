"""Which public names there are, and which page documents each."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from typing import Any

import tokengraph as tg

# Modules whose public names the reference lists, beside those of the package itself.
MODULES = (
    "schedule", "edges", "evaluate", "evaluate.settings", "datasets", "models", "nn", "testing", "viz", "losses",
    "io.photo", "io.checkpoints", "io.onnx", "adapters", "adapters.base", "adapters.coarse", "planning", "spatial",
    "windows", "vlm", "attach.trace", "attach.handle", "select.tokens", "select.threshold", "cost", "compat",
)  # fmt: skip
TITLES = {
    "graph": ("Token graphs", "Tokens as a graph of PyTorch Geometric, and coarsening it."),
    "maps": ("Maps", "What a coarsening is: sparse maps from tokens to clusters."),
    "edges": ("Edges", "How tokens are connected."),
    "attach": ("Inside a model", "Attaching a strategy, and reading what happened."),
    "schedule": ("Schedules", "The number of tokens after each block."),
    "select": ("Strategies in general", "The base class, its inputs, and what belongs to no single strategy."),
    "evaluate": ("Evaluating", "What a setting costs in accuracy, time and multiply-adds."),
    "planning": ("Planning", "A budget instead of a schedule."),
    "datasets": ("Data sets", "Token graphs of many images on disk."),
    "io": ("Files", "Photographs, checkpoints, ONNX."),
    "viz": ("Pictures", "Clusters, graphs, features and costs drawn."),
    "testing": ("Laws", "Checks for strategies and model families of your own."),
    "adapters": ("Model families", "Where the blocks of a stock model are, and how they compute."),
    "nn": ("Learned parts", "Predictors, keep decisions and their attention masks."),
    "losses": ("Losses", "What trains learned strategies."),
    "models": ("Backbones", "Models that no library has."),
    "windows": ("Windows", "Coarsening inside the windows of Swin and SAM."),
    "spatial": ("Spatial sparsity", "Slow and fast paths in ConvNeXt and Swin."),
    "vlm": ("Vision-language models", "Fewer visual tokens for a language model."),
    "cost": ("Costs", "Operations and bytes of each step."),
    "attention": ("Attention", "Masks and statistics that stand in for a whole attention map."),
    "optional": ("Backends", "Packages that may be missing."),
    "compat": ("Compatibility", "Importing timm and transformers beside a CPU-only torch."),
}


def public(module: Any) -> dict[str, Any]:
    """Returns a module's public functions and classes by where they are defined."""
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    found = {n: getattr(module, n) for n in names if hasattr(module, n)}
    own = {n: v for n, v in found.items() if inspect.isfunction(v) or inspect.isclass(v)}
    if not hasattr(module, "__all__"):
        own = {n: v for n, v in own.items() if v.__module__ == module.__name__}
    own = {n: v for n, v in own.items() if str(v.__module__).startswith("tokengraph") and v.__doc__}
    return {f"{v.__module__}.{v.__qualname__}": v for v in own.values()}


@cache
def everything() -> dict[str, Any]:
    """Returns every documented object by where it is defined."""
    found = dict(public(tg))
    for name in MODULES:
        try:
            found |= public(import_module(f"tokengraph.{name}"))
        except ImportError:
            continue
    return dict(sorted(found.items()))


@cache
def strategies() -> dict[str, type[tg.Select]]:
    """Returns the library's registered strategies by name, sorted; a user's own are left out."""
    found = {n: c for n, c in tg.registry().items() if c.__module__.startswith("tokengraph.")}
    return dict(sorted(found.items()))


def functions_of(kind: type[tg.Select]) -> list[str]:
    """Returns the public functions that belong to a strategy: those of its module."""
    home = kind.__module__
    return [name for name, v in everything().items() if inspect.isfunction(v) and v.__module__ == home]


@cache
def page_of() -> dict[str, str]:
    """Returns the page of every documented object, as a path below ``docs/``."""
    pages = {}
    for name, kind in strategies().items():
        for dotted in (f"{kind.__module__}.{kind.__qualname__}", *functions_of(kind)):
            pages[dotted] = f"strategies/{name}.md"
    for dotted in everything():
        pages.setdefault(dotted, f"api/{dotted.split('.')[1]}.md")
    return pages


def reference(dotted: str) -> str:
    """Returns the block that puts an object into a page, under the name that users import."""
    own = dotted.rpartition(".")[2]
    public = next((n for n in tg.__all__ if getattr(tg, n) is everything().get(dotted)), own)
    if public == own:
        return f"::: {dotted}"
    return f"::: {dotted}\n    options:\n      heading: {public}\n      toc_label: {public}"
