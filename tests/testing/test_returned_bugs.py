"""Bugs that were mended, put back one by one: the law written for each of them breaks, by name."""

import sys

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.adapters.coarse import SITE
from tokengraph.attach import changes, handle
from tokengraph.attach.changes import Change, undo
from tokengraph.attach.recompute import Recompute
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.testing import ATTACH_LAWS, MODEL_LAWS, AttachCase, check_attach, check_model, tiny_vit

timm = library("timm")
ATTACHING = sys.modules["tokengraph.attach.attach"]  # its package gives that name to the function
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tiny_sam():
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "window_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.models.VisionTransformerSAM(**sizes, global_attn_indexes=(2,), neck_chans=8, num_classes=5)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def expedited(model):
    return tg.attach(model, tg.WindowCoarsening(tg.Expedite(clusters=(2, 2)), before=1))


CASES = {
    "plain": AttachCase(tiny_vit, IMAGES, lambda m: tg.attach(m, "tome", 3), lambda m: m.blocks[1]),
    "windows": AttachCase(tiny_sam, IMAGES, expedited, lambda m: m.blocks[1]),
}


def takes_everything_out(patch):
    patch.setattr(handle, "undo", lambda model, trace: undo(model))


def hoards_runs(patch):
    patch.setattr(Recompute, "remember", lambda self, *args: self.__dict__.setdefault("hoard", []).append(args))


def looks_at_nothing(patch):
    patch.setattr(ATTACHING, "check_untouched", lambda model, found: None)


def leaves_hooks(patch):
    patch.setattr(changes, "_unhook", lambda modules, ours: None)


def detaches_the_original_alone(patch):
    """Marks say to which record they belong; here a copy's marks stay the original's, and only those come out."""
    apply, traces = Change.apply, []

    def noted(change):
        traces.append(change.site.trace)
        apply(change)

    patch.setattr(Change, "apply", noted)
    patch.setattr(ATTACHING, "undo", lambda model, trace=None: undo(model, trace or traces[-1]))


ATTACH_MUTANTS = {
    "an old handle takes all out": (takes_everything_out, "ignores_a_stale_handle", "plain"),
    "an old handle takes all out of windows": (takes_everything_out, "ignores_a_stale_handle", "windows"),
    "past runs stay": (hoards_runs, "forgets_past_runs", "plain"),
    "past runs stay in windows": (hoards_runs, "forgets_past_runs", "windows"),
    "no guard": (looks_at_nothing, "refuses_a_replaced_forward", "plain"),
    "no guard before windows": (looks_at_nothing, "refuses_a_replaced_forward", "windows"),
    "no guard against replicas": (looks_at_nothing, "refuses_data_parallel", "windows"),
    "hooks stay": (leaves_hooks, "gives_back", "plain"),
    "copies cannot be detached": (detaches_the_original_alone, "copies_on_its_own", "plain"),
}


@pytest.mark.parametrize("name", ATTACH_MUTANTS)
def test_law_of_attaching_kills_the_mutant(name, monkeypatch):
    mutate, law, case = ATTACH_MUTANTS[name]
    one = [other.__name__ for other in ATTACH_LAWS if other.__name__ != law]
    check_attach(CASES[case], without=one)
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match=f"breaks the law '{law}'"):
        check_attach(CASES[case], without=one)


def after_each_reduction(kind, change):
    """Makes maps of a kind change their rows."""

    def mutate(patch):
        own = kind.reduce

        def reduce(self, x, *args, **kwargs):
            rows, *sizes = own(self, x, *args, **kwargs)
            return change(rows), *sizes

        patch.setattr(kind, "reduce", reduce)

    return mutate


class _Against(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


def half_again(rows):
    return rows if rows.dtype == torch.float32 else rows * 1.5


def forgets_a_mark(patch):
    apply = Change.apply

    def marked(change):
        apply(change)
        change.module.tokengraph_was_here = SITE

    patch.setattr(Change, "apply", marked)


MODEL_MUTANTS = {
    "another mean in half precision": (after_each_reduction(SoftAssignment, half_again), "runs_in_half_precision"),
    "gradients against the loss": (after_each_reduction(SoftAssignment, _Against.apply), "trains"),
    "no gradients through merging": (after_each_reduction(Assignment, torch.Tensor.detach), "trains"),
    "an attribute stays": (forgets_a_mark, "gives_the_model_back"),
}


@pytest.mark.parametrize("name", MODEL_MUTANTS)
def test_law_of_models_kills_the_mutant(name, monkeypatch):
    mutate, law = MODEL_MUTANTS[name]
    one = [other.__name__ for other in MODEL_LAWS if other.__name__ != law]
    check_model(tiny_vit, IMAGES, without=one)
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match=f"breaks the law '{law}'"):
        check_model(tiny_vit, IMAGES, without=one)
