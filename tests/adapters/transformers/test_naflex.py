"""SigLIP 2 NaFlex: under every strategy an image gives the same result alone and in a padded batch."""

import copy

import pytest
import torch
from naflex_cases import SHAPES, STRATEGIES, attach, batch, make, run
from needs import library
from torch.testing import assert_close

import tokengraph as tg

library("transformers")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_image_is_what_it_is_alone_whatever_its_padding(strategy):
    model = make()
    with attach(model, strategy) as handle:
        out = run(model, batch())
        trace = handle.trace
        counts = [trace.counts_per_image(layer) for layer in range(4)]
        lifted = trace.lift(out.last_hidden_state)
        assert counts[0] == [16, 10, 9, 7] and min(map(min, counts)) < 7
        assert lifted.shape == (4, 20, 32) and lifted.isfinite().all()
        for width in (16, 20, 40):
            for b, (h, w) in enumerate(SHAPES):
                if h * w > width:
                    continue
                alone = run(model, batch([(h, w)], width))
                assert [trace.counts_per_image(layer)[0] for layer in range(4)] == [c[b] for c in counts]
                assert_close(alone.pooler_output[0], out.pooler_output[b], rtol=1e-4, atol=1e-4)
                n = counts[3][b]
                assert_close(alone.last_hidden_state[0, :n], out.last_hidden_state[b, :n], rtol=1e-4, atol=1e-4)
                mine = trace.lift(alone.last_hidden_state)[0, : h * w]
                assert_close(mine, lifted[b, : h * w], rtol=1e-4, atol=1e-4)
                assert (trace.lift(alone.last_hidden_state)[0, h * w :] == 0).all() or not trace.lineage().coarse


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_image_without_padding_is_what_a_batch_of_one_shape_gives(strategy):
    model = make()
    with attach(model, strategy) as handle:
        ragged = run(model, batch())
        counts = handle.trace.counts_per_image()
        equal = run(model, batch([(4, 4), (4, 4)], 16))
        assert handle.trace.state().asked.shape.one_grid == (4, 4)  # the plain way
        assert handle.trace.counts_per_image() == [counts[0]] * 2
    assert_close(ragged.pooler_output[0], equal.pooler_output[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", ["gtp", "ailurus", "grid-pool", "expedite", "tome"])
def test_shapes_with_as_many_patches_keep_their_own_grids(strategy):
    model, shapes = make(), [(2, 6), (3, 4), (12, 1)]
    with attach(model, strategy) as handle:
        out = run(model, batch(shapes, 12))
        assert handle.trace.present is None
        for b, shape in enumerate(shapes):
            alone = run(model, batch([shape], 12))
            assert_close(alone.pooler_output[0], out.pooler_output[b], rtol=1e-4, atol=1e-4)


def test_budgets_are_of_each_images_own_patches():
    model, inputs = make(), batch()
    for schedule, last in (
        (3, [7, 1, 1, 1]),
        ({1: 0.5}, [8, 5, 5, 4]),
        ({1: 9}, [9, 9, 9, 7]),
        ({1: 9, 2: 0.5}, [8, 5, 5, 4]),
        (tg.schedule.ratio(0.5), [2, 2, 2, 1]),
    ):
        with tg.attach(model, "random", schedule) as handle:
            run(model, inputs)
            assert handle.trace.counts_per_image() == last
            assert handle.trace.counts[-1] == max(last)


def test_the_trace_knows_each_image():
    model = make()
    with tg.attach(model, "dpc-knn", {1: 0.5}) as handle:
        out = run(model, batch()).last_hidden_state
        trace = handle.trace
        assert trace.valid().sum(1).tolist() == trace.counts_per_image() == [8, 5, 5, 4]
        assert trace.valid(0).sum(1).tolist() == [16, 10, 9, 7]
        assert trace.size().sum(1).tolist() == [16, 10, 9, 7]
        assert trace.size(0).sum(1).tolist() == [16, 10, 9, 7]
        assert trace.source(0).num_tokens == trace.source().num_tokens == 42
        maps = trace.as_maps(out)
        assert [m.shape for m in maps] == [(32, h, w) for h, w in SHAPES]
        assert_close(maps[1][:, 1, 2], trace.lift(out)[1, 1 * 5 + 2])
        assert [m.shape for m in trace.as_maps()] == [m.shape for m in maps]
        with pytest.raises(ValueError, match=r"images of one patch grid .*Use trace.as_maps"):
            trace.as_map(out)
        filled = trace.lift(out, fill=torch.full((4, 20, 32), 7.0))
        assert (filled != 7).all()  # nothing was dropped
        pos = trace.state(0).locate(out.device)
        assert pos[1, 9].tolist() == [1.5, 4.5] and pos[3, 7].tolist() == [0.0, 0.0]
    with tg.attach(model, tg.TopK(score="norm"), {1: 0.5}) as handle:
        out = run(model, batch()).last_hidden_state
        filled = handle.trace.lift(out, fill=torch.full((4, 20, 32), 7.0))
        assert (filled == 7).all(2).sum(1).tolist() == [8, 5, 4, 3]
        assert (handle.trace.size().sum(1)).tolist() == [8, 5, 5, 4]


def test_lift_gives_every_patch_again():
    model = make()
    with tg.attach(model, "tome", 3, lift=True) as handle:
        whole = run(model, batch()).last_hidden_state
        assert whole.shape == (4, 20, 32)
        norm = getattr(model, "vision_model", model).post_layernorm(handle.trace.output)
        assert_close(whole, handle.trace.lift(norm))
        assert run(model, batch(), return_dict=False)[0].shape == (4, 20, 32)


def test_clusters_hold_the_patches_of_one_image():
    model = make()
    with tg.attach(model, "tome", 3) as handle:
        run(model, batch())
        source = handle.trace.source()
        image = torch.repeat_interleave(torch.arange(4), torch.tensor([16, 10, 9, 7]))
        owner = torch.repeat_interleave(torch.arange(4), torch.tensor(handle.trace.counts_per_image()))
        assert torch.equal(owner[source.cluster], image)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_classifier_averages_what_is_left_of_each_image(strategy):
    model = make("Siglip2ForImageClassification")
    with attach(model, strategy) as handle:
        together = run(model, batch()).logits
        trace, core = handle.trace, model.vision_model
        tokens, lineage = core.post_layernorm(trace.output), trace.lineage()
        if lineage.coarse and not any(step.lossy for step in lineage.maps):
            rows, there = trace.lift(tokens), trace.valid(0)
        else:
            rows, there = tokens, trace.valid()
        mean = torch.stack([r[v].mean(0) for r, v in zip(rows, there, strict=True)])
        assert_close(together, model.classifier(mean), rtol=1e-4, atol=1e-4)
        for b, shape in enumerate(SHAPES):
            alone = run(model, batch([shape], 30)).logits[0]
            assert_close(alone, together[b], rtol=1e-4, atol=1e-4)


def test_the_pooling_head_sees_what_is_left():
    model = make()
    head = copy.deepcopy(getattr(model, "vision_model", model).head)
    with tg.attach(model, tg.TopK(score="norm"), {1: 0.5}) as handle:
        out = run(model, batch())
        for b, count in enumerate(handle.trace.counts_per_image()):
            assert_close(head(out.last_hidden_state[b : b + 1, :count])[0], out.pooler_output[b])
    with tg.attach(model, "tome", 3) as handle:
        out = run(model, batch())
        for b, (h, w) in enumerate(SHAPES):
            whole = handle.trace.lift(out.last_hidden_state)[b : b + 1, : h * w]
            assert_close(head(whole)[0], out.pooler_output[b])


@pytest.mark.parametrize("strategy", ["tome", "topk", "gtp"])
def test_the_tower_inside_the_whole_model_is_served(strategy):
    model, text = make("Siglip2Model"), torch.randint(3, 40, (2, 8))
    with torch.no_grad():
        plain = model(input_ids=text, **batch()).logits_per_image
        with tg.attach(model, "tome", 0):
            assert torch.equal(model(input_ids=text, **batch()).logits_per_image, plain)
        with attach(model, strategy) as handle:
            logits = model(input_ids=text, **batch()).logits_per_image
            assert handle.trace.counts_per_image(0) == [16, 10, 9, 7] and handle.trace.counts[-1] < 16
            alone = model(input_ids=text, **batch(SHAPES[1:2], 12)).logits_per_image
            assert_close(alone[0], logits[1], rtol=1e-4, atol=1e-4)
            features = model.get_image_features(**batch())
            assert getattr(features, "pooler_output", features).shape == (4, 32)


@pytest.mark.parametrize("strategy", ["tome", "topk", "gtp", "dpc-knn"])
def test_eager_attention_gives_what_the_fused_one_gives(strategy):
    outputs = []
    for implementation in ("sdpa", "eager"):
        model = make(attn_implementation=implementation)
        with attach(model, strategy):
            out = run(model, batch())
            outputs.append((out.pooler_output, out.last_hidden_state))
    assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
