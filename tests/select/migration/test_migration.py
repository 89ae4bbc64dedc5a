"""Token migration (after Fast-iTPN; the definition is this project's own) in attached plain vision transformers."""

import copy

import pytest
import torch
from needs import library
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.select.migration.migration import TokenMigration
from tokengraph.select.migration.redundancy import REPLENISH, Departure, pick_redundant, replenish, take_rows
from tokengraph.testing import check_select, tiny_vit


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


def _model(**options):
    library("timm")
    return tiny_vit(img_size=64, depth=4, **options)


def _by_hand(model, images, leave, rule, stored):
    """The definition, step by step, on a plain model: ``leave`` says how many tokens leave after which block."""
    tokens = model._pos_embed(model.patch_embed(images))
    ids, steps = torch.arange(64).expand(2, -1), []
    for layer, block in enumerate(model.blocks, start=1):
        keys = block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, block.attn.num_heads, -1))[:, 1:, 1]
        tokens = block(tokens)
        if layer in leave:
            board = None if stored or steps else (8, 8)
            choice = pick_redundant(keys if stored else tokens[:, 1:], leave[layer], board)
            steps.append(Departure(layer, choice, ids, tokens[:, 1:]))
            ids = ids.gather(1, choice.keep)
            tokens = torch.cat([tokens[:, :1], take_rows(tokens[:, 1:], choice.keep)], dim=1)
    whole = replenish(tokens[:, 1:], ids, steps, rule)
    return model.norm(torch.cat([tokens[:, :1], whole], dim=1))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("rule", REPLENISH)
def test_every_patch_comes_back_with_what_the_definition_says(images, rule, stored):
    model, options = _model(), {"similarity": "keys", "split": "rank"} if stored else {}
    with torch.no_grad():
        wanted = _by_hand(model, images, {1: 20, 2: 14, 3: 10}, rule, stored)
        schedule = {1: 44, 2: 30, 3: 20, 4: "reconstruct"}
        with tg.attach(model, TokenMigration(replenish=rule, **options), schedule) as handle:
            out = model.forward_features(images)
        assert handle.trace.counts == [64, 44, 30, 20, 64]
    assert_close(out, wanted, rtol=1e-5, atol=1e-5)


def test_by_default_a_third_leaves_three_times_and_all_are_back_at_the_end(images):
    model = _model()
    with tg.attach(model, "token-migration") as handle, torch.no_grad():
        out = model.forward_features(images)
    assert handle.trace.counts == [64, 45, 32, 23, 64] and out.shape == (2, 65, 32)


def test_nobody_leaves_is_the_plain_model_bit_for_bit(images):
    model = _model()
    with torch.no_grad():
        plain = model(images)
        with tg.attach(model, TokenMigration(schedule={})):
            assert torch.equal(model(images), plain)


def test_feature_maps_between_have_no_hole(images):
    model = _model()
    with torch.no_grad():
        plain = model.forward_intermediates(images, intermediates_only=True)
        with tg.attach(model, TokenMigration()):
            maps = model.forward_intermediates(images, intermediates_only=True)
    assert_close(maps[0], plain[0])  # tokens leave with what the block gave them
    assert all((m.abs().amax(dim=1) > 0).all() and m.shape == (2, 32, 8, 8) for m in maps)


def test_dropped_tokens_get_gradient_from_the_end_only(images):
    model = _model()
    seen = {}
    hook = model.blocks[0].mlp.register_forward_hook(lambda m, a, out: out.retain_grad() or seen.update(out=out))
    with tg.attach(model, TokenMigration(schedule={1: 0.7}, replenish="identity")) as handle:
        out = model.forward_features(images)
        gone = torch.ones(2, 64).scatter_(1, handle.trace.lineage(1).ancestor, 0.0).bool()
        out[:, 1:][~gone].sum().backward()  # nothing of a dropped token's row is asked for
        gradient = seen["out"].grad[:, 1:]
        assert (gradient[gone] == 0).all() and (gradient[~gone] != 0).any()
    hook.remove()


def test_checkpointed_gradients_copies_and_compile(images):
    grads = []
    for checkpointed in (False, True):
        model = _model().train()
        model.set_grad_checkpointing(checkpointed)
        with tg.attach(model, TokenMigration(replenish="twin_delta")):
            model.forward_features(images).square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*grads, strict=True):
        assert_close(plain, again)
    model = _model()
    with tg.attach(model, TokenMigration()), torch.no_grad():
        eager = model.forward_features(images)
        assert torch.equal(copy.deepcopy(model).forward_features(images), eager)
        torch.compiler.reset()
        compiled = torch.compile(model.forward_features, fullgraph=True, backend="eager")
        assert_close(compiled(images), eager)


@pytest.mark.parametrize("rule", REPLENISH)
def test_images_do_not_see_their_batch(images, rule):
    model = _model()
    with tg.attach(model, TokenMigration(replenish=rule)), torch.no_grad():
        together = model.forward_features(images)
        assert_close(together, torch.cat([model.forward_features(image[None]) for image in images]))


@pytest.mark.parametrize("select", [TokenMigration(), TokenMigration(similarity="tokens", replenish="twin_copy")])
def test_the_laws_hold(select):
    check_select(select)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replenish": "twin"}, "replenish to be one of identity"),
        ({"similarity": "values"}, "similarity to be one of keys"),
        ({"schedule": {0: 0.5}}, "layers counted from 1"),
        ({"schedule": -2}, "a number of tokens >= 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenMigration(**options)


def test_what_an_attached_model_cannot_do_is_refused():
    with pytest.raises(ValueError, match="size_weight=False in an attached model"):
        tg.attach(_model(), TokenMigration(size_weight=True))
    with pytest.raises(ValueError, match="layers 1 to 4 in the schedule"):
        tg.attach(_model(), TokenMigration(schedule={9: 0.5}))
