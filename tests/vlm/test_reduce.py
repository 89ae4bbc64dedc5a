"""Budgets, prompts, videos, records and errors of ``vlm.reduce``."""

import sys
from functools import cache

import pytest
import torch

pytest.importorskip("transformers", minversion="5.18")

from vlm_models import BUILDERS, IMAGE, VIDEO, Case, packed
from vlm_oracle import kept_columns, masked_logits, real_logits

import tokengraph as tg
from tokengraph import vlm
from tokengraph.maps.hard import Assignment

NORM = tg.TopK(score="norm")


@cache
def case_of(name: str) -> Case:
    return BUILDERS[name]()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


class Uneven(tg.Select):
    """Keeps two tokens in every other image of a batch, and three in those between."""

    reads, merges = "nothing", False

    def __call__(self, tokens, budget):
        images, count = tokens.x.shape[:2]
        counts = [b % 2 + 2 for b in range(images)]
        cluster = torch.full((images, count), -1)
        for b, k in enumerate(counts):
            cluster[b, :k] = torch.arange(k)
        return Assignment.from_dense(cluster, counts, drops=True)


@pytest.mark.parametrize("name", BUILDERS)
def test_reduce_takes_strategies_that_keep_different_numbers_of_tiles(name):
    case = case_of(name)
    inputs = case.inputs((1, 2))
    reduced = vlm.reduce(case.model, inputs, Uneven(), 2)
    wanted = masked_logits(case, inputs, kept_columns(case, inputs, reduced.record))
    assert len(set(reduced.record.kept)) > 1
    for got, want in zip(real_logits(case, reduced), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_reduce_leaves_a_prompt_without_images_as_it_is():
    case = case_of("qwen3_vl")
    inputs = case.inputs((2, 0, 1))
    reduced = vlm.reduce(case.model, inputs, NORM, 0.25)
    text = inputs["attention_mask"][1].bool()
    assert (
        reduced["input_ids"][1][reduced["attention_mask"][1].bool()].tolist() == inputs["input_ids"][1][text].tolist()
    )
    want = case.model(input_ids=inputs["input_ids"][1:2, text]).logits[0]
    torch.testing.assert_close(real_logits(case, reduced)[1], want, rtol=0, atol=1e-5)


def test_reduce_keeps_padding_on_the_right_where_it_was():
    case = case_of("llava")
    inputs = case.inputs((1, 2))
    length = inputs["attention_mask"].sum(dim=1)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.stack([row.roll(int(n)) for row, n in zip(inputs[name], length, strict=True)])
    reduced = vlm.reduce(case.model, inputs, NORM, 0.5)
    assert reduced["attention_mask"][0].tolist() == sorted(reduced["attention_mask"][0].tolist(), reverse=True)
    wanted = masked_logits(case, {**inputs}, kept_columns(case, inputs, reduced.record)[:, :])
    torch.testing.assert_close(real_logits(case, reduced)[1], wanted[1], rtol=0, atol=1e-5)


def test_reduce_takes_prompts_without_a_mask_and_does_not_read_gaps_as_packed_sequences():
    case = case_of("llava")
    inputs = case.inputs()
    reduced = vlm.reduce(case.model, {n: v for n, v in inputs.items() if n != "attention_mask"}, NORM, 0.5)
    wanted = masked_logits(case, inputs, kept_columns(case, inputs, reduced.record))[0]
    torch.testing.assert_close(case.model(**reduced, use_cache=False).logits[0], wanted, rtol=0, atol=1e-5)


def test_a_number_of_tokens_is_for_each_image_and_small_images_stay_whole():
    case = case_of("qwen2_5_vl")
    inputs = case.inputs((2,))
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4], [1, 8, 8]])  # 4 and 16 tokens
    ids = inputs["input_ids"][0].tolist()
    first = ids.index(IMAGE)
    ids = ids[:first] + ids[first + 12 :]
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones(1, len(ids), dtype=torch.long)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    inputs["pixel_values"] = inputs["pixel_values"][: 16 + 64]
    assert vlm.reduce(case.model, inputs, NORM, 6).record.kept == [4, 6]
    assert vlm.reduce(case.model, inputs, NORM, 0.3).record.kept == [2, 5]


def video(case: Case, frames: int) -> dict:
    """One video of ``frames`` frames of 16 tokens; Qwen3-VL's frames have a timestamp each in between."""
    stamp = [5, 6] if "Qwen3" in type(case.model).__name__ else []
    ids = [1, 7, *(frames * [*stamp, *[VIDEO] * 16] if stamp else [VIDEO] * 16 * frames), 8, 9]
    ids = torch.tensor([ids])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        **packed(1, (frames, 8, 8), "video"),
    }


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("across", [False, True])
def test_reduce_takes_videos_frame_by_frame_and_across_frames(name, across):
    case = case_of(name)
    inputs = video(case, 3)
    reduced = vlm.reduce(case.model, inputs, NORM, 0.5, across=across)
    (record,) = reduced.record.images
    shapes = [tile.grid for tile in record.tiles]
    assert shapes == ([(3, 4, 4)] if across else [(4, 4)] * 3)
    if not across:
        assert [int(there.sum()) for there in record.kept_masks()] == [8, 8, 8]
    mask = inputs["attention_mask"].clone()
    gone = torch.ones(48, dtype=torch.bool)
    gone[record.stands] = False
    mask.view(-1)[(inputs["input_ids"] == VIDEO).flatten().nonzero().squeeze(1)[gone]] = 0
    positions, _ = case.model.model.get_rope_index(**{n: v for n, v in inputs.items() if "pixel" not in n})
    given = {n: v for n, v in inputs.items() if n != "attention_mask"}
    want = case.model(**given, attention_mask=mask, position_ids=positions).logits[0][mask[0].bool()]
    torch.testing.assert_close(real_logits(case, reduced)[0], want, rtol=0, atol=1e-5)
    new = case.model.generate(**reduced, max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert new.size(1) == reduced["input_ids"].size(1) + 2


def test_a_number_of_tokens_is_divided_over_frames():
    case = case_of("qwen2_5_vl")
    record = vlm.reduce(case.model, video(case, 3), NORM, 10).record.images[0]
    assert sorted(int(there.sum()) for there in record.kept_masks()) == [3, 3, 4]
    assert record.kept == 10


def test_the_record_lifts_rows_to_the_tile_grid():
    case = case_of("llava")
    reduced = vlm.reduce(case.model, case.inputs((2,)), "tome", 0.5)
    first, second = reduced.record.images
    assert (first.count, first.kept, first.prompt, first.modality) == (16, 8, 0, "image")
    number = torch.arange(8.0)[:, None]
    (picture,) = second.maps(number)
    assert picture.shape == (1, 4, 4)
    assert picture.flatten()[second.stands].tolist() == number.flatten().tolist()
    with pytest.raises(ValueError, match=r"Expected y of shape \[8, C\]"):
        first.lift(torch.zeros(7, 1))


def test_the_record_of_llava_next_has_the_copy_and_the_tiles_and_keeps_line_breaks():
    case = case_of("llava_next")
    record = vlm.reduce(case.model, case.inputs(), NORM, 0.5).record.images[0]
    assert [tile.grid for tile in record.tiles] == [(4, 4), (4, 8)]
    assert [int(there.sum()) for there in record.kept_masks()] == [8, 16]
    assert record.kept == 8 + 16 + 4  # and four line breaks


def test_reduce_takes_features_that_are_encoded_already():
    case = case_of("llava")
    inputs = case.inputs()
    once = vlm.reduce(case.model, inputs, NORM, 1.0)
    again = vlm.reduce(case.model, once, "dpc-knn", 0.5)
    direct = vlm.reduce(case.model, inputs, "dpc-knn", 0.5)
    assert torch.equal(case.model(**again).logits, case.model(**direct).logits)


@pytest.mark.parametrize(
    ("keep", "error", "match"),
    [
        (0, ValueError, "Expected keep >= 1"),
        (-3, ValueError, "Expected keep >= 1"),
        (0.0, ValueError, r"share in \(0, 1\]"),
        (1.5, ValueError, r"share in \(0, 1\]"),
        (float("nan"), ValueError, r"share in \(0, 1\]"),
        (17, ValueError, "at most 16 tokens"),
        (True, TypeError, "share"),
        ("half", TypeError, "share"),
    ],
)
def test_reduce_refuses_budgets_out_of_range(keep, error, match):
    case = case_of("llava")
    with pytest.raises(error, match=match):
        vlm.reduce(case.model, case.inputs(), NORM, keep)


def test_reduce_refuses_prompts_that_do_not_fit_their_pixels():
    case = case_of("llava")
    inputs = case.inputs((1, 1))
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:1]}
    with pytest.raises(
        ValueError, match=r"Expected 16 placeholders for 16 image features \(got 32, by prompt \[16, 16"
    ):
        vlm.reduce(case.model, fewer, NORM, 0.5)
    quoting = inputs["input_ids"].clone()
    quoting[0, -1] = IMAGE
    with pytest.raises(ValueError, match="own text contains the placeholder"):
        vlm.reduce(case.model, {**inputs, "input_ids": quoting}, NORM, 0.5)
    moved = quoting.clone()
    moved[1, moved[1].tolist().index(IMAGE)] = 5  # as many in all, but another prompt's
    with pytest.raises(ValueError, match="placeholders in one prompt"):
        vlm.reduce(case.model, {**inputs, "input_ids": moved}, NORM, 0.5)


def test_reduce_refuses_inputs_without_images_and_models_without_a_tower():
    from transformers import LlamaConfig, LlamaForCausalLM

    case = case_of("llava")
    inputs = case.inputs()
    text = {n: v for n, v in inputs.items() if n != "pixel_values"}
    with pytest.raises(ValueError, match="Expected inputs with pixels"):
        vlm.reduce(case.model, text, NORM, 0.5)
    with pytest.raises(ValueError, match=r"Expected inputs with input_ids \[B, L\]"):
        vlm.reduce(case.model, {"pixel_values": inputs["pixel_values"]}, NORM, 0.5)
    with pytest.raises(ValueError, match=r"Expected attention_mask of shape \[B, L\]"):
        vlm.reduce(case.model, {**inputs, "attention_mask": torch.ones(1, 1, 27, 27)}, NORM, 0.5)
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(TypeError, match=r"vision-language model of transformers 5 \(got LlamaForCausalLM"):
        vlm.reduce(llama, text, NORM, 0.5)
    with pytest.raises(ValueError, match="Did you mean 'tome'"):
        vlm.reduce(case.model, inputs, "tomee", 0.5)


def test_reduce_leaves_the_rope_state_of_the_model_alone():
    case = case_of("qwen2_5_vl")
    case.model.model.rope_deltas = marker = torch.tensor([[7]])
    vlm.reduce(case.model, case.inputs(), NORM, 0.5)
    assert case.model.model.rope_deltas is marker
    case.model.model.rope_deltas = None


@pytest.mark.parametrize("name", [n for n in BUILDERS if n != "qwen3_vl"])
def test_models_that_take_no_encoder_outputs_get_embeddings(name, monkeypatch):  # transformers before 5.18
    case = case_of(name)
    inputs = case.inputs((1, 2))
    direct = vlm.reduce(case.model, inputs, NORM, 0.5)
    monkeypatch.setattr(sys.modules["tokengraph.vlm.reduce"], "takes_encoder_outputs", lambda *args: False)
    older = vlm.reduce(case.model, inputs, NORM, 0.5)
    assert "inputs_embeds" in older and not {"input_ids", "mm_encoder_outputs"} & older.keys()
    for got, want in zip(real_logits(case, older), real_logits(case, direct), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    whole = vlm.reduce(case.model, inputs, NORM, 1.0)
    assert torch.equal(case.model(**whole).logits, case.model(**inputs).logits)


def test_models_that_take_encoder_outputs_in_runs_alone_get_embeddings(monkeypatch):  # SmolVLM of transformers 5.20
    case = case_of("smolvlm")
    monkeypatch.setattr(type(case.model.model), "inputs_merger", None, raising=False)
    assert "inputs_embeds" in vlm.reduce(case.model, case.inputs((1, 2)), NORM, 0.5)


def test_deepstack_needs_models_that_take_encoder_outputs(monkeypatch):
    case = case_of("qwen3_vl")
    from tokengraph.vlm import embeds

    monkeypatch.setattr(embeds.inspect, "signature", lambda function: type("S", (), {"parameters": {}})())
    with pytest.raises(ValueError, match=r"Expected transformers from 5.18 on for Qwen3VLModel.*DeepStack"):
        embeds.takes_encoder_outputs(case.model, case.model.model, deep=True)


@pytest.mark.parametrize("name", ["llava", "smolvlm", "qwen3_vl"])
def test_generate_with_several_beams_can_be_called_again(name):
    case = case_of(name)
    reduced = vlm.reduce(case.model, case.inputs((2, 1)), NORM, 0.5)
    asked = dict(max_new_tokens=3, num_beams=2, eos_token_id=None, do_sample=False)
    first, again = (case.model.generate(**reduced, **asked) for _ in range(2))
    assert torch.equal(first, again)
