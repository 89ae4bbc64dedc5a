import sys

import pytest
import torch

import tokengraph as tg
from tokengraph import optional as probe
from tokengraph.optional import Backend


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Writes optional packages that come before the installed ones, none imported or probed yet."""
    names = ("torch_cluster", "torch_scatter", "pyg_lib")

    def take_out():
        found = [n for n in sys.modules if n.partition(".")[0] in names]
        probe._probe.cache_clear()
        return {n: sys.modules.pop(n) for n in found}

    def write(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)

    imported = take_out()
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    take_out()
    sys.modules.update(imported)


def test_backends_lists_torch_and_every_extension():
    found = tg.backends()
    assert list(found) == ["torch", "torch-cluster", "torch-scatter", "pyg-lib"]
    assert [b.name for b in found.values()] == list(found)
    assert found["torch"] == Backend("torch", True, torch.__version__)


def test_backends_gives_the_version_of_what_is_there(packages):
    packages("pyg_lib", "__version__ = '0.8.0'")
    assert tg.backends()["pyg-lib"] == Backend("pyg-lib", True, "0.8.0")
    assert str(tg.backends()["pyg-lib"]) == "pyg-lib: yes, 0.8.0"


def test_backends_says_how_to_install_what_is_missing(packages):
    sys.modules["torch_cluster"] = None  # the import system's own mark of "not there"
    found = tg.backends()["torch-cluster"]
    assert (found.available, found.version) == (False, None)
    assert str(found).startswith(
        "torch-cluster: no (not installed: pip install --no-build-isolation 'tokengraph[cluster]'"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise OSError('undefined symbol: _ZN3c10\\nmore')", "broken: OSError: undefined symbol: _ZN3c10"),
        ("raise RuntimeError", "broken: RuntimeError: "),
        ("raise ImportError('libcudart.so.12: cannot open')", "broken: ImportError: libcudart.so.12: cannot open"),
        ("import a_package_it_needs", "broken: No module named 'a_package_it_needs'"),
    ],
)
def test_backends_says_why_a_broken_package_cannot_be_used(packages, text, reason):
    packages("torch_cluster", text)
    assert tg.backends()["torch-cluster"] == Backend("torch-cluster", False, None, reason)
    assert probe.load("torch-cluster") is None
    with pytest.raises(ImportError, match=r"^Expected torch-cluster to be usable \(got broken: "):
        probe.require("torch-cluster")


def test_probe_tries_each_package_once(packages):
    packages("torch_cluster", "import torch\ntorch.probed = getattr(torch, 'probed', 0) + 1\nraise OSError('broken')")
    try:
        for _ in range(3):
            tg.backends()
            probe.load("torch-cluster")
        assert torch.probed == 1
    finally:
        del torch.probed


def test_load_and_require_give_the_module(packages):
    packages("torch_scatter", "answer = 42")
    assert probe.load("torch-scatter").answer == probe.require("torch-scatter").answer == 42


def test_reduce_by_segments_survives_a_broken_torch_scatter(packages):
    packages("torch_scatter", "raise OSError('undefined symbol')")
    pooled, _ = tg.Assignment(torch.tensor([0, 1, 0]), 2).reduce(torch.tensor([[1.0], [2.0], [5.0]]), backend="segment")
    assert pooled.tolist() == [[3.0], [2.0]]
