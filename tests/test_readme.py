"""The code in the README and in docstrings runs as it stands there."""

import doctest
import importlib
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from needs import library

import tokengraph
from tokengraph.select import base

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
DOCTEST = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
MODULES = [m.name for m in pkgutil.walk_packages(tokengraph.__path__, "tokengraph.") if not m.name.endswith("__main__")]


def test_readme_has_the_quickstart_first():
    quickstart = (Path(__file__).parent.parent / "examples" / "quickstart.py").read_text()
    body = quickstart[quickstart.index("import torch") :]
    assert [line.split("  #")[0] for line in BLOCKS[0].strip().splitlines()] == [
        line.split("  #")[0] for line in body.strip().splitlines()
    ]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block_runs(number, tmp_path, monkeypatch, capsys):
    for name in ("timm", "transformers"):
        if f"compat import {name}" in BLOCKS[number]:
            library(name)
    if "load_photo" in BLOCKS[number]:
        pytest.importorskip("skimage")
    block = types.ModuleType("readme_block")
    monkeypatch.setitem(sys.modules, "readme_block", block)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # a strategy of a block is known in it alone
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), block.__dict__)
    if number == 0:
        out = capsys.readouterr().out
        assert "nodes=196, edges=1568" in out
        assert "torch.Size([1, 50, 384]) -> torch.Size([1, 384, 14, 14])" in out


def folder_of(name):
    """``tokengraph.maps`` of ``tokengraph.maps.hard``."""
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("folder", dict.fromkeys(map(folder_of, MODULES)))
def test_docstring_examples_run(folder):
    failed = {}
    for name in MODULES:
        if folder_of(name) == folder:
            module = importlib.import_module(name)
            failed[name], _ = doctest.testmod(module, optionflags=DOCTEST, extraglobs={"torch": torch})
    assert not {name: count for name, count in failed.items() if count}


def test_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    found = sum(bool(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name)))
    assert found >= 12
