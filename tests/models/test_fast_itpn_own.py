"""Migration and gathering against this project's own float64 reference (tests/reference/fast_itpn/README.md)."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.models import FastITPN, TokenGathering, TokenMigration, TokenRecord
from tokengraph.models.gathering import make_windows
from tokengraph.models.gathering_graph import gathering_edges
from tokengraph.models.main_stage import main_stage

STORED = {"similarity": "keys", "split": "rank"}  # the form of the stored arrays
DROPS = {1: 0.75, 2: 0.75, 3: 0.75}
GATHERINGS = {
    "window": TokenGathering(window=4, hubs=None),
    "gather": TokenGathering(window=4),
    "gather_param": TokenGathering(window=4),
    "gather_ragged": TokenGathering(window=3, hubs=(1, 2)),
}


def network(vectors) -> FastITPN:
    arrays = vectors("fast_itpn", "off_fast_itpn_128")
    model = FastITPN(48, (1, 2, 4), 3, img_size=128, num_classes=7).eval()
    model.load_state_dict({k.removeprefix("sd/"): v for k, v in arrays.items() if k.startswith("sd/")})
    return model


def run(model: FastITPN, x: torch.Tensor, dtype: torch.dtype, **options) -> TokenRecord:
    model.to(dtype)
    with torch.no_grad():
        return main_stage(model.main_blocks, x[None].to(dtype), (8, 8), **options)


def near(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": 1e-9 if dtype == torch.float64 else 2e-5, "rtol": 0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_migration_gives_the_reference_table_record_and_logits(vectors, dtype):
    arrays, model = vectors("fast_itpn", "own_token_migration"), network(vectors)
    own = {k.removeprefix("migrate/"): v for k, v in arrays.items() if k.startswith("migrate/")}
    out = run(model, arrays["x0"], dtype, migration=TokenMigration(DROPS, **STORED, replenish="identity"))
    assert_close(out.table[0], own["table"].to(dtype), **near(dtype))
    assert_close(out.tokens[0], own["kept_tokens"].to(dtype), **near(dtype))
    assert torch.equal(out.ids[0], own["kept_ids"])
    assert torch.equal(out.left_at[0], own["left_at"]) and torch.equal(out.twin[0], own["twin"])
    for i, step in enumerate(out.steps, 1):
        assert step.layer == i and torch.equal(step.ids[0], own[f"ids_{i}"])
        assert_close(step.tokens[0], own[f"tokens_{i}"].to(dtype), **near(dtype))
        assert torch.equal(step.ids[0][step.choice.dropped[0]], own[f"dropped_{i}"])
        assert torch.equal(step.ids[0][step.choice.twin[0]], own[f"twin_{i}"])
        assert_close(step.choice.score[0], own[f"score_{i}"].to(dtype), **near(dtype))
    with torch.no_grad():
        assert_close(model.forward_head(out.table)[0], own["logits_all"].to(dtype), **near(dtype))
        assert_close(model.forward_head(out.tokens)[0], own["logits_kept"].to(dtype), **near(dtype))


@pytest.mark.parametrize("rule", ["zero", "twin_copy", "twin_delta"])
def test_each_way_of_replenishing_gives_the_reference_table(vectors, rule):
    arrays, model = vectors("fast_itpn", "own_token_migration"), network(vectors)
    out = run(model, arrays["x0"], torch.float64, migration=TokenMigration(DROPS, **STORED, replenish=rule))
    assert_close(out.table[0], arrays[f"migrate/table_{rule}"], **near(torch.float64))


def test_nothing_left_is_the_reference_without_migration(vectors):
    arrays, model = vectors("fast_itpn", "own_token_migration"), network(vectors)
    out = run(model, arrays["x0"], torch.float64, migration=TokenMigration({}, **STORED))
    assert_close(out.table[0], arrays["plain/table"], **near(torch.float64))
    assert out.steps == () and out.twin.unique().tolist() == [-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", GATHERINGS)
def test_gathering_gives_the_reference_tokens(vectors, name, dtype):
    arrays, model, gathering = vectors("fast_itpn", "own_token_gathering"), network(vectors), GATHERINGS[name]
    learned = (arrays["gather_param"] if name == "gather_param" else torch.zeros(gathering.num_hubs, 48)).to(dtype)
    windows = make_windows((8, 8), gathering.window_on((8, 8)))
    x = arrays["x0"][None].to(dtype)
    hubs = gathering.start(x, (8, 8), learned) if gathering.hubs else x[:, :0]
    assert_close(hubs[0], arrays[f"{name}/gather_0"].to(dtype), **near(dtype))
    nodes = torch.cat([x, hubs], dim=1)
    model.to(dtype)
    for layer, block in enumerate(model.main_blocks, 1):
        nodes = block.run(nodes, gathering.attend(layer, windows))[0].detach()
        assert_close(nodes[0, :64], arrays[f"{name}/tokens_{layer}"].to(dtype), **near(dtype))
        assert_close(nodes[0, 64:], arrays[f"{name}/gather_{layer}"].to(dtype), **near(dtype))
    out = run(model, arrays["x0"], dtype, gathering=gathering, learned=learned if len(learned) else None)
    assert_close(out.table[0], arrays[f"{name}/table"].to(dtype), **near(dtype))


def test_edges_fall_with_the_tokens_that_leave(vectors):
    arrays, model = vectors("fast_itpn", "own_token_gathering"), network(vectors)
    out = run(model, arrays["x0"], torch.float64, migration=TokenMigration(DROPS, **STORED, replenish="identity"),
              gathering=TokenGathering(window=4),
              learned=torch.zeros(4, 48, dtype=torch.float64))  # fmt: skip
    ids = [step.ids for step in out.steps] + [out.ids]
    assert [i.size(1) for i in ids] == [64, 48, 36, 27]
    assert [gathering_edges((8, 8), (4, 4), 4, ids=i).size(1) for i in ids] == [1552, 982, 642, 429]
