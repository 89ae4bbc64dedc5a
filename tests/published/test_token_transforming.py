"""Token Transforming, our own definition, against its own reference (see reference/merging/README.md)."""

import json

import pytest
import torch
from merging import stored_model
from torch.testing import assert_close

import tokengraph as tg


@pytest.mark.parametrize("case", range(2))
def test_maps_of_the_reference_are_reproduced(vectors, case):
    v = vectors("merging", "token_transforming")
    how = json.loads(v["config"])[case]
    v = {k[3:]: t for k, t in v.items() if k.startswith(f"c{case}_")}
    soft = tg.token_transforming(v["keys"], v["importance"], how["M"], scale=how["scale"])
    assert torch.equal(soft.centers.view(2, -1) - torch.tensor([[0], [how["N"]]]), v["dst"].long())
    assert_close(soft.weight.view(2, how["N"], how["M"]), v["weight"], rtol=0, atol=1e-5)
    rows, size = soft.reduce(v["x"].flatten(0, 1), v["size"].flatten())
    assert_close(rows.view(2, how["M"], -1), v["out_x"], rtol=0, atol=1e-5)
    assert_close(size.view(2, -1), v["out_size"], rtol=0, atol=1e-5)
    assert_close(soft.lift(rows).view(2, how["N"], -1), v["lifted"], rtol=0, atol=2e-5)


def test_a_model_of_the_reference_is_reproduced(vectors):
    v = vectors("merging", "model_token_transforming")
    model, how = stored_model(v)
    select, seen = tg.TokenTransforming(scale=how["scale"]), []
    with tg.attach(model, select, {how["merge_before"]: how["M"]}) as handle, torch.no_grad():
        hook = model.blocks[how["merge_before"]].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        logits = model(v["image"])
        hook.remove()
        made = handle.trace.state(how["merge_before"]).lineage.maps[-1]
    assert torch.equal(made.centers.view(2, -1) - torch.tensor([[0], [64]]), v["dst"].long())
    assert_close(seen[0][:, 1:], v["merged"], rtol=0, atol=1e-5)
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
