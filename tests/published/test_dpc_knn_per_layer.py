"""DPC-KNN in several layers against vectors of TokenReduction (see reference/merging/README.md)."""

import torch
from merging import check_sources, stored_model
from torch.testing import assert_close

import tokengraph as tg


def test_a_model_of_the_published_code_is_reproduced(vectors):
    v = vectors("merging", "model_dpcknn_per_layer")
    model, how = stored_model(v)
    schedule = tg.schedule.powers(how["keep_rate"], how["layers"])
    with tg.attach(model, tg.DPCKNN.per_layer(), schedule) as handle, torch.no_grad():
        logits = model(v["image"])
        assert list(handle.trace.counts)[:-1] == v["counts"].tolist()[1:]  # as they come to a block, and leave it
        check_sources(handle.trace, v, how["depth"], before=True)
    assert_close(logits, v["logits"], rtol=0, atol=2e-5)
    with tg.attach(model, tg.DPCKNN.published(), schedule, prop_attn="none"), torch.no_grad():
        assert not torch.allclose(model(v["image"]), v["logits"], rtol=0, atol=1e-2)  # means by size are others


def test_the_published_schedule_takes_powers():
    assert tg.schedule.tokens_per_layer(tg.DPCKNN.per_layer_schedule(0.7), 12, 196)[3::3] == [137, 96, 67, 67]
