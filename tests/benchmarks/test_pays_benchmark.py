"""The benchmark of where strategies pay: it stops where all pay, and goes on where a run before was stopped."""

import json
from types import SimpleNamespace

import pays
import pytest
import torch

RATIOS = {64: 1.2, 96: 0.9, 128: 0.8, 160: 0.7}


@pytest.fixture
def measured(monkeypatch):
    """Takes the place of measuring; the image sizes that were asked for."""
    asked = []

    def at(case, px, run):
        asked.append(px)
        shape = {"channels": 192, "px": px, "tokens": (px // 16) ** 2, "plain_ms": 5.0, "ratio": RATIOS[px]}
        size, batch, threads = case
        row = {"model": f"deit_{size}", "batch": batch, "threads": threads} | shape
        return [row | {"strategy": name} for name in pays.STRATEGIES]

    monkeypatch.setattr(pays, "_at", at)
    return asked


def run(tmp_path, again=False):
    args = SimpleNamespace(
        sizes=["tiny"], batches=[1], thread_counts=[1], quick=False, again=again, out=tmp_path / "pays.json"
    )
    record = {"device_name": "mine", "python": "3", "versions": {}}
    made = SimpleNamespace(args=args, record=record, device=torch.device("cpu"), versions="", effort=None)
    *_, last = pays.results(made)
    args.out.write_text(json.dumps({"environment": record} | last.content))
    return last


def test_it_stops_where_all_pay_twice_and_says_from_where_they_pay(tmp_path, measured):
    last = run(tmp_path)
    assert measured == [64, 96, 128]
    assert "| deit_tiny | 1 | 1 | 36 | 36 | 36 | 36 | 36 | 36 | 64 |" in last.page


def test_it_goes_on_where_it_was_stopped(tmp_path, measured):
    first = run(tmp_path)
    file = tmp_path / "pays.json"
    rows = [row for row in first.content["rows"] if row["px"] < 128]
    file.write_text(json.dumps({"environment": {"device_name": "mine"}, "rows": rows}))
    measured.clear()
    assert run(tmp_path).content["rows"] == first.content["rows"]
    assert measured == [128]
    measured.clear()
    run(tmp_path, again=True)
    assert measured == [64, 96, 128]
