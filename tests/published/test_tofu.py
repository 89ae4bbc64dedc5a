"""ToFu against vectors of its ports, and of the paper's formula (see reference/merging/README.md)."""

import json

import pytest
import torch
from merging import check_sources, stored_model, within
from torch.testing import assert_close

import tokengraph as tg


@pytest.mark.parametrize("case", range(3))
def test_choices_and_rows_of_all_reductions_are_reproduced(vectors, case):
    v = vectors("merging", "tofu_select")
    how = json.loads(v["config"])[case]
    v, p = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}, how["prefix"]
    keep = how["T"] - p - how["r"]
    a = tg.tofu(v["metric"][:, p:], keep, num_prefix=p)
    assert torch.equal(within(a.cluster, 2, keep), v["cluster"][:, p:].long() - p)
    for name, theirs in (("center", "prune"), ("mean", "mean"), ("released-mlerp", "released"), ("mlerp", "mlerp")):
        rows, _ = a.reduce(v["x"][:, p:].flatten(0, 1), reduce=name)
        assert_close(rows.view(2, keep, -1), v[f"out_{theirs}"][:, p:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["released", "mlerp"])
def test_models_are_reproduced(vectors, name):
    v = vectors("merging", f"model_tofu_{name}")
    model, how = stored_model(v)
    select = tg.ToFu(reduce=name, until=how["reduce"].count("prune") - 1)
    schedule = tg.ToFu.published_schedule(how["ratio"])
    with tg.attach(model, select, schedule) as handle, torch.no_grad():
        logits = model(v["image"])
        assert list(handle.trace.counts) == v["counts"][0].tolist()
        check_sources(handle.trace, v, how["depth"])
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
