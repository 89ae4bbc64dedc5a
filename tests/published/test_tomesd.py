"""tomesd's destinations on the grid against vectors of the published code (see reference/merging/README.md)."""

import json

import pytest
import torch
from merging import renumbered, stored_model, within
from torch.testing import assert_close

import tokengraph as tg


@pytest.mark.parametrize("case", range(4))
def test_maps_rows_and_the_way_back_are_reproduced(vectors, case):
    v = vectors("merging", "tomesd_select")
    how = json.loads(v["config"])[case]
    v = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}
    pick = v["pick"].long()[None] if how["random"] else None
    keep = max(how["tokens_left"] if how["r"] < 99 else 1, 1)
    a = tg.grid_destinations(v["metric"], how["grid"], keep, cell=(how["sy"], how["sx"]), pick=pick)
    assert a.num_clusters == 2 * how["tokens_left"]
    local = within(a.cluster, 2, how["tokens_left"])
    for ours, theirs in zip(local.tolist(), v["labels"].tolist(), strict=True):
        assert renumbered(ours) == renumbered(theirs)
    rows, _ = a.reduce(v["x"].flatten(0, 1))
    assert_close(a.lift(rows).view_as(v["x"]), v["unmerged"], rtol=0, atol=1e-5)


def test_a_model_of_the_reference_is_reproduced(vectors):
    v = vectors("merging", "model_tomesd")
    model, how = stored_model(v)
    with tg.attach(model, tg.GridToMe.published(), {0: how["ratio"]}) as handle, torch.no_grad():
        logits = model(v["image"])
    assert handle.trace.counts == [64] * 5 and handle.trace.counts_inside == [how["tokens_inside"]] * 4
    for block in range(4):
        labels = within(handle.trace.inside(block).cluster, 2, how["tokens_inside"]).tolist()
        for ours, theirs in zip(labels, v[f"l{block}_labels"].tolist(), strict=True):
            assert renumbered(ours) == renumbered(theirs)
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
