"""ToMA's facility location and soft merging against vectors of the published code (see reference/merging/README.md)."""

import json

import pytest
import torch
from merging import stored_model
from torch.testing import assert_close

import tokengraph as tg


@pytest.mark.parametrize("case", range(3))
def test_destinations_rows_and_the_way_back_are_reproduced(vectors, case):
    v = vectors("merging", "toma_select")
    how = json.loads(v["config"])[case]
    v = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}
    side = round(how["tiles"] ** 0.5)
    tiles = None if side == 1 else (how["grid"][0] // side, how["grid"][1] // side)
    dst = tg.facility_location(v["metric"], how["M"], grid=how["grid"], tiles=tiles)
    assert torch.equal(dst, v["dst"].long())
    soft = tg.toma(v["metric"], how["M"], scale=how["scale"], grid=how["grid"], tiles=tiles)
    tokens = how["grid"][0] * how["grid"][1]
    assert torch.equal(soft.centers.view(2, -1) - torch.tensor([[0], [tokens]]), dst)
    rows, size = soft.reduce(v["x"].flatten(0, 1))
    loose = 2e-3 if how["scale"] >= 1000 else 1e-5  # a cosine's rounding is multiplied by the scale
    assert_close(rows.view(2, how["M"], -1), v["out_x"], rtol=0, atol=loose)
    assert_close(soft.lift(rows).view_as(v["x"]), v["unmerged"], rtol=0, atol=loose)
    assert_close(size.view(2, -1).sum(dim=1), torch.full((2,), float(tokens)))


def test_a_model_of_the_reference_is_reproduced(vectors):
    v = vectors("merging", "model_toma")
    model, how = stored_model(v)
    first, back, seen = how["merge_before"], how["reconstruct_before"], []
    select = tg.ToMA(scale=how["scale"])
    with tg.attach(model, select, {first: how["M"], back: "reconstruct"}, prop_attn="none") as handle:
        model.blocks[first].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        with torch.no_grad():
            logits = model(v["image"])
        made = handle.trace.state(first).lineage.maps[-1]
    assert torch.equal(made.centers.view(2, -1) - torch.tensor([[0], [64]]), v["dst"].long())
    assert_close(seen[0][:, 1:], v["merged"], rtol=0, atol=1e-5)
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
