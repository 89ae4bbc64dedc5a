"""K-medoids against vectors of TokenReduction, and of the corrected form (see reference/merging/README.md)."""

import json

import pytest
import torch
from merging import check_sources, stored_model
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.parts.choices.medoids import farthest_first
from tokengraph.select.parts.graphs.complete import Distances


def stands_for(a):
    """The centre token of each token within its image, ``[2, N]``."""
    tokens = a.num_tokens // 2
    return a.centers[a.cluster].view(2, tokens) - torch.arange(2)[:, None] * tokens


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("form", ["official", "own", "own_equal"])
def test_choices_are_reproduced(vectors, form, case):
    v = vectors("merging", "kmedoids_select")
    how = json.loads(v["config"])[case]
    v = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}
    a = tg.k_medoids(
        v["x"],
        how["M"],
        weight=None if form == "own_equal" else v["weight"],
        iterations=how["iterations"],
        objective="released" if form == "official" else "cluster",
    )
    centers = v[f"{form}_centers"].long()
    assert torch.equal(a.centers.view(2, -1) - torch.tensor([[0], [how["N"]]]), centers.sort(dim=1).values)
    assert torch.equal(stands_for(a), centers.gather(1, v[f"{form}_labels"].long()))


@pytest.mark.parametrize("case", range(3))
def test_equal_weights_start_at_the_published_tokens(vectors, case):
    v = vectors("merging", "kmedoids_select")
    chosen = farthest_first(Distances(v[f"c{case}_x"], None), json.loads(v["config"])[case]["M"])
    assert torch.equal(chosen, v[f"c{case}_own_equal_init"].long())


@pytest.mark.parametrize("prefix", ["", "own_"])
def test_models_are_reproduced(vectors, prefix):
    v = vectors("merging", "model_kmedoids")
    model, how = stored_model(v)
    select = tg.KMedoids() if prefix else tg.KMedoids.published()
    schedule = tg.schedule.powers(how["keep_rate"], how["layers"])
    with tg.attach(model, select, schedule) as handle, torch.no_grad():
        logits = model(v["image"])
        assert list(handle.trace.counts)[:-1] == v["counts"].tolist()[1:]  # as they come to a block, and leave it
        if prefix:  # the published code drops all but the centres
            check_sources(handle.trace, v, how["depth"], prefix=prefix, before=True)
        patch = torch.arange(64).expand(2, -1)
        for layer in how["layers"]:  # theirs are places in their order, which is by weight
            patch = patch.gather(1, v[f"{prefix}centers{layer}"].long())
            ours = handle.trace.state(layer).lineage.source.centers.view(2, -1) - torch.tensor([[0], [64]])
            assert torch.equal(ours, patch.sort(dim=1).values)
    assert_close(logits, v[f"{prefix}logits"], rtol=0, atol=2e-5)


def test_ties_go_to_the_lower_index(vectors):
    from tokengraph.select.parts.choices.medoids import refine_medoids

    v = vectors("merging", "ties")
    for kind in ("signs", "ones"):
        pairs = Distances(v[kind][None], None)
        centers, label = refine_medoids(pairs, torch.arange(5)[None], torch.ones(1, 24), 3)
        assert centers[0].tolist() == v[f"kmedoids_centers_{kind}"].tolist()
        assert label[0].tolist() == v[f"kmedoids_{kind}"].tolist()
