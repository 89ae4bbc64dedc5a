"""Fast-iTPN as a network: sizes, shapes, checkpoints, and everything that training and serving ask of it."""

import copy
import pickle

import pytest
import torch
from quick import quick_only
from torch.testing import assert_close

from tokengraph.io.checkpoints import load_checkpoint
from tokengraph.models import (
    FastITPN,
    FastITPNPyramid,
    TokenGathering,
    TokenMigration,
    fast_itpn_base,
    fast_itpn_large,
    fast_itpn_pyramid,
    fast_itpn_small,
    fast_itpn_tiny,
)

MIGRATION = TokenMigration({1: 0.7, 2: 0.7})
GATHERING = TokenGathering(window=3)
OPTIONS = {
    "plain": {},
    "migration": {"migration": MIGRATION},
    "gathering": {"gathering": GATHERING},
    "both": {"migration": MIGRATION, "gathering": GATHERING},
    "sizes": {"migration": TokenMigration({1: 0.7, 2: 0.7}, size_weight=True), "gathering": GATHERING},
    "twins": {"migration": TokenMigration({1: 0.7, 2: 0.7}, replenish="twin_delta", split="checkerboard")},
}


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Random values for everything that starts at zero or small, so that all parts matter."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def tiny(**options) -> FastITPN:
    torch.manual_seed(0)
    return spread(FastITPN(24, (1, 1, 3), 3, img_size=96, num_classes=5, **options))  # type: ignore[return-value]


def tiny_pyramid(**options) -> FastITPNPyramid:
    torch.manual_seed(0)
    model = FastITPNPyramid(24, (1, 1, 3), 3, img_size=96, fpn_dim=16, **options)
    return spread(model)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("build", "count"),
    [(fast_itpn_tiny, 24_219_976), (fast_itpn_small, 39_902_920), (fast_itpn_base, 84_825_192),
     (fast_itpn_large, 312_017_320)],
)  # fmt: skip
def test_each_size_has_the_official_number_of_parameters(build, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


def test_the_pyramid_of_the_base_size_has_the_logged_number_of_parameters():
    with torch.device("meta"):
        model = fast_itpn_pyramid("base")
    assert sum(p.numel() for p in model.parameters()) == 84_312_192 + 2_771_794


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", [(96, 96), (64, 112), (16, 16)])
def test_any_multiple_of_16_gives_logits_and_every_position(options, size):
    model, images = tiny(**options), torch.randn(2, 3, *size)
    with torch.no_grad():
        assert model(images).shape == (2, 5)
        features = model.forward_features(images)
    assert features.shape == (2, size[0] // 16 * (size[1] // 16), 24) and torch.isfinite(features).all()


def test_other_sizes_are_refused_not_cropped():
    with pytest.raises(ValueError, match=r"multiples of 16 \(got 100 x 96\)"):
        tiny()(torch.randn(1, 3, 100, 96))
    with pytest.raises(ValueError, match=r"multiples of 16 \(got 0 x 96\)"):
        tiny()(torch.randn(1, 3, 0, 96))
    with pytest.raises(ValueError, match="multiples of 16"):
        FastITPN(24, (1, 1, 1), 3, img_size=100)
    with pytest.raises(ValueError, match=r"multiple of 4 and of heads=5 \(got width=24\)"):
        FastITPN(24, (1, 1, 1), 5)


def test_the_norm_comes_first_without_mean_pooling():
    model, images = tiny(use_mean_pooling=False), torch.randn(1, 3, 96, 96)
    assert {n for n, _ in model.named_parameters() if "norm" in n and "blocks" not in n} == {"norm.weight", "norm.bias"}
    table = model.forward_record(images).table
    assert_close(model(images), model.head(model.norm(table).mean(dim=1)))


def test_kept_tokens_alone_may_make_the_logits():
    model, images = tiny(migration=TokenMigration({2: 0.5}, pool="kept")), torch.randn(1, 3, 96, 96)
    record = model.forward_record(images)
    assert record.tokens.size(1) == 18
    assert_close(model(images), model.head(model.fc_norm(record.tokens.mean(dim=1))))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_image_alone_is_the_image_in_any_batch(options):
    model, images = tiny(**options).double(), torch.randn(4, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        together, order = model.forward_features(images), torch.tensor([2, 0, 3, 1])
        assert_close(model.forward_features(images[order]), together[order], atol=1e-10, rtol=0)
        assert_close(model.forward_features(images[2:3]), together[2:3], atol=1e-10, rtol=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_checkpointing_gives_the_same_gradients(options):
    images, gradients = torch.randn(2, 3, 96, 96), []
    for checkpointing in (False, True):
        model = tiny(**options).train()
        model.set_grad_checkpointing(checkpointing)
        model(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(g is not None and torch.isfinite(g).all() for g in gradients[0])
    for plain, again in zip(*gradients, strict=True):
        assert_close(plain, again)


@pytest.mark.parametrize("name", quick_only(["sizes"], OPTIONS))
def test_the_network_compiles_to_one_graph(name):
    model, images = tiny(**OPTIONS[name]), torch.randn(2, 3, 96, 64)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bfloat16_autocast_and_weights_stay_near_float32(options):
    model, images = tiny(**options), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (model(images).float() - expected).norm() < 0.1 * expected.norm()
        out = model.bfloat16()(images.bfloat16())
    assert out.dtype == torch.bfloat16 and (out.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_image_gives_no_logits(options):
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            assert tiny(**options)(torch.zeros(0, 3, 96, 96)).shape == (0, 5)


def test_inference_gives_what_training_would_see():
    model, images = tiny(), torch.randn(2, 3, 192, 160)  # more rows than one block of the stem
    with torch.no_grad():
        alone = model.forward_stem(images)
    for out, expected in zip(alone, model.forward_stem(images), strict=True):
        assert_close(out, expected)


def test_a_model_survives_copies_and_pickles():
    model, images = tiny(**OPTIONS["both"]), torch.randn(1, 3, 96, 96)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), model(images))


def test_gathering_adds_one_parameter_and_migration_none():
    names = {name: set(tiny(**options).state_dict()) for name, options in OPTIONS.items()}
    assert names["migration"] == names["plain"]
    assert names["both"] - names["plain"] == {"gather_tokens"}


def test_one_window_without_hubs_is_the_official_network():
    images = torch.randn(2, 3, 96, 96)
    out = tiny(gathering=TokenGathering(window=None, hubs=None), migration=TokenMigration({}))(images)
    assert torch.equal(out, tiny()(images))
    assert torch.equal(tiny(gathering=TokenGathering(window=6, hubs=None))(images), tiny()(images))


def test_global_layers_attend_to_everything():
    images = torch.randn(2, 3, 96, 96)
    out = tiny(gathering=TokenGathering(window=2, hubs=None, global_layers=(1, 2, 3)))(images)
    assert torch.equal(out, tiny()(images))


def test_stochastic_depth_acts_in_training_only():
    model, images = tiny(drop_path_rate=0.5), torch.randn(2, 3, 96, 96)
    assert torch.equal(model(images), tiny()(images))
    assert not torch.equal(model.train()(images), tiny()(images))


def test_a_new_head_leaves_the_rest_alone():
    model, images = tiny(), torch.randn(1, 3, 96, 96)
    before = model.forward_features(images)
    model.reset_classifier(9)
    assert model(images).shape == (1, 9) and torch.equal(model.forward_features(images), before)
    model.reset_classifier(0)
    assert torch.equal(model(images), model.forward_head(before, pre_logits=True))


def test_a_classifier_checkpoint_loads_by_name_into_every_form():
    source = {"model": tiny().state_dict()}
    assert load_checkpoint(tiny(**OPTIONS["migration"]), source).complete
    assert load_checkpoint(tiny(**OPTIONS["both"]), source).missing == ["gather_tokens"]
    report = load_checkpoint(tiny_pyramid(), source)
    assert {n.split(".")[0] for n in report.unexpected} == {"fc_norm", "head"} and not report.mismatched
    parts = {"norm", "align_dim_16tofpn", "align_dim_16to8", "align_dim_8to4", "split_16to8", "split_8to4",
             "block_16to8", "block_8to4", "fpn_modules"}  # fmt: skip
    assert {n.split(".")[0] for n in report.missing} == parts


def test_a_detection_checkpoint_loads_by_name_into_the_pyramid_and_the_classifier():
    source = tiny_pyramid().state_dict()
    assert {"fpn_modules.2.mlp.fc2.bias", "block_16to8.0.norm2.weight", "split_8to4.reduction.bias"} <= set(source)
    assert load_checkpoint(tiny_pyramid(migration=MIGRATION), source).complete
    report = load_checkpoint(tiny(), source)
    assert {n.split(".")[0] for n in report.missing} == {"fc_norm", "head"}
