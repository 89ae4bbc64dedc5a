"""The GPU kit: every path runs on the CPU, failures are rows, and a second call goes on where the first stopped."""

import json

import pytest
import torch
from needs import library

library("timm")
import gpu  # noqa: E402
from gpu_parts import PARTS, Kit  # noqa: E402
from harness import Effort  # noqa: E402

TINY = ["--device", "cpu", "--tiny"]


def test_every_part_of_the_kit_runs_on_the_cpu(tmp_path):
    where = tmp_path / "gpu.json"
    assert gpu.main([*TINY, "--out", str(where)]) == 0
    found = json.loads(where.read_text())
    assert set(found["parts"]) == set(PARTS) and all(p["done"] and p["rows"] for p in found["parts"].values())
    assert not [row for part in found["parts"].values() for row in part["rows"] if "error" in row]
    cases = {row["case"] for row in found["parts"]["laws"]["rows"]}
    assert {"tome repeats", "ailurus synchronises", "torch neighbours", "gtp runs_in_half_precision"} <= cases
    assert {"driver", "cuda", "versions", "device_name"} <= set(found["environment"])
    assert "## models" in where.with_suffix(".md").read_text()


def test_a_second_call_goes_on_where_the_first_ran_out_of_time(tmp_path, monkeypatch, capsys):
    seen = []

    def part(kit):
        for name in ("a", "b", "c"):
            yield name, lambda name=name: seen.append(name) or {"value": len(seen)}

    monkeypatch.setattr(gpu, "PARTS", {"laws": part})
    clock = iter([0.0, 0.0, 0.0, 9e9, 9e9])  # the start, the part, a, b, the end of the part
    where = tmp_path / "gpu.json"
    with monkeypatch.context() as patch:
        patch.setattr(gpu.time, "monotonic", lambda: next(clock))
        gpu.main([*TINY, "--out", str(where)])
    assert seen == ["a"] and not json.loads(where.read_text())["parts"]["laws"]["done"]
    gpu.main([*TINY, "--out", str(where)])
    gpu.main([*TINY, "--out", str(where)])
    assert seen == ["a", "b", "c"] and "laws: there already" in capsys.readouterr().out


def test_a_failed_case_is_a_row_and_is_tried_again(tmp_path, monkeypatch):
    tries = []

    def part(kit):
        yield "breaks", lambda: tries.append(1) or {}["nothing"]
        yield "holds", lambda: {"ok": True}

    monkeypatch.setattr(gpu, "PARTS", {"laws": part})
    where = tmp_path / "gpu.json"
    assert gpu.main([*TINY, "--out", str(where)]) == 1
    assert json.loads(where.read_text())["parts"]["laws"]["rows"] == [
        {"case": "breaks", "error": "KeyError: 'nothing'"},
        {"case": "holds", "ok": True},
    ]
    assert gpu.main([*TINY, "--out", str(where)]) == 1 and len(tries) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_laws_hold_on_cuda():
    kit = Kit(torch.device("cuda"), True, Effort(1, 0.0, 0.0))
    broken = {}
    for name, call in PARTS["laws"](kit):
        try:
            call()
        except Exception as error:
            broken[name] = str(error)
    assert not broken
