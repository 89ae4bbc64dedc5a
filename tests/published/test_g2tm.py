"""G2TM against vectors of the published code; non-square grids: an own reference (see reference/merging/README.md)."""

import json

import pytest
import torch
from merging import renumbered, stored_model
from torch.testing import assert_close

import tokengraph as tg


@pytest.mark.parametrize("case", range(4))
def test_components_and_rows_are_reproduced(vectors, case):
    v = vectors("merging", "g2tm_select")
    how = json.loads(v["config"])[case]
    v = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}
    a = tg.connected_components(v["x"], tuple(how["grid"]), how["tau"])
    assert a.cluster_ptr.diff().tolist() == v["counts"].tolist()
    for ours, theirs in zip(a.cluster.view(2, -1).tolist(), v["labels"].tolist(), strict=True):
        assert renumbered(ours) == renumbered(theirs)
    rows, size = a.reduce(v["x"].flatten(0, 1))
    assert_close(rows, v["out_x"], rtol=0, atol=1e-5)
    assert_close(size, v["out_size"], rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["none", "log", "inverse"])
def test_the_model_is_reproduced(vectors, attention):
    v = vectors("merging", "model_g2tm")
    model, how = stored_model(v)
    select = tg.G2TM(how["tau"], layer=how["layer"] + 1, official=attention == "none")
    with tg.attach(model, select, prop_attn=None if attention == "none" else attention) as handle, torch.no_grad():
        logits = model(v["image"])
        trace = handle.trace
        for layer in range(how["depth"] + 1):
            assert list(trace.counts_per_image(layer)) == v["counts"][:, layer].tolist()
        ours = trace.state(how["depth"]).lineage.source.cluster.view(2, -1)
        for mine, theirs in zip(ours.tolist(), v["source"].tolist(), strict=True):
            assert renumbered(mine) == renumbered(theirs)
    assert_close(logits, v[f"logits_{attention}"], rtol=0, atol=2e-5)
