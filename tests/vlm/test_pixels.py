"""Units of pixels that repeat others stay out of the tower."""

from functools import cache

import pytest
import torch

pytest.importorskip("transformers", minversion="5.18")

from vlm_models import BUILDERS, VIDEO, Case, packed
from vlm_oracle import kept_columns, whole_positions

from tokengraph import vlm
from tokengraph.vlm.pixels import find_repeats

FAMILIES = ["qwen2_5_vl", "qwen3_vl"]


@cache
def case_of(name: str) -> Case:
    return BUILDERS[name]()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def with_repeats(inputs: dict, units: list[int], of: int) -> dict:
    pixels = inputs["pixel_values"].clone().view(-1, 4, 96)
    pixels[units] = pixels[of].clone()
    return {**inputs, "pixel_values": pixels.view(-1, 96)}


@pytest.mark.parametrize("name", FAMILIES)
def test_drop_duplicates_that_finds_none_is_bit_identical(name):
    case = case_of(name)
    inputs = case.inputs((1, 2))
    plain = case.model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    reduced = vlm.drop_duplicates(case.model, inputs)
    output = reduced["mm_encoder_outputs"]["image"]
    assert torch.equal(torch.cat(list(output.pooler_output)), torch.cat(list(plain.pooler_output)))
    assert torch.equal(case.model(**reduced).logits, case.model(**inputs).logits)
    assert reduced.record.kept == [16, 16, 16]


@pytest.mark.parametrize("name", FAMILIES)
def test_dropped_units_are_as_if_masked_in_tower_and_language_model(name, monkeypatch):
    case = case_of(name)
    gone = [3, 6, 7, 16 + 5]
    inputs = with_repeats(case.inputs((2,)), gone, 2)
    inputs["pixel_values"].view(-1, 4, 96)[16 + 5] = inputs["pixel_values"].view(-1, 4, 96)[16 + 4].clone()
    reduced = vlm.drop_duplicates(case.model, inputs)
    assert reduced.record.kept == [13, 15]
    rows = torch.ones(32, dtype=torch.bool)
    rows[gone] = False
    features = tower_with_masked_units(case, inputs, rows)
    got = torch.cat(list(reduced["mm_encoder_outputs"]["image"].pooler_output))
    torch.testing.assert_close(got, features[rows], rtol=0, atol=1e-5)
    mask = kept_columns(case, inputs, reduced.record)
    positions = whole_positions(case, inputs)[:, :, mask[0].bool()]
    assert torch.equal(reduced["position_ids"], positions)
    assert case.model.generate(**reduced, max_new_tokens=2, do_sample=False).size(0) == 1


def tower_with_masked_units(case, inputs, rows):
    """The tower's features of all units, with the dropped units' keys masked in every block."""
    tower = case.model.model.visual
    import sys

    module = sys.modules[type(tower).__module__]
    there = rows.repeat_interleave(4)
    if hasattr(tower, "fullatt_block_indexes"):
        from transformers.vision_utils import get_vision_window_index

        index, _ = get_vision_window_index(inputs["image_grid_thw"], 2, tower.window_size, tower.patch_size)
        there = rows[index].repeat_interleave(4)
    original = module.ALL_ATTENTION_FUNCTIONS.get_interface
    state = {}

    def masked(module_, q, k, v, attention_mask=None, **more):
        start = state["start"] % there.numel()
        state["start"] += q.size(2)
        bias = torch.zeros(k.size(2)).masked_fill(~there[start : start + k.size(2)], -torch.inf)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None, None])
        return out.transpose(1, 2), None

    state["start"] = 0
    module.ALL_ATTENTION_FUNCTIONS.get_interface = lambda *args: masked
    try:
        output = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    finally:
        del module.ALL_ATTENTION_FUNCTIONS.get_interface
    assert module.ALL_ATTENTION_FUNCTIONS.get_interface == original
    return output.pooler_output


def test_the_record_gives_a_dropped_unit_the_row_of_the_one_it_repeats():
    case = case_of("qwen3_vl")
    reduced = vlm.drop_duplicates(case.model, with_repeats(case.inputs(), [3, 9], 2))
    (picture,) = reduced.record.images[0].maps(torch.arange(14.0)[:, None])
    assert picture.flatten()[[2, 3, 9]].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", FAMILIES)
def test_still_frames_of_a_video_are_left_out(name):
    case = case_of(name)
    stamp = [5] if name == "qwen3_vl" else []
    ids = torch.tensor([[1, *([*stamp, *[VIDEO] * 16] * 3), 9]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        **packed(1, (3, 8, 8), "video"),
    }
    inputs["pixel_values_videos"][64:128] = inputs["pixel_values_videos"][:64]
    reduced = vlm.drop_duplicates(case.model, inputs)
    assert reduced.record.kept == [32]
    assert case.model(**reduced).logits.isfinite().all()


def test_find_repeats_with_a_tolerance_looks_at_neighbours_and_does_not_drift():
    units = torch.tensor([[0.0], [0.1], [0.2], [0.9], [0.5], [0.55], [0.2]])
    assert find_repeats(units, torch.tensor([[1, 2, 3], [1, 1, 1]]), 0.11).tolist() == [0, 0, 2, 3, 4, 4, 6]
    assert find_repeats(units, torch.tensor([[1, 7, 1]]), 0.0).tolist() == [0, 1, 2, 3, 4, 5, 2]


def test_drop_duplicates_refuses_other_towers_and_inputs():
    llava, qwen = case_of("llava"), case_of("qwen2_vl")
    with pytest.raises(ValueError, match="Expected the tower of Qwen2.5-VL or Qwen3-VL"):
        vlm.drop_duplicates(qwen.model, qwen.inputs())
    with pytest.raises(ValueError, match="Expected inputs with pixel_values and image_grid_thw"):
        vlm.drop_duplicates(llava.model, llava.inputs())
    with pytest.raises(ValueError, match="Expected tolerance >= 0"):
        vlm.drop_duplicates(qwen.model, qwen.inputs(), tolerance=-1.0)
