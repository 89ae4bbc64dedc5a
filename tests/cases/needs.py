"""What tests do where an optional library, or a model of it, is not there."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tokengraph import compat
from tokengraph.adapters import find_adapter

TOO_OLD = "Expected a newer", "with its layers in a part of their own"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def library(name):
    """timm, torchvision or transformers as ``tokengraph.compat`` imports it; without it the test or file is skipped."""
    try:
        return getattr(compat, name)
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)


def timm_model(name, **options):
    """A model of timm by name; the test is skipped where this timm has none such."""
    timm = library("timm")
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    return timm.create_model(name, **options)


def made(case):
    """The case's model; skips where this version of its library has none such, or one that is refused for its age."""
    try:
        model = case.make()
    except (ImportError, AttributeError, RuntimeError) as error:
        pytest.skip(str(error))
    try:
        core, adapter = find_adapter(model, case.adapter)
        adapter.check_around(model, core)
        adapter.blocks(core)
    except ValueError as error:
        if any(words in str(error) for words in TOO_OLD):
            pytest.skip(str(error))
        raise
    return model


def is_pinned(package):
    """Whether the version of constraints.txt is installed."""
    wanted = re.search(rf"^{package}==([^ \n]+)", CONSTRAINTS.read_text(), flags=re.M)[1]
    try:
        return version(package).partition("+")[0] == wanted
    except PackageNotFoundError:
        return False
