"""timm's Eva under a strategy: sub-norms, rotary tables for all heads or for each, whole feature maps.

The laws that every model keeps are in ``test_architectures.py``.
"""

import pytest
import torch
from needs import library
from strategies import STRATEGIES, paired
from timm_cases import EVA
from timm_cases import make_eva as make
from torch.testing import assert_close

import tokengraph as tg

timm = library("timm")


def run(model, x):
    torch.manual_seed(7)
    with torch.no_grad():
        return model(x)


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "strategy"), paired(EVA, STRATEGIES))
def test_every_strategy_treats_images_alone(kind, strategy, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES[strategy]) as handle:
        alone = torch.cat([run(model, image[None]) for image in images])
        assert_close(run(model, images), alone, rtol=1e-4, atol=1e-4)
        assert min(handle.trace.counts + handle.trace.counts_inside) < 16


@pytest.mark.parametrize("kind", EVA)
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
        patch = handle.trace.lineage(1).ancestor
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
    from tokengraph.adapters.parts.rotary import coarse_tables
    from tokengraph.flat.layout import Layout
    from tokengraph.maps.lineage import Lineage

    angle = torch.tensor([[0.0], [0.5], [3.0], [-3.0]])  # the last two lie around pi
    map_ = tg.Assignment.from_dense(torch.tensor([[0, 0, 1, 1]]), 2)
    cos, sin = coarse_tables((angle.cos(), angle.sin()), Lineage(Layout(1, 4), Layout(1, 2), (map_,)))
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


def test_what_cannot_be_served_is_refused_by_name(images):
    with pytest.raises(ValueError, match="blocks of class EvaBlock .got EvaBlockPostNorm at 0"):
        tg.attach(make("eva", use_post_norm=True, init_values=None), "tome", 3)
    model = make("eva02", patch_drop_rate=0.5).train()
    with tg.attach(model, "tome", 1), pytest.raises(ValueError, match="rotary tables of the whole grid"):
        model(images)
