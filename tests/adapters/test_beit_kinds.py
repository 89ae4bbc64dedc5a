"""Every kind of BEiT under a strategy: timm's, transformers' and Data2Vec."""

import pytest
import torch
from beit_cases import STRATEGIES, TIMM, TRANSFORMERS, First, OpenFirst, make, run
from quick import quick_only
from strategies import Uneven, check_alone, paired
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.testing.model_case import tensors

KINDS = TIMM | TRANSFORMERS
EXPORTED = ["timm_both", "beit_both", "beit_own", "data2vec_own"]
EAGER = {"attn_implementation": "eager"}


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "strategy"), paired(KINDS, STRATEGIES))
def test_every_strategy_runs_and_treats_images_alone(kind, strategy, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES[strategy]) as handle:
        together = run(model, images)[0]
        assert together.isfinite().all() and min(handle.trace.counts + handle.trace.counts_inside) < 16
        check_alone(together, [run(model, image[None])[0] for image in images], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_map_that_weighs_the_values(kind, images):
    seen = []
    for select in (First(), OpenFirst()):
        with tg.attach(make(kind), select, {1: 12, 2: 8}) as handle:
            run(handle.model, images)
        seen.append([t for step in select.seen for t in step])
    for ours, theirs in zip(*seen, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["timm_both", "beit_both", "data2vec_own"])
def test_autocast_and_half_precision_stay_near(kind, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES["grid-pool"]):
        wanted = run(model, images)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(run(model, images)[0].float(), wanted, rtol=0.1, atol=0.1)
        assert_close(run(model.bfloat16(), images.bfloat16())[0].float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["timm_own", "beit_own", "data2vec_shared"])
def test_folding_the_size_bias_gives_what_the_mask_gives(kind, images):
    model = make(kind)
    with tg.attach(model, "tome", 3):
        masked = run(model, images)[0]
    with tg.attach(model, "tome", 3, size_bias="fold"):
        assert_close(run(model, images)[0], masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", [tg.ToMe(), tg.TopK(score="norm"), tg.TopK(score="norm", fuse=True)], ids=repr)
@pytest.mark.parametrize("kind", ["timm_both", "beit_both", "data2vec_own"])
def test_images_with_different_numbers_of_tokens_are_what_they_are_alone(kind, inner):
    images = torch.randn(4, 3, 32, 32) * torch.tensor([0.1, 1.0, 3.0, 10.0]).view(4, 1, 1, 1)
    model = make(kind)
    with tg.attach(model, Uneven(inner), [4, 3, 2]) as handle:
        together = run(model, images)[0]
        counts = [handle.trace.counts_per_image(layer) for layer in range(4)]
        assert any(len(set(c)) > 1 for c in counts)
        for b, image in enumerate(images):
            alone = run(model, image[None])[0][0]
            mine = together[b] if alone.dim() == 1 else together[b, : len(alone)]
            assert_close(mine, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["tome", "topk-class", "expedite"])
@pytest.mark.parametrize("kind", ["timm_both", "beit_both", "data2vec_both"])
def test_tables_of_the_bias_get_their_gradients_under_checkpointing(kind, strategy, images):
    grads = []
    for checkpointed in (False, True):
        model = make(kind, drop_path_rate=0.0).train()
        if checkpointed and kind in TIMM:
            model.set_grad_checkpointing()
        elif checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with tg.attach(model, *STRATEGIES[strategy]):
            tensors(model(images))[0].square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    tables = [grad for name, grad in grads[0].items() if "relative_position_bias_table" in name]
    assert len(tables) == 4 and all(grad.abs().sum() > 0 for grad in tables)
    assert grads[0].keys() == grads[1].keys()
    for name, plain in grads[0].items():
        assert_close(plain, grads[1][name])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("timm_both", {}), ("beit_both", {}), ("beit_both", EAGER), ("data2vec_both", {}), ("data2vec_both", EAGER)],
    ids=str,
)
def test_learned_pruning_trains_beside_the_bias(kind, options, images):
    model = make(kind, **options).train()
    with tg.attach(model, tg.DynamicViT(0.5, layers=[1, 2])) as handle:
        (tensors(model(images))[0].square().mean() + handle.trace.decisions[-1].mean()).backward()
        named = dict(model.named_parameters())
    learned = [p for n, p in named.items() if "score_predictor" in n or "relative_position_bias_table" in n]
    assert len(learned) > 4 and all(p.grad is not None and p.grad.isfinite().all() for p in learned)


@pytest.mark.parametrize("strategy", quick_only(["topk-class"], ["tome", "topk-class"]))
@pytest.mark.parametrize("kind", quick_only(EXPORTED[:1], EXPORTED))
def test_is_exported_with_the_eager_result(kind, strategy, images):
    model = make(kind)
    with tg.attach(model, *STRATEGIES[strategy]), torch.no_grad():
        program = torch.export.export(model, (images,))
        assert_close(tensors(program.module()(images))[0], tensors(model(images))[0])


@pytest.mark.parametrize("kind", ["timm_own", "timm_both", "beit_own", "data2vec_own"])
def test_a_graph_is_made_from_a_model(kind, images):
    graph = tg.TokenGraph.from_model(make(kind), images, layer=1)
    assert graph.num_nodes == 32 and graph.grid == (4, 4) and graph.x.shape == (32, 32)
