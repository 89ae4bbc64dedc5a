"""tokengraph strategies, models, backends, bench and check."""

import json
import subprocess
import sys

import pytest
from needs import library

import tokengraph as tg
from tokengraph.__main__ import main
from tokengraph.testing.device_laws import DEVICE_LAWS


def test_strategies_lists_the_registry(capsys):
    assert main(["strategies", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(tg.registry()) <= set(found)
    assert found["ailurus"]["options"]["alpha"] == repr(tg.AiluRus().alpha)
    assert found["topk"]["reads"] == "class" and not found["topk"]["graphs"] and found["dpc-knn"]["graphs"]
    assert main(["strategies"]) == 0
    assert all(f"\n{name} " in f"\n{capsys.readouterr().out}" for name in ["ailurus"])


def test_models_lists_families_and_describes_one(capsys):
    library("timm")
    assert main(["models"]) == 0
    assert "EvaBlock" in capsys.readouterr().out
    assert main(["models", "vit_tiny_patch16_224", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["blocks"], found["channels"], found["patches"], found["prefix tokens"]) == (12, 192, 196, 1)
    assert main(["models", "resnet18"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tokengraph: Expected a supported model") and error.count("\n") == 1


def test_backends_prints_json(capsys):
    assert main(["backends", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(tg.backends())


def test_bench_merge_times_each_stage(capsys):
    shape = ["--shape", "1x16x8", "--rounds", "3", "--quiet"]
    assert main(["bench", "merge", "tome", "dpc-knn", *shape, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["strategy"], r["stage"]) for r in rows] == [
        (name, stage) for name in ("tome", "dpc-knn") for stage in ("choose", "merge", "lift")
    ]
    assert all(0 < r["low"] <= r["ms"] <= r["high"] for r in rows)
    assert main(["bench", "merge", "tome", "--shape", "1x15x8"]) == 1
    assert "N a square" in capsys.readouterr().err


def test_bench_model_compares_with_the_plain_model(capsys):
    timm = library("timm")
    if not timm.is_model("test_vit"):
        pytest.skip("this timm has no model for tests")
    run = ["bench", "model", "test_vit", "--rounds", "3", "--batch-size", "1", "--quiet", "--json"]
    assert main([*run, "tome:8"]) == 0
    dense, tome = json.loads(capsys.readouterr().out)["rows"]
    assert dense["setting"] == "dense" and dense["speedup"] == 1 and tome["ms"] > 0 and tome["ideal"] > 0
    assert main([*run, "tomme:8"]) == 1
    assert "Did you mean 'tome'" in capsys.readouterr().err


def test_check_holds_and_tells_what_it_did(capsys):
    assert main(["check", "tome", "--device", "cpu", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] == 0 and found["device"] == "cpu"
    assert {row["law"] for row in found["rows"]} >= {law.__name__ for law in DEVICE_LAWS} | {"conserves_mass"}
    assert {"strategies", "device", "backends"} <= {row["group"] for row in found["rows"]}


class Careless(tg.Select):
    """Breaks batch independence: the first image decides for all."""

    merges = False

    def __call__(self, tokens, budget):
        return tg.topk(tokens.x[:1].sum(dim=2).expand(tokens.x.size(0), -1), budget)


def test_check_names_what_is_broken(capsys, monkeypatch):
    import tokengraph.select.base as base

    whole = base.resolve
    monkeypatch.setattr(base, "resolve", lambda name: Careless() if name == "careless" else whole(name))
    assert main(["check", "careless", "--device", "cpu", "--quiet"]) == 1
    printed = capsys.readouterr().out
    assert "broken: Careless treats_images_alone" in printed and "checks broken on cpu" in printed


def test_every_command_teaches_and_has_json(capsys):
    for command in ("graph", "eval", "bench merge", "bench model", "check", "strategies", "models", "backends"):
        with pytest.raises(SystemExit, match="0"):
            main([*command.split(), "--help"])
        assert "--json" in capsys.readouterr().out


def test_a_reader_that_stops_early_is_no_error():
    code = f"{sys.executable} -m tokengraph strategies | head -n 1"
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() and not done.stderr
