"""Images that keep different numbers of tokens run in groups of similar ones: what is padding, and what comes out."""

import threading

import pytest
import torch
from gradients import parameter_gradients
from needs import library
from strategies import CLASS, STRATEGIES
from torch import nn
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.attach.ragged import BEST, PADDING, groups_of, ragged_batches, run_ragged
from tokengraph.flat.layout import Layout
from tokengraph.testing import tiny_vit

library("timm")
RAGGED = {"mpm": None, "g2tm": tg.G2TM(0.1), "algm": tg.ALGM(layers=(1, 2)), "ats": None}
BLOCK = nn.Identity().eval()


def images(count=6):
    """Flat images with noise on a share of them that rises, so that thresholds keep more and more tokens."""
    out = torch.zeros(count, 3, 32, 32)
    draw = torch.Generator().manual_seed(1)
    for i in range(count):
        rows = 8 + 24 * i // max(count - 1, 1)
        out[i, :, :rows] = torch.randn(3, rows, 32, generator=draw)
    return out


def rows_of_mlps(model):
    """Counts the rows that the MLPs of a model see."""
    seen = []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[:2].numel()))
    return seen


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ([100, 40, 95, 42], [[0, 2], [3, 1]]),
        ([5, 5, 5], [[0, 1, 2]]),
        ([100, 50, 10, 0], [[0], [1], [2], [3]]),
        ([], []),
    ],
)
def test_groups_of_puts_similar_images_together(counts, groups):
    assert groups_of(counts) == groups


def test_groups_of_pads_at_most_a_tenth():
    counts = torch.randint(1, 200, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = groups_of(counts)
    assert sorted(sum(groups, [])) == list(range(64))
    for group in groups:
        rows = max(counts[i] for i in group) * len(group)
        assert rows - sum(counts[i] for i in group) <= PADDING * rows


def test_in_groups_gives_each_group_its_rows_and_leaves_padding_zero():
    seen = []

    def part(rows, bias):
        seen.append((list(rows.shape), bias))
        return rows + 1

    layout = Layout.of(3, 11, (2, 7, 2), torch.device("cpu"))
    out = run_ragged(part, torch.ones(3, 8, 4), None, layout, 1, {}, block=BLOCK)
    assert seen == [([1, 8, 4], None), ([2, 3, 4], None)]
    assert out[:, :, 0].tolist() == [[2.0] * 3 + [0.0] * 5, [2.0] * 8, [2.0] * 3 + [0.0] * 5]


def test_in_groups_takes_no_mask_where_nothing_is_padding():
    masks = []
    layout = Layout.of(2, 9, (2, 7), torch.device("cpu"))
    bias = torch.tensor([[0.0] * 2 + [-torch.inf] * 5, [0.0] * 7])[:, None, None]
    run_ragged(lambda rows, own: masks.append(own) or rows, torch.ones(2, 7, 4), bias, layout, 0, {}, block=BLOCK)
    assert masks == [None, None]
    bias[1, ..., 0] = 0.5  # a size
    run_ragged(lambda rows, own: masks.append(own) or rows, torch.ones(2, 7, 4), bias, layout, 0, {}, block=BLOCK)
    assert masks[2].tolist() == [[[[0.5] + [0.0] * 6]]] and masks[3] is None


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("size_bias", ["mask", "fold"])
def test_ragged_batches_equal_one_image_at_a_time(name, size_bias):
    model, x = tiny_vit(depth=4), images()
    own = (RAGGED[name],) if RAGGED[name] is not None else (STRATEGIES | CLASS)[name]
    with tg.attach(model, *own, size_bias=size_bias) as coarse, torch.no_grad():
        together = model(x)
        counts = [coarse.trace.counts_per_image(layer) for layer in range(5)]
        assert len(set(counts[-1])) > 1
        if name in ("g2tm", "algm"):
            assert len(groups_of([1 + count for count in counts[-1]])) > 1
        for i in range(len(x)):
            assert_close(model(x[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5)
            assert [coarse.trace.counts_per_image(layer)[0] for layer in range(5)] == [c[i] for c in counts]
        for way in ("padded", "packed"):
            with ragged_batches(way):
                assert_close(model(x), together, rtol=1e-4, atol=1e-5)


def test_dynamicvit_thresholds_run_in_groups_and_equal_one_image_at_a_time():
    model, x = tiny_vit(depth=4), images()
    seen = rows_of_mlps(model)
    with tg.attach(model, tg.DynamicViT(layers=[1, 2], threshold=0.5)) as coarse, torch.no_grad():
        together = model(x)
        counts = coarse.trace.counts_per_image(4)
        grouped = sum(seen)
        seen.clear()
        with ragged_batches("padded"):
            assert_close(model(x), together, rtol=1e-4, atol=1e-5)
        assert len(set(counts)) > 1
        assert grouped < sum(seen)
        seen.clear()
        with ragged_batches("packed"):
            assert_close(model(x), together, rtol=1e-4, atol=1e-5)
        assert seen[-1] == 6 + sum(counts)  # no padding
        for i in range(len(x)):
            assert_close(model(x[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5)


def test_in_groups_passes_over_images_without_tokens():
    seen, x = [], torch.randn(3, 4, 2)

    def run(rows, bias):
        seen.append(tuple(rows.shape))
        return rows + 1

    out = run_ragged(run, x, None, Layout.of(3, 5, (4, 0, 1), torch.device("cpu")), 0, {}, block=BLOCK)
    assert sorted(seen) == [(1, 1, 2), (1, 4, 2)]
    assert_close(out[0], x[0] + 1)
    assert_close(out[2, 0], x[2, 0] + 1)
    assert not out[1].any() and not out[2, 1:].any()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_groups_have_the_gradients_of_the_padded_batch(checkpointing, monkeypatch):
    model, x = tiny_vit(depth=4), images()
    model.set_grad_checkpointing(checkpointing)
    model.train()

    with tg.attach(model, tg.G2TM(0.1)) as coarse:
        ours = parameter_gradients(model, x)
        assert len(groups_of([1 + count for count in coarse.trace.counts_per_image(4)])) > 1
        monkeypatch.setitem(BEST, "cpu", "padded")
        expected = parameter_gradients(model, x)
    for own, theirs in zip(ours, expected, strict=True):
        assert_close(own, theirs, rtol=1e-4, atol=1e-5)


def families():
    """Models of the libraries, and one whose attention adds its mask to its scores."""
    own = tiny_vit(depth=4)
    for block in own.blocks:
        block.attn.fused_attn = False
    yield "timm, unfused", own
    transformers, torchvision = library("transformers"), library("torchvision")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    for attention in ("sdpa", "eager"):
        config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, attn_implementation=attention)
        yield f"transformers, {attention}", transformers.ViTModel(config).eval()
    yield "torchvision", torchvision.models.VisionTransformer(32, 8, 4, 4, 32, 64, num_classes=5).eval()


@pytest.mark.parametrize("name", ["timm, unfused", "transformers, sdpa", "transformers, eager", "torchvision"])
@pytest.mark.parametrize("size_bias", ["mask", "fold"])
def test_packed_images_equal_padded_ones_in_every_library(name, size_bias):
    model, x = dict(families())[name], images()
    with tg.attach(model, tg.G2TM(0.1), size_bias=size_bias) as coarse, torch.no_grad():
        found = {}
        for way in ("padded", "groups", "packed"):
            with ragged_batches(way):
                out = model(x)
                found[way] = out if isinstance(out, torch.Tensor) else out.last_hidden_state[:, 0]
        assert len(set(coarse.trace.counts_per_image(4))) > 1
    assert_close(found["groups"], found["padded"], rtol=1e-4, atol=1e-5)
    assert_close(found["packed"], found["padded"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["padded", "packed"])
def test_a_checkpoint_computes_the_same_outside_of_the_with(way):
    model, x = tiny_vit(depth=4), images()
    model.set_grad_checkpointing(True)
    with tg.attach(model, tg.G2TM(0.1)):
        with ragged_batches(way):
            loss = model(x).square().sum()
        ours = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()), allow_unused=True)
    for own, theirs in zip(ours, expected, strict=True):
        assert (own is None) == (theirs is None)
        if own is not None:
            assert_close(own, theirs, rtol=1e-4, atol=1e-5)


def test_a_way_holds_for_its_own_thread():
    seen, layout = [], Layout.of(2, 9, (2, 7), torch.device("cpu"))

    def run():
        with torch.no_grad():
            run_ragged(
                lambda rows, _: seen.append(rows.size(1)) or rows, torch.ones(2, 7, 4), None, layout, 0, {}, block=BLOCK
            )

    with ragged_batches("packed"):
        other = threading.Thread(target=run)
        other.start()
        other.join()
        assert sorted(seen) == [2, 7]  # groups
        run()
    assert seen[2:] == [9]


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.setattr(torch.nested, "nested_tensor_from_jagged", lambda values, offsets, lengths, jagged_dim: None)
    with pytest.raises(ImportError, match="Expected torch >= 2.5 for packed images"), ragged_batches("packed"):
        pass


def test_packed_rows_run_once_without_padding():
    seen = []

    def part(rows, mask):
        seen.append((list(rows.shape), mask.counts, mask.biased))
        return rows + 1

    layout = Layout.of(4, 11, (2, 0, 7, 2), torch.device("cpu"))
    x = torch.arange(4 * 7.0).view(4, 7, 1)
    with ragged_batches("packed"), torch.no_grad():
        out = run_ragged(part, x, None, layout, 0, {}, block=BLOCK)
        assert seen == [([1, 11, 1], (2, 7, 2), False)]
        assert_close(out, torch.where(layout.valid[..., None], x + 1, 0.0))
        padded = run_ragged(lambda rows, mask: rows, x, None, layout, 0, {}, block=nn.Dropout())
        assert padded is x  # dropout of whole images sees images


def test_a_bias_that_hides_padding_alone_is_not_folded():
    seen, layout = [], Layout.of(2, 9, (2, 7), torch.device("cpu"))
    bias = torch.tensor([[0.0] * 2 + [-torch.inf] * 5, [0.5] + [0.0] * 6])[:, None, None]
    part = lambda rows, mask: seen.append(mask) or rows  # noqa: E731
    with ragged_batches("packed"), torch.no_grad():
        run_ragged(part, torch.ones(2, 7, 4), bias, layout, 0, {}, block=BLOCK, only_padding=True)
        run_ragged(part, torch.ones(2, 7, 4), bias, layout, 0, {}, block=BLOCK)
    assert not seen[0].biased and seen[1].bias.flatten().tolist() == [0.0, 0.0, 0.5] + [0.0] * 6


def test_ways_are_named():
    with pytest.raises(ValueError, match="Expected way to be auto, padded, groups or packed .got 'nested'"):
        with ragged_batches("nested"):
            pass
    assert BEST == {"cpu": "groups"}  # a device comes in when it was measured
