"""A user's own nn.TransformerEncoder: masks, the fast path, full resolution, and what is refused."""

import pytest
import torch
from multihead_cases import OWN, Own, attach, checkpointed_call, images, make, run
from torch import nn
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.adapters import EncoderLayers


@pytest.fixture(name="images")
def two_images():
    return images()


def test_layers_that_leave_the_tokens_alone_keep_torchs_fast_path(images, monkeypatch):
    calls, fast = [], torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda x, *args: calls.append(x.size(1)) or fast(x, *args)
    )
    model = make("own")
    for strategy, sizes in ((tg.TopK(), [17, 9]), (tg.ToMe(), [17]), (tg.GTP(scales=False), [17, 9])):
        calls.clear()
        with attach(model, "own", strategy, {2: 8}):
            run(model, images)
        assert calls == sizes  # sizes weigh keys by a mask, which the fast path does not take


def test_user_masks_are_carried():
    kind, images = "own", torch.randn(2, 3, 32, 32)
    model = make(kind)
    padding = torch.zeros(2, 17, dtype=torch.bool)
    padding[:, 9:] = True
    square = torch.randn(17, 17)
    with attach(model, kind, "tome", 0):
        for masks in ({"src_key_padding_mask": padding}, {"mask": square}):
            held = run(model, images, **masks)
            with torch.no_grad():
                assert not torch.equal(held, run(model, images))
    with attach(model, kind, tg.TopK(score="norm"), {1: 8}) as handle:
        masks = {"src_key_padding_mask": padding, "mask": square > 1}
        masks["mask"][:, 0] = False
        out = run(model, images, **masks)
        patch = handle.trace.lineage(1).ancestor
    x = []
    hook = model.encoder.layers[0].register_forward_hook(lambda m, args, o: x.append(o))
    run(model, images, **masks)
    hook.remove()
    for b in range(2):
        rows = torch.cat([torch.zeros(1, dtype=torch.long), patch[b] + 1])
        y = x[0][b][rows][None]
        with torch.no_grad():
            for layer in model.encoder.layers[1:]:
                barred = masks["mask"][rows][:, rows] | padding[b, rows]
                y = layer(y, src_mask=barred)
            assert_close(out[b], model.head(model.encoder.norm(y)[:, 0])[0], rtol=1e-4, atol=1e-5)


def test_user_masks_change_nothing_where_nothing_is_removed(images):
    model = make("own")
    padding = torch.arange(17).expand(2, -1) > 9
    square = torch.randn(17, 17) > 1
    square[:, 0] = False
    both = {"src_key_padding_mask": padding, "mask": square}
    for given in (both, {"src_key_padding_mask": padding}, {"mask": square}):
        plain, slow = run(model, images, **given), model(images, **given)
        with attach(model, "own", "tome", 0):
            assert torch.equal(run(model, images, **given), plain)
            assert torch.equal(model(images, **given), slow)  # with gradients torch takes another path
    for mask in (torch.randn(17, 17), torch.randn(8, 17, 17)):
        slow = model(images, mask=mask)
        with attach(model, "own", "tome", 0):
            assert torch.equal(model(images, mask=mask), slow) and slow.isfinite().all()


def test_lift_gives_every_patch_again_also_when_blocks_are_computed_again(images):
    model = make("own")
    with attach(model, "own", "tome", 3, lift=True) as handle, torch.no_grad():
        tokens = model.tokens(images)
        assert tokens.shape == (2, 17, 32) and handle.trace.counts[-1] == 7
        own = handle.trace.lift(model.encoder.norm(handle.trace.output))
        assert_close(tokens[:, 1:], own)
    grads = []
    for other in (False, True):
        model = make("own")
        with attach(model, "own", "tome", 3, lift=True):
            for block in model.encoder.layers:
                block.forward = checkpointed_call(block.forward)
            loss = model.tokens(images).square()[..., :5].mean()
            if other:  # a run in between, whose clusters backward must not take
                model.tokens(images.flip(0) * 2)
            loss.backward()
            for block in model.encoder.layers:
                del block.__dict__["forward"]
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)


def test_other_image_sizes_have_their_own_grid():
    model = make("own")
    model.pos.data = torch.randn(1, 25, 32)
    with attach(model, "own", tg.GridPool(), {1: 0.5}) as handle:
        run(model, torch.randn(1, 3, 32, 48))
        assert handle.trace.grid == (4, 6) and handle.trace.counts[0] == 24


def test_what_cannot_be_served_is_refused_by_name(images):
    with pytest.raises(ValueError, match="norm_first=True .*post-norm layer"):
        tg.attach(Own(norm_first=False), "tome", 3, adapter=OWN)
    with pytest.raises(ValueError, match="Expected an adapter that serves Own"):
        tg.attach(Own(), "tome", 3, adapter=EncoderLayers("blocks", num_prefix=1, grid=(4, 4)))
    with pytest.raises(ValueError, match="Expected layers at 'head' .got Linear"):
        tg.attach(Own(), "tome", 3, adapter=EncoderLayers("head", num_prefix=1, grid=(4, 4)))
    with pytest.raises(TypeError, match="adapter as an Adapter"):
        tg.attach(Own(), "tome", 3, adapter="encoder")
    with pytest.raises(ValueError, match="EncoderLayers"):
        tg.attach(Own(), "tome", 3)
    with pytest.raises(ValueError, match="no nn.Sequential, to put score_predictor"):
        tg.attach(nn.Sequential(Own().encoder), tg.DynamicViT(), adapter=EncoderLayers("0", num_prefix=1, grid=(4, 4)))
    with pytest.raises(ValueError, match="a grid"):
        EncoderLayers("encoder", num_prefix=1, grid=(0, 4))
    bare = EncoderLayers("encoder", num_prefix=0, grid=(4, 4))
    with pytest.raises(ValueError, match="a model with a class token"):
        tg.attach(Own(), tg.TopK(), 3, adapter=bare)
    model = Own().eval()
    model.encoder.layers[1].self_attn.add_zero_attn = True
    with pytest.raises(ValueError, match="over the tokens alone .*block 1"):
        tg.attach(model, "tome", 3, adapter=OWN)
    model = Own()
    with (
        tg.attach(model.train(), tg.DynamicViT(layers=[1]), adapter=OWN),
        pytest.raises(ValueError, match="no attn_mask while"),
    ):
        model(images, mask=torch.zeros(17, 17))
    with tg.attach(model, "tome", 3, adapter=OWN), pytest.raises(ValueError, match="is_causal=False"):
        model(images, mask=nn.Transformer.generate_square_subsequent_mask(17))
    assert not any("_tokengraph" in m.__dict__ for m in model.modules())


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"grid": None}, TypeError, r"grid of the patches as two ints \(H, W\) \(got None\)"),
        ({"grid": 14}, TypeError, r"two ints \(H, W\) \(got 14\)"),
        ({"grid": (4.0, 4.0)}, TypeError, r"two ints"),
        ({"grid": (4, 4, 4)}, ValueError, r"a grid \(H, W\)"),
        ({"grid": (0, 4)}, ValueError, r"a grid \(H, W\)"),
        ({"num_prefix": None}, TypeError, r"num_prefix as an int \(got None\)"),
        ({"num_prefix": -1}, ValueError, r"num_prefix >= 0"),
        ({"layers": None}, TypeError, r"paths of layers and embedding as str \(got None"),
        ({"embedding": torch.nn.Identity()}, TypeError, r"paths of layers and embedding as str"),
    ],
)
def test_encoder_layers_says_what_it_wants(given, error, match):
    with pytest.raises(error, match=match):
        tg.adapters.EncoderLayers(**({"layers": "0", "num_prefix": 0, "grid": (4, 4)} | given))
