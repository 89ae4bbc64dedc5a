"""Strategies and adapters of a user's own on the command line, by ``--import``."""

import sys

import pytest

from tokengraph.cli.main import main
from tokengraph.select import base

OWN = """
import torch
import tokengraph as tg

class EveryOther(tg.Select):
    name = "every-other"
    merges = False

    def __call__(self, tokens, budget):
        score = torch.arange(tokens.x.size(1)).expand(tokens.x.shape[:2]) % 2
        return tg.topk(score.float(), budget)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # it is known in this test alone
    file = tmp_path / "own_strategies.py"
    file.write_text(OWN)
    yield file
    sys.modules.pop("own_strategies", None)


def test_import_adds_a_strategy_of_a_file(own, capsys):
    assert main(["strategies", "--import", str(own)]) == 0
    assert "every-other" in capsys.readouterr().out


def test_import_adds_a_strategy_of_a_module(own, capsys, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert main(["strategies", "--import", "own_strategies"]) == 0
    assert "every-other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("json.py", "another module is called json"),
        ("this.py", "another module is called this"),
        ("none.py", "no such file"),
        ("no_such_module", "No module named"),
        ("raises.py", "division by"),
    ],
)
def test_import_names_what_cannot_be_imported(tmp_path, capsys, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raises.py").write_text("1 / 0")
    for other in ("json.py", "this.py"):  # one is imported, the other not
        (tmp_path / other).write_text("")
    assert main(["strategies", "--import", name]) == 1
    assert f"Expected a Python file or module that can be imported (got '{name}'" in (said := capsys.readouterr().err)
    assert told in said


@pytest.mark.parametrize("command", ["demo", "graph", "plan", "eval", "bench merge", "bench model", "check"])
def test_every_command_takes_import(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "--import FILE" in capsys.readouterr().out


def test_import_finds_files_beside_the_file_and_forgets_one_that_failed(own, capsys):
    (own.parent / "helper_of_own.py").write_text("VALUE = 1")
    own.write_text("import helper_of_own\n1 / 0")
    assert main(["strategies", "--import", str(own)]) == 1
    assert "own_strategies" not in sys.modules and "helper_of_own" in sys.modules
    del sys.modules["helper_of_own"]
    own.write_text(OWN)
    assert main(["strategies", "--import", str(own), "--import", str(own)]) == 0
    assert capsys.readouterr().out.count("\nevery-other ") == 1
