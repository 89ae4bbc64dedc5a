"""PiToMe against vectors of the published code (see reference/merging/README.md)."""

import json

import pytest
import torch
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.parts.scores.energy import energy


@pytest.mark.parametrize("case", range(6))
def test_choices_and_rows_of_the_published_code_are_reproduced(vectors, case):
    v = vectors("merging", "pitome_select")
    how, p = json.loads(v["config"])[case], json.loads(v["config"])[case]["prefix"]
    v = {name: v[f"c{case}_{name}"] for name in ("metric", "x", "size", "energy", "cluster", "out_x", "out_size")}
    metric, keep = v["metric"][:, p:], how["N"] - how["r"]
    score = energy(metric, margin=how["margin"], alpha=how["alpha"])
    assert_close(score, v["energy"], rtol=0, atol=1e-5)
    a = tg.pitome(metric, keep, margin=how["margin"], alpha=how["alpha"], mode=how["mode"])
    first = torch.arange(2)[:, None] * keep
    assert torch.equal(a.cluster.view(2, -1) - first, v["cluster"][:, p:].long() - p)
    rows, size = a.reduce(v["x"][:, p:].flatten(0, 1), v["size"][:, p:].flatten())
    assert_close(rows.view(2, keep, -1), v["out_x"][:, p:], rtol=0, atol=1e-5)
    assert_close(size.view(2, keep), v["out_size"][:, p:].view(2, keep), rtol=0, atol=1e-5)


def _renumbered(labels):
    """By first occurrence."""
    known = {}
    return [known.setdefault(label, len(known)) for label in labels]


@pytest.mark.parametrize("name", ["model_pitome_deit", "model_pitome_rect", "model_pitome_gap"])
def test_models_of_the_published_code_are_reproduced(vectors, name):
    timm, v = library("timm"), vectors("merging", name)
    how = json.loads(v["config"])
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes", "class_token")
    options = {k: how[k] for k in (*sizes, "global_pool") if k in how}
    model = timm.models.VisionTransformer(**options).eval()
    model.load_state_dict({k[3:]: t for k, t in v.items() if k.startswith("sd/")}, strict=True)
    select = tg.PiToMe.released("deit", how["depth"])
    assert list(select.mode) == how["mode"]
    counts = v["counts"].reshape(-1, how["depth"] + 1)[0].tolist()
    with tg.attach(model, select, tg.schedule.ratio(how["ratio"])) as handle, torch.no_grad():
        logits = model(v["image"])
        trace = handle.trace
        assert list(trace.counts) == counts
        for i in range(how["depth"]):
            labels = trace.state(i + 1).lineage.source.cluster.view(2, -1)
            for ours, theirs in zip(labels.tolist(), v[f"l{i}_source"].tolist(), strict=True):
                assert _renumbered(ours) == _renumbered(theirs)
        assert_close(trace.size(how["depth"]), v["size"][:, -counts[-1] :].view(2, -1), rtol=0, atol=1e-5)
    assert_close(logits, v.get("logits_sized", v["logits"]), rtol=0, atol=2e-5)
