"""torchvision's vision transformer under a strategy, against timm's of the same weights.

The laws that every model keeps are in ``test_architectures.py``.
"""

import pytest
import torch
from needs import library
from strategies import CLASS, STRATEGIES
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.adapters.parts.multihead import self_attention
from tokengraph.testing import tiny_vit

torchvision = library("torchvision")

STRATEGIES = STRATEGIES | CLASS


def make(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 128, num_classes=5, **options).eval()
        torch.nn.init.normal_(model.heads.head.weight)
    return model


def like_timm():
    """A timm and a torchvision model of the same weights."""
    library("timm")
    ours, theirs = tiny_vit(num_classes=5), make()
    copied = {}
    for name, value in ours.state_dict().items():
        for a, b in (
            ("patch_embed.proj", "conv_proj"),
            ("blocks.", "encoder.layers.encoder_layer_"),
            ("norm1", "ln_1"),
            ("norm2", "ln_2"),
            ("attn.qkv.", "self_attention.in_proj_"),
            ("attn.proj", "self_attention.out_proj"),
            ("mlp.fc1", "mlp.0"),
            ("mlp.fc2", "mlp.3"),
            ("cls_token", "class_token"),
            ("pos_embed", "encoder.pos_embedding"),
        ):
            name = name.replace(a, b)
        name = name.replace("norm.", "encoder.ln.") if name.startswith("norm.") else name
        copied[name.replace("head.", "heads.head.") if name.startswith("head.") else name] = value
    theirs.load_state_dict(copied)
    return ours, theirs


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run(model, x):
    torch.manual_seed(7)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_with_the_weights_of_timm_gives_what_timm_gives(strategy, images):
    ours, theirs = like_timm()
    for model in (ours, theirs):
        torch.manual_seed(3)  # of prediction modules
        tg.attach(model, *STRATEGIES[strategy])
    assert_close(run(theirs, images), run(ours, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images_do_not_see_their_batch(strategy, images):
    model = make()
    with tg.attach(model, *STRATEGIES[strategy]):
        assert_close(run(model, images), torch.cat([run(model, image[None]) for image in images]), rtol=1e-4, atol=1e-5)


def test_sizes_weigh_keys_as_repeated_tokens_would():
    block = make().encoder.layers[0]
    x, size = torch.randn(1, 3, 32), torch.tensor([1.0, 3.0, 2.0])
    many = x.repeat_interleave(size.long(), dim=1)
    adapter = tg.adapters.find_adapter(make())[1]
    with torch.no_grad():
        weighed = adapter.attend(block, x, size.log().view(1, 1, 1, 3))
        assert_close(weighed, adapter.attend(block, many, None)[:, [0, 1, 4]], rtol=1e-5, atol=1e-5)


def test_training_lowers_a_loss(images):
    model = make().train()
    with tg.attach(model, "tome", 3):
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
        for _ in range(8):
            loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 4]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_tokens_come_back_to_full_resolution(images):
    model = make()
    with tg.attach(model, "tome", 3) as handle:
        run(model, images)
    assert handle.trace.counts == [16, 13, 10, 7] and handle.trace.as_map().shape == (2, 32, 4, 4)
    graph = tg.TokenGraph.from_model(model, images, layer=-1)
    assert graph.num_nodes == 32 and graph.grid == (4, 4)


def test_learned_pruning_trains_as_in_timm(images):
    ours, theirs = like_timm()
    grads = []
    for model in (ours, theirs):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            handle = tg.attach(model.train(), tg.DynamicViT(0.5, layers=[1, 2]))
        torch.manual_seed(7)
        loss = model(images).square().mean() + handle.trace.decisions[-1].mean()
        loss.backward()
        grads.append([p.grad for p in model.score_predictor.parameters()])
        with torch.no_grad():
            model.eval()(images)
        assert min(handle.trace.counts_worked) < 16
    assert len(grads[0]) > 4
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strategy", [(tg.GTP(sparsity=0.7), 3), (tg.ToMe(), 3)], ids=str)
def test_open_maps_and_folded_sizes_give_what_timm_gives(strategy, images):
    ours, theirs = like_timm()
    for options in ({}, {"size_bias": "fold"}):
        with tg.attach(ours, *strategy, **options), tg.attach(theirs, *strategy, **options):
            assert_close(run(theirs, images), run(ours, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_bias_on_keys_is_the_modules_float_key_padding_mask(batch_first):
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=batch_first).eval()
    x = torch.randn(3, 5, 32) if batch_first else torch.randn(5, 3, 32)
    bias = torch.randn(3, 5)
    with torch.no_grad():
        wanted, _ = attention(x, x, x, need_weights=False, key_padding_mask=bias)
        assert_close(self_attention(attention, x, bias[:, None, None]), wanted)
