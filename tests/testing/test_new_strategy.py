"""The strategy that the examples teach with holds every law."""

import ast
from pathlib import Path

import pytest

from tokengraph.testing import SELECT_LAWS

EXAMPLE = Path(__file__).parents[2] / "examples" / "new_strategy.py"


@pytest.fixture(scope="module")
def k_means():
    """The strategy, from the example's class and imports alone: the script itself runs a model."""
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    kept = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)]
    names = {"__name__": "examples.new_strategy"}
    exec(compile(ast.Module(kept, []), str(EXAMPLE), "exec"), names)
    yield names["KMeans"]()
    from tokengraph.select import base

    base._REGISTRY.pop("kmeans", None)


@pytest.mark.parametrize("law", SELECT_LAWS, ids=lambda law: law.__name__)
def test_the_example_holds(law, k_means):
    law(k_means)
