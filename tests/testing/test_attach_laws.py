"""Every law of attaching over a plain, two windowed and two spatial models."""

import importlib.util
from pathlib import Path

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.spatial import DynamicSpatial
from tokengraph.testing import ATTACH_LAWS, AttachCase, check_attach, tiny_vit
from tokengraph.testing.attach_laws import forgets_past_runs
from tokengraph.windows import WindowCoarsening

library("timm")
TESTS = Path(__file__).parents[1]


def fixtures(folder):
    spec = importlib.util.spec_from_file_location(f"{folder}_models", TESTS / folder / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SPATIAL, WINDOWS = fixtures("spatial"), fixtures("windows")


def seeded(make):
    def made():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return made


def spatial(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SPATIAL._lively(tg.attach(model, DynamicSpatial(layers=[1, 2, 3])))


def windowed(model):
    return tg.attach(model, WindowCoarsening("tome", keep=0.5))


def expedited(model):
    return tg.attach(model, WindowCoarsening(tg.Expedite(clusters=(2, 2)), before=1))


def images(side):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


def third(model):
    return (model.stages if hasattr(model, "stages") else model.layers)[2].blocks[2]


CASES = {
    "plain": AttachCase(tiny_vit, images(32), lambda m: tg.attach(m, "tome", 3), lambda m: m.blocks[1]),
    "windows, sam": AttachCase(
        seeded(WINDOWS.tiny_sam), images(80), expedited, lambda m: m.blocks[3], others=[windowed]
    ),
    "windows, swin": AttachCase(seeded(WINDOWS.tiny_swin), images(64), windowed, third, others=[spatial]),
    "spatial, swin": AttachCase(seeded(SPATIAL.tiny_swin), images(64), spatial, third, others=[windowed]),
    "spatial, convnext": AttachCase(seeded(SPATIAL.tiny_convnext), images(64), spatial, third),
}


def params():
    for name in CASES:
        for law in ATTACH_LAWS:
            yield pytest.param(name, law, id=f"{name}-{law.__name__}")


@pytest.mark.parametrize(("name", "law"), list(params()))
def test_law_of_attaching_holds(name, law):
    law(CASES[name])


def test_check_attach_names_the_broken_law():
    class Stuck(type(tg.attach(tiny_vit(), "tome", 3))):
        def remove(self):
            pass

    def put(model):
        handle = tg.attach(model, "tome", 3)
        handle.__class__ = Stuck
        return handle

    with pytest.raises(AssertionError, match="breaks the law 'gives_back'"):
        check_attach(AttachCase(tiny_vit, images(32), put, lambda m: m.blocks[1]))


def test_forgets_past_runs_sees_what_a_hook_hoards():
    def put(model):
        hoard = []
        model.blocks[1].register_forward_hook(lambda *args: hoard.append(args[-1].detach()))
        return tg.attach(model, "tome", 3)

    with pytest.raises(AssertionError, match="of seven past runs are alive"):
        forgets_past_runs(AttachCase(tiny_vit, images(32), put, lambda m: m.blocks[1]))
