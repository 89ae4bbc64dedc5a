"""Strategies for visual tokens, on literal inputs and against the tower's own attention."""

import pytest
import torch

import tokengraph as tg
from tokengraph import vlm
from tokengraph.select.tokens import Tokens
from tokengraph.vlm.selectors.dpp import dpp, greedy_map
from tokengraph.vlm.selectors.duplicates import least_duplicated
from tokengraph.vlm.selectors.lower_resolution import cells_within
from tokengraph.vlm.selectors.tower_output import attended


def test_greedy_map_takes_the_largest_determinant_at_each_step():
    x = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = x @ x.transpose(1, 2) + 0.1 * torch.eye(9, dtype=torch.float64)
    chosen = greedy_map(kernel, 5)
    for matrix, picks in zip(kernel, chosen.tolist(), strict=True):
        have: list[int] = []
        for pick in picks:
            rest = [i for i in range(9) if i not in have]
            best = max(rest, key=lambda i: torch.linalg.det(matrix[[*have, i]][:, [*have, i]]).item())
            assert pick == best
            have.append(pick)


def test_dpp_keeps_distinct_tokens_of_duplicates_and_zeros():
    x = torch.zeros(1, 6, 3)
    x[0, 1:4] = torch.tensor([1.0, 0.0, 0.0])
    assert dpp(x, 4).centers.unique().numel() == 4
    assert dpp(x[:, :1], 1).cluster.tolist() == [0]


def test_a_query_draws_the_choice_to_its_tokens():
    x = torch.eye(4).repeat(1, 2, 1)
    x[0, 4:] += 0.05
    query = torch.tensor([0.0, 0.0, 1.0, 0.9])
    assert set(dpp(x, 2, query=query).centers.tolist()) <= {2, 3, 6, 7}
    with pytest.raises(ValueError, match=r"Expected query of shape \[C\] or \[Q, C\] with C=4"):
        dpp(x, 2, query=torch.zeros(3))


def test_dpp_merges_the_others_into_the_nearest_kept_token():
    x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]])
    merged = dpp(x, 2, merge=True)
    assert merged.cluster.tolist() == [0, 0, 1, 1] and not merged.drops


def test_duplicates_of_pivots_are_dropped_first():
    x = torch.tensor([[[5.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.7, 0.7], [2.0, 0.0]]])
    kept = least_duplicated(x, 3, pivots=1).centers
    assert kept.tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="Expected pivots >= 1"):
        vlm.Duplicates(pivots=0)


@pytest.mark.parametrize(
    ("grid", "keep", "cells"),
    [((24, 24), 144, (12, 12)), ((4, 8), 8, (2, 4)), ((3, 3), 9, (3, 3)), ((1, 9), 4, (1, 4)), ((5, 5), 1, (1, 1))],
)
def test_a_lower_resolution_has_the_shape_of_the_image(grid, keep, cells):
    assert cells_within(grid, keep) == cells


class Attended:
    """The attention of a tower without a class token, by given scores."""

    num_prefix = 0

    def __init__(self, score, keys):
        self.score, self.given = score, keys

    def column_sums(self):
        return self.score[:, None]

    def keys(self):
        return self.given


def attended_tokens(score, keys):
    return Tokens(keys, attention=Attended(score, keys))


def test_vision_zip_keeps_the_most_attended_and_merges_the_rest_by_keys():
    score = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.05, 0.4]])
    keys = torch.tensor([[[1.0, 0.0], [9.0, 9.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0], [0.9, 0.0]]])
    step = vlm.VisionZip(contextual=2 / 3)(attended_tokens(score, keys), 3)  # the rest 0 2 3 4 5 has targets 0 and 3
    assert step.centers.tolist() == [1, 0, 3]
    assert step.cluster.tolist() == [1, 0, 2, 2, 2, 1]
    assert step.reduce(torch.arange(6.0)[:, None])[0].flatten().tolist() == [1.0, 2.5, 3.0]


def test_pru_merge_weighs_neighbours_by_attention_and_has_one_token_for_the_rest():
    score = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]])
    step = vlm.PruMerge(neighbours=1)(attended_tokens(score, keys), 2)
    rows = torch.tensor([[4.0], [8.0], [1.0], [3.0]])
    kept = (4.0 + 0.25 * 8.0) / 1.25
    rest = (0.25 * 8.0 + 0.125 * 1.0 + 0.125 * 3.0) / 0.5
    torch.testing.assert_close(step.reduce(rows)[0].flatten(), torch.tensor([kept, rest]))
    assert step.centers.tolist() == [0, 1]
    alone = vlm.PruMerge()(attended_tokens(score, keys), 1)
    torch.testing.assert_close(alone.reduce(rows)[0].flatten(), (score[0] * rows[:, 0]).sum()[None])


def test_strategies_that_read_attention_say_so_without_it():
    tokens = Tokens(torch.randn(1, 6, 4))
    for strategy in (vlm.VisionZip(), vlm.PruMerge(), vlm.Received()):
        with pytest.raises(ValueError, match="Expected the attention of a vision tower"):
            strategy(tokens, 3)


@pytest.mark.parametrize("name", ["llava", "paligemma", "smolvlm", "internvl", "gemma3"])
def test_the_attention_is_that_of_the_block_whose_output_the_model_reads(name):
    pytest.importorskip("transformers", minversion="5.18")
    from vlm_models import BUILDERS

    from tokengraph.vlm.families.find import find_base
    from tokengraph.vlm.tower import find_tower

    case = BUILDERS[name]()
    inputs = case.inputs((2,))
    base = find_base(case.model)
    seen = []

    class Spy(vlm.Received):
        def __call__(self, tokens, budget):
            seen.append(attended(tokens))
            return super().__call__(tokens, budget)

    with torch.no_grad():
        vlm.reduce(case.model, inputs, Spy(), 0.5)
        case.model.set_attn_implementation("eager")
        pixels = inputs["pixel_values"].flatten(0, -4)
        maps = find_tower(base)(pixels, output_attentions=True).attentions
    attention = maps[-2 if name == "llava" else -1].mean(dim=1)  # LLaVA reads the last but one hidden state
    prefix = attention.size(1) - attention.size(1) // 4 * 4 if name == "llava" else int(attention.size(1) % 2)
    row = attention[:, 0, prefix:] if prefix else attention.sum(dim=1)
    fold = round((row.size(1) / seen[0].size(1)) ** 0.5)
    side = round(row.size(1) ** 0.5) // fold
    row = row.view(len(row), side, fold, side, fold).mean(dim=(2, 4)).flatten(1)
    torch.testing.assert_close(seen[0], row, rtol=1e-4, atol=1e-6)


def test_names_of_this_place_come_first_and_wrong_ones_are_told_all():
    assert isinstance(vlm.selectors.names.resolve("cdpruner"), vlm.DPP)
    assert isinstance(vlm.selectors.names.resolve("fastv"), vlm.Received)
    assert isinstance(vlm.selectors.names.resolve("tome"), tg.ToMe)
    with pytest.raises(ValueError, match="For visual tokens also: .*visionzip"):
        vlm.selectors.names.resolve("nothing-like-it")
