"""Tables of where strategies save time: what they say, and what a plan leaves out by them."""

import json

import pytest
import torch

import tokengraph as tg
from tokengraph.planning.family import families
from tokengraph.planning.pays import PayRow, nearest_rows, read_pays, smallest_paying, that_pay
from tokengraph.testing import tiny_vit


def rows(ratios, strategy="tome", channels=192, batch=1, threads=1):
    return [PayRow(strategy, channels, batch, threads, tokens, ratio) for tokens, ratio in ratios.items()]


@pytest.mark.parametrize(
    ("ratios", "first"),
    [
        ({36: 1.2, 64: 1.0, 100: 0.9, 196: 0.7}, 100),
        ({36: 0.9, 64: 1.1, 100: 0.9}, 100),  # one lucky number below does not count
        ({36: 0.98, 64: 0.98}, None),  # less than 3 %
        ({16: 0.5}, 16),
        ({}, None),
    ],
)
def test_smallest_paying_is_the_first_from_which_on_all_pay(ratios, first):
    assert smallest_paying(rows(ratios)) == first


def test_nearest_rows_takes_the_nearest_threads_width_and_batch():
    table = [*rows({36: 1.0}), *rows({36: 2.0}, channels=768), *rows({36: 3.0}, batch=8), *rows({36: 4.0}, threads=2)]
    assert [row.ratio for row in nearest_rows(table, "tome", 384, 2, 1)] == [1.0]
    assert [row.ratio for row in nearest_rows(table, "tome", 1024, 8, 1)] == [2.0]
    assert [row.ratio for row in nearest_rows(table, "tome", 200, 8, 1)] == [3.0]
    assert [row.ratio for row in nearest_rows(table, "tome", 768, 1, 16)] == [4.0]
    assert nearest_rows(table, "random", 384, 1, 1) == []


def test_that_pay_leaves_out_what_does_not_and_says_so():
    table = rows({36: 1.2, 100: 0.9}) + rows({36: 1.3, 196: 1.1}, "atc")
    tried = families(["tome", "atc", "random"])
    here = {"channels": 192, "batch": 1, "threads": 1}
    kept, notes = that_pay(tried, table, tokens=64, **here)
    assert [family.name for family in kept] == ["random"]
    assert notes[0] == (
        "tome was left out: by the table it pays from 100 tokens on (C=192, batches of 1, threads: 1); here are 64."
    )
    assert "pays at no measured number" in notes[1]
    assert [family.name for family in that_pay(tried, table, tokens=196, **here)[0]] == ["tome", "random"]
    assert that_pay(tried, table, tokens=576, **here) == (tried, [])  # beyond what was measured


def test_plan_reads_a_table(tmp_path):
    file = tmp_path / "pays.json"
    written = [
        {**row.__dict__, "px": 96} for row in rows({4: 1.3, 64: 1.1}, channels=32) + rows({4: 0.5}, "random", 32)
    ]
    file.write_text(json.dumps({"rows": written}))
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = {"cost": 0.7, "resolution": False, "progress": False, "strategies": ["tome", "random"]}
    found = tg.plan(tiny_vit(), images, pays=file, **options)
    assert found.setting.strategy == "random"
    assert any(note.startswith("tome was left out: by the table it pays at no measured") for note in found.notes)


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"rows": [{"strategy": "tome"}]}'])
def test_read_pays_refuses_other_files(tmp_path, text):
    file = tmp_path / "pays.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="Expected a table of where strategies pay, as benchmarks/pays.py writes it"):
        read_pays(file)
