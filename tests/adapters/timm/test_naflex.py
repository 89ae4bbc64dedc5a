"""timm's NaFlexVit under a strategy: patches of images of any shape, and plain images.

The laws that every model keeps are in ``test_architectures.py``.
"""

import pytest
import torch
from needs import library
from strategies import paired
from timm_cases import NAFLEX, SHAPES
from timm_cases import make_naflex as make
from timm_cases import patches_of as batch
from torch.testing import assert_close

import tokengraph as tg

naflexvit = getattr(library("timm").models, "naflexvit", None)
if naflexvit is None or not hasattr(naflexvit.NaFlexVit, "_forward_embeds"):
    pytest.skip("a timm without NaFlexVit, or an older one, which is refused", allow_module_level=True)

STRATEGIES = {
    "tome": (tg.ToMe(), 3),
    "dpc-knn": (tg.DPCKNN(), {1: 0.75, 2: 0.5}),
    "ailurus": (tg.AiluRus(lam=9), {1: 0.5}),
    "topk": (tg.TopK(score="norm"), {2: 0.5}),
    "fuse": (tg.TopK(score="norm", fuse=True), {1: 8, 2: 5}),
    "random": (tg.Random(), 2),
    "gtp": (tg.GTP(), 2),
    "gtp, sparse": (tg.GTP(sparsity=0.5), 2),
    "expedite": (tg.Expedite(), {1: 0.5, 2: "reconstruct"}),
    "dynamicvit": (tg.DynamicViT(layers=[1, 2]), None),
    "grid-pool": (tg.GridPool(), {1: 0.5, 3: 0.25}),
    "migration": (tg.TokenMigration(), {1: 0.7, 2: 0.5, 3: "reconstruct"}),
}


def run(model, inputs):
    torch.manual_seed(7)
    with torch.no_grad():
        return model(inputs)


def attach(model, strategy, **more):
    torch.manual_seed(3)  # of prediction modules
    return tg.attach(model, *STRATEGIES[strategy], **more)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", NAFLEX)
def test_nothing_removed_is_bit_identical_for_padded_patches_and_for_images(kind, train):
    model = make(kind, train, proj_drop_rate=0.1, drop_path_rate=0.1)
    for inputs in (batch(), batch([(4, 4), (2, 8)], 16), torch.randn(2, 3, 16, 16)):
        plain = run(model, inputs)
        with tg.attach(model, "tome", 0):
            assert torch.equal(run(model, inputs), plain)


@pytest.mark.parametrize(("kind", "strategy"), paired(NAFLEX, STRATEGIES))
def test_every_image_is_what_it_is_alone_whatever_its_padding(kind, strategy):
    model = make(kind)
    with attach(model, strategy) as handle:
        logits, trace = run(model, batch()), handle.trace
        counts = [trace.counts_per_image(layer) for layer in range(4)]
        assert counts[0] == [16, 10, 9, 7] and min(map(min, counts)) < 7
        for width in (16, 40):
            for b, (h, w) in enumerate(SHAPES):
                alone = run(model, batch([(h, w)], width))
                assert [trace.counts_per_image(layer)[0] for layer in range(4)] == [c[b] for c in counts]
                assert_close(alone[0], logits[b], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_patches_of_one_shape_give_what_their_image_gives(strategy):
    model, images = make("avg"), torch.randn(2, 3, 16, 16)
    patches, _ = naflexvit.batch_patchify(images, (4, 4))
    inputs = {**batch([(4, 4), (4, 4)], 16), "patches": patches}
    with attach(model, strategy) as handle:
        assert_close(run(model, inputs), run(model, images), rtol=1e-4, atol=1e-4)
        run(model, inputs)
        assert handle.trace.as_map().shape == (2, 32, 4, 4)


def test_features_say_where_tokens_are_left():
    model = make()
    with tg.attach(model, "dpc-knn", {1: 0.5}) as handle, torch.no_grad():
        out = model.forward_features(**batch())
        assert out["patch_valid"].sum(1).tolist() == handle.trace.counts_per_image() == [8, 5, 5, 4]
        assert out["patches"].shape == (4, 2 + 8, 32)
        assert [m.shape for m in handle.trace.as_maps(out["patches"])] == [(32, h, w) for h, w in SHAPES]
    with tg.attach(model, "dpc-knn", {1: 0.5}, lift=True) as handle, torch.no_grad():
        out = model.forward_features(**batch())
        assert out["patches"].shape == (4, 22, 32) and out["patch_valid"].sum(1).tolist() == [16, 10, 9, 7]


def test_intermediates_come_back_whole():
    model, inputs = make(), batch()
    with torch.no_grad():
        try:
            plain = model.forward_intermediates(inputs, output_fmt="NLC", output_dict=True)
        except AssertionError as error:  # of timm before it took patches here
            pytest.skip(str(error))
        with tg.attach(model, "tome", 3):
            got = model.forward_intermediates(inputs, output_fmt="NLC", output_dict=True)
            maps = model.forward_intermediates(torch.randn(2, 3, 16, 16), intermediates_only=True)
    assert [t.shape for t in got["image_intermediates"]] == [t.shape for t in plain["image_intermediates"]]
    assert torch.equal(got["patch_valid"], plain["patch_valid"])
    assert [m.shape for m in maps] == [(2, 32, 4, 4)] * 3


def test_class_attention_of_each_image_ignores_padding():
    model = make()
    for select in (tg.TopK(), tg.GTP(score="cls-mean")):
        with tg.attach(model, select, {1: 0.5, 2: 0.3}) as handle:
            together = run(model, batch())
            assert handle.trace.counts_per_image() == [5, 3, 3, 3]
            for b, shape in enumerate(SHAPES):
                assert_close(run(model, batch([shape], 30))[0], together[b], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_it_gives_the_eager_result_for_images_and_for_patches():
    model, images, inputs = make("avg"), torch.randn(2, 3, 16, 16), batch()
    with attach(model, "tome"), torch.no_grad():
        whole, ragged = model(images), model(inputs)
        torch.compiler.reset()
        assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), whole)
        torch.compiler.reset()
        assert_close(torch.compile(model, backend="eager")(inputs), ragged)


@pytest.mark.parametrize("kind", ["avg", "class", "map"])
def test_learned_pruning_trains(kind):
    model = make(kind, train=True)
    with tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2])) as handle:
        model(batch()).square().sum().backward()
        valid = handle.trace.valid(0)
        assert all((d[~valid] == 0).all() and 0 < d.sum() < 42 for d in handle.trace.decisions)
        grads = [p.grad for p in model.score_predictor.parameters()]
        assert all(g is not None and g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)


def test_a_graph_is_made_of_patches_and_of_images():
    model = make()
    graph = tg.TokenGraph.from_model(model, batch(), layer=1)
    assert graph.counts == [16, 10, 9, 7] and graph.grids == SHAPES and graph.prefix.shape == (4, 2, 32)
    assert tg.TokenGraph.from_model(model, torch.randn(2, 3, 16, 16), layer=1).grid == (4, 4)


def test_what_cannot_be_served_is_refused_by_name(monkeypatch):
    with pytest.raises(ValueError, match="without rotary embeddings and patch dropout .*rotary"):
        tg.attach(make(rope_type="axial"), "tome", 3)
    with pytest.raises(ValueError, match="without rotary embeddings and patch dropout .*patch dropout"):
        tg.attach(make(patch_drop_rate=0.2), "tome", 3)
    model, inputs = make(), batch()
    with monkeypatch.context() as older:
        older.delattr(naflexvit.NaFlexVit, "_forward_embeds")
        with pytest.raises(ValueError, match="Expected a newer timm"):
            tg.attach(model, "tome", 3)
    with tg.attach(model, "tome", 3), torch.no_grad():
        with pytest.raises(ValueError, match="no attn_mask together with patches"):
            model({**inputs, "attn_mask": torch.zeros(4, 1, 22, 22)})
        swapped = inputs["patch_coord"].clone()
        swapped[0, [0, 1]] = swapped[0, [1, 0]]
        with pytest.raises(ValueError, match="in reading order"):
            model({**inputs, "patch_coord": swapped})
        holes = inputs["patch_valid"].clone()
        holes[1, 2] = False
        with pytest.raises(ValueError, match=r"a mask of the first H \* W patches"):
            model({**inputs, "patch_valid": holes})
