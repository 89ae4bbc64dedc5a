"""The law of every family: a reduced prompt computes what the whole prompt computes with the removed keys masked."""

from functools import cache

import pytest
import torch

pytest.importorskip("transformers", minversion="5.18")

from vlm_models import BUILDERS, END, IMAGE, START, VIDEO, Case
from vlm_oracle import direct, generated_by_hand, kept_columns, masked_logits, real_logits, whole_positions

import tokengraph as tg
from tokengraph import vlm

SPECIAL = [0, IMAGE, VIDEO, START, END]
NORM = tg.TopK(score="norm")


@cache
def case_of(name: str) -> Case:
    return BUILDERS[name]()


@pytest.fixture(params=BUILDERS)
def case(request):
    with torch.no_grad():
        yield case_of(request.param)


def test_reduce_gives_the_logits_of_the_whole_prompt_with_removed_keys_masked(case):
    for images in ((1,), (2, 1)):
        inputs = case.inputs(images)
        reduced = vlm.reduce(case.model, inputs, NORM, 0.5)
        wanted = masked_logits(case, inputs, kept_columns(case, inputs, reduced.record))
        assert sum(reduced.record.kept) < sum(reduced.record.counts)
        for got, want in zip(real_logits(case, reduced), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_reduce_moves_the_logits(case):  # otherwise the law above would hold for any choice
    inputs = case.inputs()
    reduced = vlm.reduce(case.model, inputs, NORM, 0.5)
    assert (case.model(**inputs).logits[:, -1] - case.model(**reduced).logits[:, -1]).abs().max() > 1e-3


def test_reduce_that_keeps_all_is_bit_identical(case):
    inputs = case.inputs((1, 2))
    assert torch.equal(case.model(**vlm.reduce(case.model, inputs, NORM, 1.0)).logits, case.model(**inputs).logits)


def test_generate_on_a_reduced_prompt_equals_a_run_without_cache(case):
    reduced = vlm.reduce(case.model, case.inputs((2, 1)), NORM, 0.5)
    new = case.model.generate(**reduced, max_new_tokens=3, do_sample=False, eos_token_id=None, suppress_tokens=SPECIAL)[
        :, -3:
    ]
    assert torch.equal(new, generated_by_hand(case, reduced, 3, SPECIAL))


def test_reduce_gives_a_prompt_the_same_logits_alone_and_in_a_batch(case):
    both = case.inputs((2, 1))
    together = real_logits(case, vlm.reduce(case.model, both, "dpc-knn", 0.5))
    there = both["attention_mask"][1].bool()
    alone = {n: v[1:, there] for n, v in both.items() if v.dim() == 2 and v.shape == there[None].expand(2, -1).shape}
    per_image = {n: v[1:] if case.nested else v.chunk(3)[2] for n, v in both.items() if n not in alone}
    single = real_logits(case, vlm.reduce(case.model, {**alone, **per_image}, "dpc-knn", 0.5))
    torch.testing.assert_close(single[0], together[1], rtol=0, atol=1e-5)


def test_merged_tokens_equal_a_prompt_made_by_hand(case):
    inputs = case.inputs()
    reduced = direct(vlm.reduce(case.model, inputs, "tome", 0.5))
    whole = vlm.Visual.of("image", vlm.reduce(case.model, inputs, NORM, 1.0)["mm_encoder_outputs"]["image"])
    image = reduced.record.images[0]
    belongs = image.lift(torch.eye(image.kept)) > 0  # which cluster each token is of

    def merge(rows):
        merged = rows.clone()
        for cluster, stands in enumerate(image.stands.tolist()):
            merged[stands] = rows[belongs[:, cluster]].mean(dim=0)
        return merged

    output = whole.with_rows(merge(whole.rows), whole.counts, [merge(layer) for layer in whole.deep])
    wanted = masked_logits_of(case, inputs, output, kept_columns(case, inputs, reduced.record))
    torch.testing.assert_close(real_logits(case, reduced)[0], wanted, rtol=0, atol=1e-5)


def masked_logits_of(case, inputs, output, mask):
    """Logits of the whole prompt with given features, removed keys masked."""
    text = {n: v for n, v in inputs.items() if torch.is_tensor(v) and v.shape == mask.shape}
    positions = whole_positions(case, inputs)
    given = {**text, "attention_mask": mask, "position_ids": positions, "mm_encoder_outputs": {"image": output}}
    return case.model(**given).logits[0][mask[0].bool()]


def test_labels_lose_the_same_columns_and_gradients_reach_the_tower(case):
    with torch.enable_grad():
        inputs = case.inputs((1,))
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] >= START - 2, -100)
        reduced = vlm.reduce(case.model, inputs, "dpc-knn", 0.5)
        mask = kept_columns(case, inputs, reduced.record)
        assert torch.equal(reduced["labels"][0], inputs["labels"][0][mask[0].bool()])
        loss = case.model(**reduced).loss
        tower = next(p for n, p in case.model.named_parameters() if "visual" in n or "vision" in n)
        (gradient,) = torch.autograd.grad(loss, tower)
        assert gradient.abs().sum() > 0


def test_reduce_leaves_model_and_inputs_as_they_are(case):
    inputs = case.inputs((1,))
    before = {n: v.clone() for n, v in inputs.items()}
    state = {n: (id(m), dict(m.__dict__)) for n, m in case.model.named_modules()}
    vlm.reduce(case.model, inputs, NORM, 0.5)
    assert inputs.keys() == before.keys() and all(torch.equal(inputs[n], v) for n, v in before.items())
    after = {n: (id(m), dict(m.__dict__)) for n, m in case.model.named_modules()}
    assert all(state[n][0] == after[n][0] and state[n][1].keys() == after[n][1].keys() for n in state)
