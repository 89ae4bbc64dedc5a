"""Token migration and token gathering inside the network: the properties of their definition."""

import pytest
import torch
from torch.testing import assert_close

from tokengraph.models import FastITPN, TokenGathering, TokenMigration
from tokengraph.models.gathering_graph import edge_attention, gathering_edges
from tokengraph.models.main_stage import main_stage
from tokengraph.select.migration.redundancy import tokens_to_drop


def network(depth: int = 4, **options) -> FastITPN:
    torch.manual_seed(3)
    model = FastITPN(24, (1, 1, depth), 3, img_size=128, num_classes=5, **options).eval().double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def tokens(images: int = 2) -> torch.Tensor:
    return torch.randn(images, 64, 24, dtype=torch.float64)


def run(x: torch.Tensor, depth: int = 4, **options):
    return main_stage(network(depth).main_blocks, x, (8, 8), **options)


@pytest.mark.parametrize("gathering", [None, TokenGathering(window=4)])
def test_every_position_has_the_value_of_the_last_block_that_ran_on_it(gathering):
    x, learned = tokens(), torch.zeros(4, 24, dtype=torch.float64)
    out = run(x, migration=TokenMigration({1: 0.6, 3: 0.7}, replenish="identity"), gathering=gathering, learned=learned)
    found = torch.full_like(out.table, torch.nan)
    for image in range(2):
        found[image, out.ids[image]] = out.tokens[image]
        for step in out.steps:
            dropped = step.choice.dropped[image]
            assert found[image, step.ids[image][dropped]].isnan().all()  # never written
            found[image, step.ids[image][dropped]] = step.tokens[image][dropped]
    assert torch.equal(found, out.table)


def test_the_record_says_when_each_position_left_and_for_whom():
    out = run(tokens(), migration=TokenMigration({1: 0.6, 3: 0.7}, replenish="identity"))
    assert [len(torch.unique(ids)) for ids in out.ids] == [out.ids.size(1)] * 2
    assert (out.ids.diff(dim=1) > 0).all() and out.left_at.unique().tolist() == [0, 1, 3]
    for image in range(2):
        left, twin = out.left_at[image], out.twin[image]
        assert left[out.ids[image]].eq(0).all() and left.ne(0).sum() + out.ids.size(1) == 64
        assert torch.equal(twin.eq(-1), left.eq(0))
        gone = left.nonzero().flatten()
        stays = left[twin[gone]]
        assert (stays.eq(0) | (stays > left[gone])).all()


def test_a_drop_after_the_last_block_changes_the_record_only():
    x = tokens()
    out = run(x, migration=TokenMigration({4: 0.5}))
    assert_close(out.table, run(x).table, atol=1e-12, rtol=0)
    assert out.ids.size(1) == 32


@pytest.mark.parametrize(("depth", "layers"), [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (12, [3, 6, 9])])
def test_the_default_schedule_names_no_layer_twice_and_no_layer_zero(depth, layers):
    assert list(TokenMigration().removed(depth, 100)) == layers


def test_a_constant_number_leaves_after_every_block_as_long_as_it_can():
    assert TokenMigration(3).removed(4, 9) == {1: 3, 2: 3, 3: 2}
    assert TokenMigration({}).removed(4, 9) == TokenMigration(0).removed(4, 9) == TokenMigration({2: 1}).removed(4, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"replenish": "mean"}, r"replenish to be one of .*\(got 'mean'\)"),
     ({"similarity": "values"}, "similarity to be one of keys, tokens"), ({"split": "odd"}, "split to be one of"),
     ({"pool": "none"}, "pool to be one of"), ({"schedule": {0: 0.5}}, "layers counted from 1"),
     ({"schedule": -1}, r"tokens >= 0 \(got -1\)")],
)  # fmt: skip
def test_settings_of_migration_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenMigration(**options)


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match=r"layers 1 to 4 in the schedule \(got 5\)"):
        run(tokens(), migration=TokenMigration({5: 0.5}))


def test_similarity_may_be_that_of_the_tokens():
    x = tokens()
    steps = [
        run(x, migration=TokenMigration({2: 0.7}, similarity=s, split="rank")).steps[0] for s in ("keys", "tokens")
    ]
    assert not torch.equal(steps[0].choice.dropped, steps[1].choice.dropped)
    by_hand = torch.nn.functional.normalize(steps[1].tokens, dim=-1)
    best = (by_hand[:, 0::2] @ by_hand[:, 1::2].transpose(1, 2)).amax(dim=2)
    assert_close(steps[1].choice.score, best.sort(dim=1, descending=True).values[:, :19])


def test_size_weight_adds_the_log_of_who_a_token_stands_for():
    x, blocks = tokens(1), network().main_blocks
    out = run(x, migration=TokenMigration({1: 0.5}, size_weight=True))
    step = out.steps[0]
    kept = step.tokens[:, step.choice.keep[0]]
    size = torch.ones(64, dtype=torch.float64).index_add(0, step.choice.twin[0], torch.ones(32, dtype=torch.float64))
    copies = size[step.choice.keep[0]].long()
    assert copies.sum() == 64  # no token is lost
    rows = kept.repeat_interleave(copies, dim=1)  # a token of weight w hears and is heard as w equal tokens
    for block in blocks[1:]:
        rows = block(rows)
    first = torch.cat([copies.new_zeros(1), copies.cumsum(0)[:-1]])
    assert_close(out.tokens, rows[:, first], atol=1e-5, rtol=1e-5)  # sizes are float32


def test_tokens_that_left_get_gradient_from_the_table_only():
    x = tokens(1).requires_grad_()
    out = run(x, migration=TokenMigration({1: 0.6}, replenish="identity"))
    step = out.steps[0]
    gone = step.choice.dropped[0]
    (through_kept,) = torch.autograd.grad(out.table[:, out.ids[0]].square().sum(), step.tokens, retain_graph=True)
    assert through_kept[:, gone].abs().max() == 0 and through_kept.abs().max() > 0
    (through_all,) = torch.autograd.grad(out.table.square().sum(), step.tokens, retain_graph=True)
    assert_close(through_all[:, gone], 2 * step.tokens[:, gone])
    out.table.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert not step.choice.score.requires_grad


def reached(depth: int, gathering: TokenGathering) -> torch.Tensor:
    """Which windows of 4 x 4 notice a change of token 0."""
    x, learned = tokens(1), torch.randn(gathering.num_hubs, 24, dtype=torch.float64)
    changed = x.clone()
    changed[:, 0] = torch.randn(24)
    options = {"gathering": gathering, "learned": learned if gathering.num_hubs else None}
    moved = (run(x, depth, **options).table - run(changed, depth, **options).table).abs().amax(dim=2)
    return moved.view(2, 4, 2, 4).amax(dim=(1, 3)).flatten() > 0


def test_nothing_crosses_windows_without_hubs():
    assert reached(4, TokenGathering(window=4, hubs=None)).tolist() == [True, False, False, False]


def test_news_takes_two_blocks_through_given_hubs_and_one_through_pooled_ones():
    given, pooled = TokenGathering(window=4, pooled=False), TokenGathering(window=4)
    assert reached(1, given).tolist() == [True, False, False, False]
    assert reached(2, given).all() and reached(1, pooled).all()


def test_hubs_never_leave_and_never_enter_the_table():
    model = network(gathering=TokenGathering(window=4, hubs=(1, 3)), migration=TokenMigration({1: 0.1, 2: 0.1, 3: 0.1}))
    out = model.forward_record(torch.randn(1, 3, 128, 128, dtype=torch.float64))
    assert out.table.shape == (1, 64, 24) and out.ids.size(1) == 8
    assert out.ids.max() < 64 and out.left_at.ne(0).sum() == 56


def test_gathering_tokens_without_a_learned_part_are_refused():
    model = network()
    model.gathering = TokenGathering(window=4)
    with pytest.raises(ValueError, match=r"m=4 gathering tokens \(got one for 0\)"):
        model(torch.randn(1, 3, 128, 128, dtype=torch.float64))


def test_two_tokens_leave_one_and_one_token_stays():
    blocks = network().main_blocks
    x = torch.randn(1, 2, 24, dtype=torch.float64)
    out = main_stage(blocks, x, (1, 2), migration=TokenMigration({1: 0.0, 2: 0.0, 3: 0.0}))
    assert out.ids.tolist() == [[1]] and out.left_at.tolist() == [[1, 0]]


def step_by_step(x: torch.Tensor, keep: dict[int, float], window: int | None, hubs: int) -> torch.Tensor:
    """The definition of both, word by word, for one image: a graph, its edges, and a table of nodes."""
    ids, table = torch.arange(64), x.clone()
    nodes = x if not hubs else torch.cat([x, x.mean(dim=0, keepdim=True)])
    for layer, block in enumerate(network().main_blocks, 1):
        attn, y, n = block.attn, block.norm1(nodes), len(ids)
        q, k, v = attn.q_proj(y) + attn.q_bias, attn.k_proj(y), attn.v_proj(y) + attn.v_bias
        q, k, v = (t.view(-1, 3, 8) for t in (q, k, v))
        edges = gathering_edges((8, 8), None if window is None else (window, window), hubs, ids=ids[None])
        nodes = block.feed(nodes + block.gamma_1 * attn.proj(edge_attention(q, k, v, edges).flatten(1)))
        if layer in keep:
            mean = k[:n].mean(dim=1)
            cosine = torch.nn.functional.cosine_similarity(mean[0::2, None], mean[None, 1::2], dim=-1)
            leaving = 2 * cosine.amax(dim=1).argsort(descending=True)[: tokens_to_drop(n, keep[layer])]
            table[ids[leaving]] = nodes[leaving]
            stays = torch.ones(len(nodes), dtype=torch.bool)
            stays[leaving] = False
            nodes, ids = nodes[stays], ids[stays[:n]]
    table[ids] = nodes[: len(ids)]
    return table


@pytest.mark.parametrize(("window", "hubs"), [(None, 0), (None, 1), (4, 0), (4, 1), (3, 1)])
def test_migration_and_gathering_together_follow_the_definition_edge_by_edge(window, hubs):
    x, keep = tokens(2), {1: 0.7, 2: 0.5, 3: 0.8}
    gathering = TokenGathering(window=window, hubs=(1, 1) if hubs else None)
    learned = torch.zeros(1, 24, dtype=torch.float64) if hubs else None
    with torch.no_grad():
        out = run(
            x,
            migration=TokenMigration(keep, replenish="identity", similarity="keys", split="rank"),
            gathering=gathering,
            learned=learned,
        ).table
        for image in range(2):
            assert_close(out[image], step_by_step(x[image], keep, window, hubs), atol=1e-10, rtol=0)
