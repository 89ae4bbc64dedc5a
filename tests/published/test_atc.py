"""ATC against vectors of the published code (see reference/merging/README.md)."""

import json

import pytest
import torch
from merging import check_sources, stored_model, within
from torch.testing import assert_close

import tokengraph as tg


@pytest.mark.parametrize("linkage", ["average", "single", "complete"])
@pytest.mark.parametrize("case", range(2))
def test_clusters_and_rows_are_reproduced(vectors, case, linkage):
    v = vectors("merging", "atc_select")
    how = json.loads(v["config"])[case]
    v, p, keep = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}, how["prefix"], how["M"]
    a = tg.atc(v["metric"][:, p:], keep, linkage=linkage)
    assert torch.equal(within(a.cluster, 2, keep), v[f"{linkage}_labels"].long())
    rows, size = a.reduce(v["x"][:, p:].flatten(0, 1), v["size"][:, p:].flatten())
    assert_close(rows.view(2, keep, -1), v[f"{linkage}_out_x"], rtol=0, atol=1e-5)
    assert_close(size.view(2, keep), v[f"{linkage}_out_size"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["average_prop", "complete"])
def test_models_are_reproduced(vectors, name):
    v = vectors("merging", f"model_atc_{name}")
    model, how = stored_model(v)
    select = tg.ATC(how["linkage"], official=not how["prop_attn"])
    schedule = tg.ATC.published_schedule(how["keep_rate"], tuple(layer + 1 for layer in how["layers"]))
    with tg.attach(model, select, schedule) as handle, torch.no_grad():
        logits = model(v["image"])
        assert list(handle.trace.counts) == v["counts"].reshape(2, -1)[0].tolist()
        check_sources(handle.trace, v, how["depth"])
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
