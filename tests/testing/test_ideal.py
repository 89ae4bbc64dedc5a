"""ideal: it cuts where strategies cut, and leaves nothing behind."""

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.attention.open_map import OpenMap
from tokengraph.testing import tiny_vit
from tokengraph.testing.ideal import ideal

library("timm")

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32)


def mlp_tokens(model, run) -> list[int]:
    """Tokens that each block's MLP sees in a run, prefix included."""
    seen = []
    hooks = [b.mlp.register_forward_hook(lambda _, __, out: seen.append(out.size(1))) for b in model.blocks]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("placement", "seen"), [("before", [17, 9, 9]), ("inside", [9, 9, 5]), ("after", [17, 9, 9])])
def test_ideal_cuts_where_the_placement_says(placement, seen):
    with ideal(tiny_vit(), [16, 8, 8, 4], placement) as model:
        assert mlp_tokens(model, lambda: model(IMAGES)) == seen
        assert model.forward_features(IMAGES).shape == (2, 5, 32)


@pytest.mark.parametrize("select", ["tome", "grid-pool"])
def test_ideal_has_the_token_counts_of_the_attached_model(select):
    model = tiny_vit()
    with tg.attach(model, select, 3) as handle:
        attached = mlp_tokens(model, lambda: model(IMAGES))
    with ideal(model, handle.trace.plan, tg.resolve(select).placement):
        assert mlp_tokens(model, lambda: model(IMAGES)) == attached


def test_ideal_gives_the_model_back_even_after_an_error():
    model = tiny_vit()
    before = model(IMAGES)
    with pytest.raises(KeyError), ideal(model, [16, 4, 4, 4]):
        raise KeyError
    assert torch.equal(model(IMAGES), before)


def test_ideal_without_removals_changes_nothing():
    model = tiny_vit()
    before = model(IMAGES)
    with ideal(model, [16] * 4):
        assert torch.equal(model(IMAGES), before)


def test_ideal_keeps_the_first_tokens_and_the_prefix():
    model = tiny_vit()
    tokens = model.blocks[0](torch.ones(1, 17, 32).cumsum(1) / 17)
    with ideal(model, [16, 8, 8, 8], "after"):
        assert torch.equal(model.blocks[0](torch.ones(1, 17, 32).cumsum(1) / 17), tokens[:, :9])


@pytest.mark.parametrize(
    ("counts", "placement", "match"),
    [
        ([16, 8], "inside", "Expected 4 counts"),
        ([16, 8, 9, 4], "inside", "only rise to the first again"),
        ([16, 8, 8, -1], "inside", "only rise to the first again"),
        ([16, 8, 8, 4], "between", "Expected placement to be one of before, inside, after"),
    ],
)
def test_ideal_refuses_what_does_not_fit(counts, placement, match):
    with pytest.raises(ValueError, match=match), ideal(tiny_vit(), counts, placement):
        pass


def test_ideal_refuses_an_attached_model_and_a_second_ideal():
    model = tiny_vit()
    with tg.attach(model, "tome", 1), pytest.raises(ValueError, match="its own forward"), ideal(model, [16] * 4):
        pass
    with ideal(model, [16, 8, 8, 8]), pytest.raises(ValueError, match="its own forward"), ideal(model, [16] * 4):
        pass


def test_ideal_counts_may_rise_to_the_first_again():
    seen = []
    model = tiny_vit()
    for block in model.blocks:
        block.attn.register_forward_hook(lambda m, args, out: seen.append(out.size(1)))
    for placement in ("inside", "before"):
        with ideal(model, [16, 8, 16, 16], placement):
            assert model.forward_features(torch.randn(1, 3, 32, 32)).size(1) == 17
    assert seen == [17, 9, 17] * 2


def test_ideal_may_open_the_maps_of_blocks_that_cut(monkeypatch):
    maps, plain = [], OpenMap.softmax
    monkeypatch.setattr(OpenMap, "softmax", lambda *args, **kw: maps.append(plain(*args, **kw)) or maps[-1])
    model, images = tiny_vit(), torch.randn(1, 3, 32, 32)
    outs = []
    for opened in (False, True):
        with ideal(model, [16, 16, 8, 8], open_maps=opened), torch.no_grad():
            outs.append(model(images))
        assert [m.size(2) for m in maps] == [17] * opened
    torch.testing.assert_close(*outs)


def test_ideal_cuts_models_of_other_libraries_and_refuses_blocks_that_take_more_than_tokens():
    transformers = library("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"image_size": 32, "patch_size": 8}
    with ideal(transformers.ViTModel(transformers.ViTConfig(**sizes)), [16, 8, 8, 4]) as model:
        assert model(IMAGES).last_hidden_state.shape == (2, 5, 32)
    rotary = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes))
    with ideal(rotary, [16, 8, 8, 4]) as model, pytest.raises(ValueError, match="rotary tables"):
        model(IMAGES)
