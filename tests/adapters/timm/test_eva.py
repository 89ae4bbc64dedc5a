"""The contract of attach over timm's Eva family: sub-norms, rotary tables for all heads or for each."""

import copy
import inspect

import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg

try:
    from tokengraph.compat import timm
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

KINDS = {
    "eva": {"init_values": 0.1},
    "eva02": {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False},
    "rope": {"use_rot_pos_emb": True, "attn_type": "rope", "num_reg_tokens": 2, "qk_norm": True},
    "rope_mixed": {"use_rot_pos_emb": True, "rope_type": "mixed", "attn_type": "rope"},
    "dinov3": {
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "use_abs_pos_emb": False,
        "num_reg_tokens": 4,
        "init_values": 1e-1,
    },
    "average": {"use_rot_pos_emb": True, "class_token": False, "global_pool": "avg"},
    "inner_norm": {"use_rot_pos_emb": True, "scale_attn_inner": True, "drop_path_rate": 0.2},
}
STRATEGIES = {
    "tome": (tg.ToMe(), 3),
    "topk": (tg.TopK(score="norm"), {1: 10, 2: 5}),
    "gtp": (tg.GTP(sparsity=0.8), 3),
    "dpc-knn": (tg.DPCKNN(), {1: 0.5}),
    "expedite": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: "reconstruct"}),
    "dynamicvit": (tg.DynamicViT(layers=[1, 2]), None),
}


def make(kind, **more):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    known = inspect.signature(timm.models.eva.Eva).parameters
    if missing := [name for name in KINDS[kind] if name not in known]:
        pytest.skip(f"this timm makes no Eva with {missing[0]}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.models.eva.Eva(**sizes | KINDS[kind] | more).eval()
        torch.nn.init.normal_(model.head.weight)
    return model


def run(model, x):
    torch.manual_seed(7)
    with torch.no_grad():
        return model(x)


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_removed_is_bit_identical_and_remove_restores(kind, train, images):
    model = make(kind).train(train)
    plain, keys = run(model, images), list(model.state_dict())
    handle = tg.attach(model, "tome", 0)
    assert torch.equal(run(model, images), plain) and list(model.state_dict()) == keys
    handle.remove()
    tg.attach(model, "tome", 3).remove()
    assert torch.equal(run(model, images), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_strategy_treats_images_alone(kind, strategy, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES[strategy]) as handle:
        alone = torch.cat([run(model, image[None]) for image in images])
        assert_close(run(model, images), alone, rtol=1e-4, atol=1e-4)
        assert min(handle.trace.counts) < 16


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_open_map(kind, images):
    seen = []

    class Spy(tg.Select):
        merges, needs_map = False, False

        def __call__(self, tokens, budget):
            stats = tokens.attention
            seen.append((stats.rows(0, 3), stats.column_sums(), stats.diagonal()))
            return tg.topk(tokens.x.sum(dim=2), budget)

    class Open(Spy):
        needs_map = True

    for select in (Spy(), Open()):
        model = make(kind)
        with tg.attach(model, select, {2: 12}):
            run(model, images)
    for ours, theirs in zip(*seen, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["eva02", "rope_mixed", "dinov3"])
def test_rotary_tables_follow_the_tokens(kind, images):
    model = make(kind)
    prefix = model.num_prefix_tokens
    with tg.attach(model, tg.TopK(score="norm"), {1: 7}) as handle, torch.no_grad():
        out = model.forward_features(images)
        patch = handle.trace.state(1).patch
    with torch.no_grad():  # by hand, one image at a time
        x, rope = model._pos_embed(model.patch_embed(images))
        tables = list(rope) if kind == "rope_mixed" else [rope] * 3
        x = model.blocks[0](model.norm_pre(x), rope=tables[0])
        for b in range(2):
            own = torch.cat([x[b, :prefix], x[b, prefix:][patch[b]]])[None]
            for block, table in zip(model.blocks[1:], tables[1:], strict=True):
                own = block(own, rope=table[..., patch[b], :])
            assert_close(out[b], model.norm(own)[0], rtol=1e-4, atol=1e-5)


def test_merged_tokens_turn_by_the_circular_mean_of_their_patches():
    from tokengraph.adapters.rotary import coarse_tables
    from tokengraph.state import State

    angle = torch.tensor([[0.0], [0.5], [3.0], [-3.0]])  # the last two lie around pi
    map_ = tg.Assignment.from_dense(torch.tensor([[0, 0, 1, 1]]), 2)
    cos, sin = coarse_tables((angle.cos(), angle.sin()), State(1, 4, 2, (1, 4), maps=(map_,)))
    turned = torch.atan2(sin, cos).flatten()
    assert cos.shape == (1, 1, 2, 1)
    assert_close(turned.abs(), torch.tensor([0.25, torch.pi]))


def test_feature_maps_are_whole_and_pooling_sees_every_patch(images):
    model = make("average")
    with tg.attach(model, "tome", 3) as handle, torch.no_grad():
        maps = model.forward_intermediates(images, intermediates_only=True)
        assert {m.shape for m in maps} == {(2, 32, 4, 4)}
        features = model.forward_features(images)
        assert_close(model.pool(features), handle.trace.lift(features).mean(dim=1))


@pytest.mark.parametrize("kind", ["eva02", "rope_mixed"])
def test_copies_checkpointing_and_compile(kind, images):
    model = make(kind)
    with tg.attach(model, "tome", 3):
        out = run(model, images)
        assert torch.equal(run(copy.deepcopy(model), images), out)
        torch.compiler.reset()
        assert_close(run(torch.compile(model, fullgraph=True, backend="eager"), images), out)
    grads = []
    for checkpointed in (False, True):
        model = make(kind).train()
        model.set_grad_checkpointing(checkpointed)
        with tg.attach(model, "tome", 3):
            model(images).square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*grads, strict=True):
        assert_close(plain, again)


def test_what_cannot_be_served_is_refused_by_name(images):
    with pytest.raises(ValueError, match="blocks of class EvaBlock .got EvaBlockPostNorm at 0"):
        tg.attach(make("eva", use_post_norm=True, init_values=None), "tome", 3)
    model = make("eva02", patch_drop_rate=0.5).train()
    with tg.attach(model, "tome", 1), pytest.raises(ValueError, match="rotary tables of the whole grid"):
        model(images)
