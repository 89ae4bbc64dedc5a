"""ALGM against vectors of the published code, one image at a time (see reference/merging/README.md)."""

import json

import pytest
import torch
from merging import check_sources, stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.parts.scores.windows import window_members, window_similarity


def case_of(v, case):
    return json.loads(v["config"])[case], {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}


def check(a, v):
    """Clusters and counts of the vectors include the class token."""
    assert (a.cluster_ptr.diff() + 1).tolist() == v["counts"].tolist()
    assert torch.equal(a.cluster.view(2, -1) - a.cluster_ptr[:-1, None], v["cluster"][:, 1:].long() - 1)
    rows, size = a.reduce(v["x"][:, 1:].flatten(0, 1), v["size"][:, 1:].flatten())
    patches = torch.ones(len(v["out_x"]), dtype=torch.bool)
    patches[[0, int(v["counts"][0])]] = False
    assert_close(rows, v["out_x"][patches], rtol=0, atol=1e-5)
    assert_close(size, v["out_size"][patches], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", range(3))
def test_windows_and_rows_are_reproduced(vectors, case):
    how, v = case_of(vectors("merging", "algm_local"), case)
    x, grid, window = v["x"][:, 1:], tuple(how["grid"]), (how["window"],) * 2
    similar = window_similarity(x, window_members(grid, window, x.device))
    assert_close(similar, v["similarity"], rtol=0, atol=1e-5)
    check(tg.algm_local(x, grid, how["tau"], window=window), v)


@pytest.mark.parametrize("case", range(3))
def test_pairs_and_rows_are_reproduced(vectors, case):
    how, v = case_of(vectors("merging", "algm_global"), case)
    check(tg.algm_global(v["x"][:, 1:], how["layer_number"], num_prefix=1), v)


@pytest.mark.parametrize(("case", "prefix"), [(0, 0), (1, 2), (2, 3)])
def test_pairs_behind_other_numbers_of_prefix_tokens(vectors, case, prefix):
    v = vectors("merging", "prefix")
    layer = json.loads(v["config"])[case]["algm_layer_number"]
    a = tg.algm_global(v[f"p{prefix}_x"][:, prefix:], layer, num_prefix=prefix)
    assert torch.equal(a.cluster.view(2, -1) - a.cluster_ptr[:-1, None], v[f"p{prefix}_algm_cluster"].long())


def test_the_model_is_reproduced(vectors):
    v = vectors("merging", "model_algm")
    model, how = stored_model(v)
    select = tg.ALGM(how["tau"], tuple(how["layers"]), official=True)
    with tg.attach(model, select) as handle, torch.no_grad():
        logits = model(v["image"])
        for layer in range(how["depth"] + 1):
            assert list(handle.trace.counts_per_image(layer)) == v["counts"][:, layer].tolist()
        check_sources(handle.trace, v, how["depth"])
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
    assert (logits - v["logits_batch"]).abs().max() > 1e-3  # the released batch, in which images depend on each other
