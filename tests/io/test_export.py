"""Attached models as programs: ``torch.export`` and ONNX, for every strategy whose budget is fixed.

All of them do, on timm's ViT. What cannot: a budget that is read off the data, as a program's token counts are fixed.
"""

import sys
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from needs import library
from quick import quick_only
from strategies import CLASS, STRATEGIES
from torch import nn

import tokengraph as tg
from tokengraph.io.onnx import _adopt_orphans, _diagonal_scatter, _kthvalue, to_onnx
from tokengraph.select.peaks.orphans import adopt_orphans
from tokengraph.testing import tiny_vit

timm = library("timm")

SETTINGS = {name: each for name, each in (STRATEGIES | CLASS).items() if not each[0].ragged}
# Hard and soft maps, scores of keys, of the class token and of the map, learned parts, stored tokens, an operator.
QUICK = ("tome", "gtp-sparse", "dynamicvit", "migration", "heavy-edges")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def images(seed, count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def eva():
    return timm.models.eva.Eva(32, 8, embed_dim=32, depth=3, num_heads=4, num_classes=5, use_rot_pos_emb=True).eval()


def torchvision_vit():
    torchvision = library("torchvision")
    model = torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64).eval()
    nn.init.normal_(model.heads.head.weight)  # zero at first, so that any output would be right
    return model


def transformers_vit():
    transformers = library("transformers")
    config = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)
    return transformers.ViTForImageClassification(config).eval()


OTHERS = {"timm-eva": eva, "torchvision": torchvision_vit, "transformers": transformers_vit}


def logits(output):
    return getattr(output, "logits", output)


def session(model, **options):
    """What onnxruntime makes of the model, as a function of images."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    import onnxruntime

    file = to_onnx(model, images(0), **options).model_proto.SerializeToString()
    run = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    return lambda x: torch.from_numpy(run.run(None, {name: x.numpy()})[0])


def test_every_strategy_is_exported():
    assert {select.name for select, _ in SETTINGS.values()} == {n for n, cls in tg.registry().items() if not cls.ragged}


@pytest.mark.parametrize("name", quick_only(QUICK, SETTINGS))
def test_exported_program_gives_what_the_model_gives_for_other_images(name):
    model = tiny_vit()
    with tg.attach(model, *SETTINGS[name]), torch.no_grad():
        program = torch.export.export(model, (images(0),)).module()
        for seed in (1, 2):
            torch.testing.assert_close(program(images(seed)), model(images(seed)))


def test_a_budget_that_is_read_off_the_data_is_not_exported():
    @dataclass(frozen=True)
    class Bright(tg.ToMe):
        def __call__(self, tokens, budget):
            return super().__call__(tokens, budget - int(tokens.x.mean() > 0))

    with tg.attach(tiny_vit(), Bright(), 3) as handle, torch.no_grad():
        assert handle(images(0)).isfinite().all()
        with pytest.raises(RuntimeError, match="data-dependent"):
            torch.export.export(handle.model, (images(0),))


ON_EDGES = ("heavy-edges", "local-variation", "modularity", "spectral")  # their choice is an operator of its own


@pytest.mark.parametrize("name", ON_EDGES)
def test_onnx_refuses_strategies_on_edges(name):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    with tg.attach(tiny_vit(), *SETTINGS[name]) as handle, torch.no_grad():
        with pytest.raises(ValueError, match=r"operators that ONNX has \(got one on edges, .* Take ToMe, DPCKNN or"):
            to_onnx(handle.model, images(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ON_EDGES])
def test_onnx_gives_what_the_model_gives_for_other_images_and_batches(name):
    model = tiny_vit()
    with tg.attach(model, *SETTINGS[name]), torch.no_grad():
        run = session(model, dynamic_batch=True)
        for seed, count in ((1, 2), (2, 1), (3, 5)):
            x = images(seed, count)
            torch.testing.assert_close(run(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("build", OTHERS.values(), ids=OTHERS)
def test_onnx_of_other_families_gives_what_the_model_gives(build):
    torch.manual_seed(0)
    model = build()
    with tg.attach(model, "tome", 3), torch.no_grad():
        run = session(model)
        torch.testing.assert_close(run(images(1)), logits(model(images(1))), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_onnx_leaves_the_model_as_it_was():
    model = tiny_vit()
    with tg.attach(model, "tome", 3):
        expected = model(images(1))
        session(model)
        assert torch.equal(model(images(1)), expected)
        assert all(p.requires_grad for p in model.parameters())


def test_a_dynamic_batch_of_one_image_is_refused():
    with pytest.raises(ValueError, match=r"Expected inputs of B >= 2 images .* \(got \[1, 3, 32, 32\]\)"):
        to_onnx(tiny_vit(), images(0, 1), dynamic_batch=True)


def test_missing_onnx_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"Expected onnx to be installed .* pip install 'tokengraph\[onnx\]'"):
        to_onnx(tiny_vit(), images(0))


def test_orphans_for_every_token_are_those_of_the_search():
    g = torch.Generator().manual_seed(0)
    x, orphan = torch.randn(2, 24, 5, generator=g), torch.rand(2, 24, generator=g) > 0.5
    x[1, 3] = x[1, 9]  # a tie
    anchors = torch.stack([torch.randperm(24, generator=g)[:4].sort().values for _ in range(2)])
    arguments = (torch.zeros(2, 24, dtype=torch.long), orphan, x, anchors, 4, 6, 3, 0.2)
    assert torch.equal(_adopt_orphans(*arguments), adopt_orphans(*arguments))


def test_decompositions_are_what_they_replace():
    x, rows = torch.randn(2, 3, 3), torch.randn(2, 3)
    assert torch.equal(_diagonal_scatter(x, rows, 0, 1, 2), torch.diagonal_scatter(x, rows, 0, 1, 2))
    with pytest.raises(ValueError, match=r"Expected the main diagonal .* \(got offset 1"):
        _diagonal_scatter(x, rows[:, :2], 1, 1, 2)
    for keep in (False, True):
        for got, wanted in zip(_kthvalue(x, 2, 1, keep), torch.kthvalue(x, 2, 1, keep), strict=True):
            assert torch.equal(got, wanted)
