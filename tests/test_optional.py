"""optional: errors that name the extra."""

import sys

import pytest

from tokengraph.optional import optional


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("matplotlib.figure", "matplotlib", "viz"),
        ("PIL.Image", "Pillow", "viz"),
        ("rich.table", "rich", "cli"),
        ("datasets", "datasets", "eval"),
    ],
)
def test_optional_names_the_extra_of_a_missing_package(monkeypatch, module, package, extra):
    top = module.split(".")[0]
    for name in [n for n in sys.modules if n == top or n.startswith(top + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])  # nothing is installed
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "editable" not in repr(f)])
    with pytest.raises(ImportError, match=rf"Expected {package} to be installed .*tokengraph\[{extra}\]"):
        optional(module)


def test_optional_passes_on_what_fails_inside_a_package(monkeypatch, tmp_path):
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("import no_such_module_at_all")
    for name in [n for n in sys.modules if n == "rich" or n.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        optional("rich")


def test_optional_gives_the_module(monkeypatch, tmp_path):
    pytest.importorskip("rich")
    assert optional("rich.table").__name__ == "rich.table"
