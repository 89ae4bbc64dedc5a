"""Strategies inside the vision towers of whole models; the packed ones are in ``tests/packed``."""

from functools import cache

import pytest
import torch

pytest.importorskip("transformers", minversion="5.18")

from vlm_models import BUILDERS, Case
from vlm_oracle import direct

import tokengraph as tg
from tokengraph.vlm.families.find import find_base
from tokengraph.vlm.tower import find_tower


@cache
def case_of(name: str) -> Case:
    return BUILDERS[name]()


@pytest.fixture(params=["llava", "llava_next", "internvl", "gemma3", "smolvlm", "idefics3", "paligemma"])
def case(request):
    with torch.no_grad():
        yield case_of(request.param)


def test_a_strategy_on_a_whole_model_finds_the_tower_and_gives_the_projector_every_patch(case):
    inputs = case.inputs((2,))
    plain = case.model(**inputs).logits
    tower = find_tower(find_base(case.model))
    with tg.attach(case.model, "tome", {1: 0.5}) as handle:
        whole = case.model(**inputs).logits
        assert handle.trace.counts[-1] * 2 == handle.trace.counts[0]
    with tg.attach(tower, "tome", {1: 0.5}, lift=True):
        assert torch.equal(case.model(**inputs).logits, whole)
    assert not torch.equal(whole, plain)
    with tg.attach(case.model, "tome", 0):
        assert torch.equal(case.model(**inputs).logits, plain)
    assert torch.equal(case.model(**inputs).logits, plain)


def test_merging_equal_patches_changes_nothing_behind_the_projector(case):
    inputs = case.inputs((1,))
    tower = find_tower(find_base(case.model))
    model, adapter = tg.adapters.find_adapter(tower)
    block, prefix = adapter.blocks(model)[0], adapter.num_prefix(model)
    rows, columns = adapter.grid(model)

    def alike(module, args, kwargs):  # squares of four patches enter the first block as equal rows
        x = args[0] if args else kwargs["hidden_states"]
        cells = x[:, prefix:].unflatten(1, (rows // 2, 2, columns // 2, 2))
        cells = cells[:, :, :1, :, :1].expand_as(cells).flatten(1, 4)
        x = torch.cat([x[:, :prefix], cells], dim=1)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    hook = block.register_forward_pre_hook(alike, with_kwargs=True)
    try:
        plain = case.model(**inputs).logits
        with tg.attach(case.model, "grid-pool", {1: rows * columns // 4}):
            torch.testing.assert_close(case.model(**inputs).logits, plain, rtol=1e-4, atol=1e-4)
    finally:
        hook.remove()


def test_generate_runs_with_a_strategy_inside_and_fewer_tokens_behind(case):
    with tg.attach(case.model, "tome", {1: 0.5}):
        reduced = direct(tg.vlm.reduce(case.model, case.inputs((1,)), "dpc-knn", 0.5))
        new = case.model.generate(**reduced, max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert new.size(1) == reduced["input_ids"].size(1) + 2
