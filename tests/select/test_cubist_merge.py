"""CubistMerge by its definition and its properties."""

import pytest
import torch

import tokengraph as tg
from tokengraph import cubist_merge
from tokengraph.select.cubist_merge import coarse_grid
from tokengraph.testing import tiny_vit


def by_hand(x, coarse, reduce):
    """The definition, token by token: ``x [H, W, C]`` to the rows of the coarse grid and members of each cell."""

    def shorten(lines, lost):
        out = []
        for line in lines:
            edges = []
            for i in range(1, len(line), 2):
                near = [j for j in (i - 1, i + 1) if j < len(line)]
                cosine = [torch.cosine_similarity(line[i][0], line[j][0], dim=0).item() for j in near]
                best = max(range(len(near)), key=lambda k: (cosine[k], -k))
                edges.append((-cosine[best], i, near[best]))
            into = {i: j for _, i, j in sorted(edges)[:lost]}
            groups = {i: [i] for i in range(len(line)) if i not in into}
            for i, j in into.items():
                groups[j].append(i)
            out.append([pool([line[k] for k in members]) for members in groups.values()])
        return out

    def pool(tokens):
        values, members = torch.stack([t[0] for t in tokens]), [m for t in tokens for m in t[1]]
        if reduce == "mean":
            size = torch.tensor([float(len(t[1])) for t in tokens])
            return (values * size[:, None]).sum(0) / size.sum(), members
        return values.gather(0, values.abs().argmax(0, keepdim=True))[0], members

    height, width = x.shape[:2]
    grid = [[(x[i, j], [i * width + j]) for j in range(width)] for i in range(height)]
    grid = shorten(grid, width - coarse[1])
    columns = shorten([list(column) for column in zip(*grid, strict=True)], height - coarse[0])
    cells = [cell for row in zip(*columns, strict=True) for cell in row]
    return torch.stack([value for value, _ in cells]), [sorted(members) for _, members in cells]


@pytest.mark.parametrize("reduce", ["absmax", "mean"])
@pytest.mark.parametrize(("grid", "coarse"), [((6, 7), (4, 5)), ((5, 8), (3, 4)), ((4, 4), (4, 3)), ((1, 9), (1, 5))])
def test_rows_then_columns_merge_as_defined(reduce, grid, coarse):
    x = torch.randn(2, grid[0] * grid[1], 6)
    a = cubist_merge(x, grid, coarse, reduce=reduce)
    rows, size = a.reduce(x.flatten(0, 1), reduce=reduce)
    count = coarse[0] * coarse[1]
    for b in range(2):
        wanted, members = by_hand(x[b].view(*grid, 6), coarse, reduce)
        torch.testing.assert_close(rows[b * count : (b + 1) * count], wanted)
        own = a.cluster.view(2, -1)[b] - b * count
        assert [(own == k).nonzero().flatten().tolist() for k in range(count)] == members
    assert size.sum() == x.size(0) * x.size(1)


def test_equal_tokens_merge_to_the_left_and_from_the_left():
    assert cubist_merge(torch.ones(1, 6, 2), (1, 6), (1, 4)).cluster.tolist() == [0, 0, 1, 1, 2, 3]
    assert cubist_merge(torch.zeros(1, 6, 2), (6, 1), (3, 1)).cluster.tolist() == [0, 0, 1, 1, 2, 2]


def test_clusters_lie_in_the_order_of_their_tokens():
    x = torch.randn(1, 64, 5)
    cluster = cubist_merge(x, (8, 8), (5, 6)).cluster
    row, column = cluster.view(8, 8) // 6, cluster.view(8, 8) % 6
    assert (column.diff(dim=1) >= 0).all() and (row.diff(dim=0) >= 0).all()
    assert (row - torch.arange(8)[:, None]).max() <= 0 and (column - torch.arange(8)).max() <= 0


def test_the_coarse_grid_is_the_largest_within_the_budget():
    for grid in ((14, 14), (6, 8), (5, 9), (1, 7), (2, 2)):
        count, least = grid[0] * grid[1], ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        for keep in range(1, count + 1):
            h, w = coarse_grid(grid, keep)
            assert least[0] <= h <= grid[0] and least[1] <= w <= grid[1]
            assert h * w <= max(keep, least[0] * least[1])
    assert coarse_grid((14, 14), 196) == (14, 14) and coarse_grid((12, 24), 72) == (6, 12)


def test_absmax_keeps_the_value_of_larger_magnitude_with_its_sign():
    x = torch.tensor([[1.0, -3.0, 2.0], [-2.0, 1.0, -2.0], [0.0, 0.5, -0.5]], requires_grad=True)
    a = tg.Assignment(torch.tensor([0, 0, 1]), 2)
    rows, size = a.reduce(x, reduce="absmax")
    assert rows.tolist() == [[-2.0, -3.0, 2.0], [0.0, 0.5, -0.5]] and size.tolist() == [2, 1]
    rows.sum().backward()
    assert x.grad.tolist()[0][1] == 1 and x.grad.tolist()[1][1] == 0 and x.grad.tolist()[1][0] == 1


def test_a_model_has_a_smaller_grid_behind_it():
    model, images = tiny_vit(img_size=(32, 48)), torch.randn(2, 3, 32, 48)
    with torch.no_grad(), tg.attach(model, tg.CubistMerge(coarse=(3, 4)), {1: "cluster"}) as handle:
        model(images)
        assert list(handle.trace.counts) == [24, 12, 12, 12]
        pos = handle.trace.state(3).locate(images.device)  # of the coarse grid's rows and columns, in order
        assert (pos[0].view(3, 4, 2)[..., 0].diff(dim=0) > 0).all() and (
            pos[0].view(3, 4, 2)[..., 1].diff(dim=1) > 0
        ).all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"Expected a coarse grid from 2 x 2 to 4 x 4 .got 1 x 4"):
        cubist_merge(torch.ones(1, 16, 2), (4, 4), (1, 4))
    with pytest.raises(ValueError, match="Expected reduce to be 'absmax' or 'mean' .got 'max'"):
        tg.CubistMerge("max")
    with pytest.raises(ValueError, match="Expected the full grid .H, W. for CubistMerge .got 5 tokens"):
        tg.coarsen(tg.TokenGraph.from_tokens(torch.randn(1, 5, 4)), tg.CubistMerge(), 3)
