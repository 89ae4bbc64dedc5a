"""MPM against vectors of an own reference: there is no published code (see reference/merging/README.md)."""

import pytest
import torch
from merging import check_sources, stored_model
from torch.testing import assert_close

import tokengraph as tg


@pytest.mark.parametrize("case", range(5))
def test_pairs_and_rows_are_reproduced(vectors, case):
    v = vectors("merging", "mpm_select")
    v = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}
    a = tg.mpm(v["x"])
    assert a.cluster_ptr.diff().tolist() == v["counts"].tolist()
    assert torch.equal(a.cluster, (v["cluster"].long() + a.cluster_ptr[:-1, None]).flatten())
    x, size = v["x"].flatten(0, 1), v["size"].flatten()
    assert_close(a.reduce(x)[0], v["out_plain"], rtol=0, atol=1e-5)
    rows, sizes = a.reduce(x, size)
    assert_close(rows, v["out_sized"], rtol=0, atol=1e-5)
    assert_close(sizes, v["out_size"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["equal", "pairs"])
def test_ties_are_reproduced(vectors, name):
    v = vectors("merging", "mpm_select")
    assert tg.mpm(v[f"tie_{name}_x"]).cluster.tolist() == v[f"tie_{name}_cluster"].flatten().tolist()


@pytest.mark.parametrize("official", [True, False])
def test_the_model_is_reproduced(vectors, official):
    v = vectors("merging", "model_mpm")
    model, how = stored_model(v)
    prefix = "" if official else "sized_"
    with tg.attach(model, tg.MPM(layers=tuple(how["before"]), official=official)) as handle, torch.no_grad():
        logits = model(v["image"])
        trace = handle.trace
        for layer in range(how["depth"]):  # stored: before block 0 and after each block
            counts = v[f"{prefix}counts"][:, layer + 1].tolist()
            assert trace.counts_per_image(layer) == counts
        check_sources(trace, v, how["depth"], prefix=prefix, before=True)
        if official:
            assert_close(trace.lift(model.norm(trace.output)), v["lifted"], rtol=0, atol=2e-5)
    assert_close(logits, v[f"{prefix}logits"], rtol=0, atol=2e-5)
