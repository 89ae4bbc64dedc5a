"""Pictures: what is drawn where."""

import numpy as np
import pytest
import torch

import tokengraph as tg
from tokengraph import viz
from tokengraph.viz.clusters import labels_of

IMAGE = torch.linspace(0, 1, 3 * 16 * 24).view(3, 16, 24)


def graph(grid=(4, 6), images=1) -> tg.TokenGraph:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(images, grid[0] * grid[1], 5, generator=generator)
    return tg.TokenGraph.from_tokens(tokens, grid=grid)


def texts(figure) -> str:
    return " | ".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


# Images


def test_to_rgb_reads_all_usual_forms_alike():
    chw = (IMAGE * 255).round().to(torch.uint8)
    forms = [chw, chw.permute(1, 2, 0), chw.numpy(), chw.permute(1, 2, 0).numpy(), chw.float() / 255]
    pictures = [viz.to_rgb(form) for form in forms]
    assert pictures[0].shape == (16, 24, 3) and pictures[0].dtype == np.float32
    assert all(np.allclose(pictures[0], other) for other in pictures)


def test_to_rgb_reads_small_squares_by_their_kind():
    square = torch.rand(3, 3, 3)
    assert np.allclose(viz.to_rgb(square), square.permute(1, 2, 0))
    assert np.allclose(viz.to_rgb(square.numpy()), square)


def test_to_rgb_takes_gradients_and_half_precision():
    assert viz.to_rgb(IMAGE.to(torch.bfloat16).requires_grad_()).max() == 1


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (torch.zeros(1, 3, 4, 4), r"shape \[3, H, W\] or \[H, W, 3\] \(got \[1, 3, 4, 4\]\)"),
        (torch.zeros(4, 4), "shape"),
        (torch.zeros(3, 0, 4), "shape"),
        (torch.full((3, 4, 4), 2.0), r"in \[0, 1\] or uint8 \(got 2 to 2\). Undo the model's normalisation"),
        (torch.full((3, 4, 4), torch.nan), r"in \[0, 1\]"),
    ],
)
def test_to_rgb_refuses_other_shapes_and_values(image, match):
    with pytest.raises(ValueError, match=match):
        viz.to_rgb(image)


# Clusters


def test_cluster_overlay_paints_each_cluster_in_its_mean_colour():
    image = torch.zeros(3, 4, 8)
    image[0, :, :2], image[2, :, 4:] = 1.0, 0.5
    picture = viz.cluster_overlay(image, torch.tensor([0, 1]), (1, 2), line=0)
    assert picture.shape == (4, 8, 3)
    assert picture[:, :4].reshape(-1, 3).tolist() == [[0.5, 0, 0]] * 16
    assert picture[:, 4:].reshape(-1, 3).tolist() == [[0, 0, 0.5]] * 16


@pytest.mark.parametrize(("line", "columns"), [(0, []), (1, [3]), (2, [3, 4]), (3, [2, 3, 4]), (4, [2, 3, 4, 5])])
def test_cluster_overlay_draws_lines_over_the_border(line, columns):
    picture = viz.cluster_overlay(torch.zeros(3, 4, 8), torch.tensor([0, 1]), (1, 2), line=line)
    assert np.flatnonzero(picture[2, :, 0]).tolist() == columns


def test_cluster_overlay_draws_no_line_inside_a_cluster_nor_around_the_image():
    picture = viz.cluster_overlay(torch.zeros(3, 8, 8), torch.zeros(16, dtype=torch.long), (4, 4), line=3)
    assert not picture.any()


def test_cluster_overlay_with_fill_zero_leaves_the_photograph_between_the_lines():
    picture = viz.cluster_overlay(IMAGE, torch.arange(24) // 12, (4, 6), fill=0.0, line=1)
    assert np.allclose(np.delete(picture, 7, axis=0), np.delete(viz.to_rgb(IMAGE), 7, axis=0))
    assert (picture[7] == 1).all()


def test_cluster_overlay_darkens_and_greys_dropped_patches():
    image = torch.tensor([1.0, 0.2, 0.0]).view(3, 1, 1).expand(3, 2, 4)
    picture = viz.cluster_overlay(image, tg.Assignment(torch.tensor([0, 1]), 1, drops=True), (1, 2), line=0)
    dropped = picture[0, 3]
    assert np.ptp(dropped) == 0 and dropped.max() < 0.4
    assert picture[0, 0].tolist() == pytest.approx([1, 0.2, 0])


def test_cluster_overlay_takes_image_sizes_that_are_no_multiple_of_the_grid():
    picture = viz.cluster_overlay(torch.rand(3, 17, 23), torch.arange(35), (5, 7), line=0)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 35


def test_cluster_overlay_does_not_change_its_arguments():
    image, clusters = np.random.default_rng(0).random((8, 8, 3)), np.arange(4)
    before = image.copy(), clusters.copy()
    viz.cluster_overlay(image, clusters, (2, 2))
    assert np.array_equal(image, before[0]) and np.array_equal(clusters, before[1])


@pytest.mark.parametrize(
    ("clusters", "grid", "options", "error", "match"),
    [
        (torch.arange(5), (2, 2), {}, ValueError, "Expected a grid of N=5 patches"),
        (torch.arange(0), (2, 2), {}, ValueError, "Expected a grid of N=0"),
        (torch.rand(4), (2, 2), {}, TypeError, "cluster numbers as integers"),
        (torch.arange(4), (2, 2), {"index": 1}, ValueError, r"index in \[0, B=1\) \(got 1\)"),
        (torch.arange(4), (2, 2), {"fill": 1.5}, ValueError, r"fill in \[0, 1\] \(got fill=1.5\)"),
    ],
)
def test_cluster_overlay_refuses_what_does_not_fit(clusters, grid, options, error, match):
    with pytest.raises(error, match=match):
        viz.cluster_overlay(torch.zeros(3, 8, 8), clusters, grid, **options)


def test_labels_of_picks_one_image_of_a_batch():
    both = tg.Assignment.from_dense(torch.tensor([[0, 0, 1, 1], [0, 1, -1, 1]]), 2, drops=True)
    assert labels_of(both, (2, 2), 0).tolist() == [[0, 0], [1, 1]]
    assert labels_of(both, (2, 2), 1).tolist() == [[2, 3], [-1, 3]]


def test_labels_of_gives_soft_tokens_to_their_heaviest_cluster():
    soft = tg.SoftAssignment(
        torch.tensor([0, 0, 1, 1, 3]), torch.tensor([0, 1, 0, 1, 1]), torch.tensor([0.2, 0.8, 0.5, 0.5, 1.0]), 4, 2
    )
    assert labels_of(soft, (2, 2)).tolist() == [[1, 0], [-1, 1]]


def test_plot_clusters_shows_the_photograph_and_every_method():
    pytest.importorskip("matplotlib")
    kept = tg.coarsen(graph(), tg.TopK(score="norm"), 5).assignment
    figure = viz.plot_clusters(IMAGE, {"halves": torch.arange(24) // 12, "best": kept}, (4, 6), title="A title")
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 3
    for text in ("photograph", "4 x 6 patches", "halves", "2 tokens", "best", "5 of 24 kept", "A title"):
        assert text in texts(figure)


def test_plot_clusters_leaves_pyplot_alone():
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    settings = dict(pyplot.rcParams)
    viz.plot_clusters(IMAGE, {"one": torch.zeros(24, dtype=torch.long)}, (4, 6))
    viz.plot_graph(IMAGE, graph().connect_knn(2))
    assert pyplot.get_fignums() == [] and dict(pyplot.rcParams) == settings
    with pytest.raises(ValueError, match="at least one method"):
        viz.plot_clusters(IMAGE, {}, (4, 6))


# Graphs


def parts(figure):
    """Line segments ``[E, 2, 2]`` and circles of a plotted graph."""
    from matplotlib.collections import EllipseCollection, LineCollection

    lines, circles = (
        next((c for c in figure.axes[0].collections if isinstance(c, kind)), None)
        for kind in (LineCollection, EllipseCollection)
    )
    return lines, circles


def test_plot_graph_puts_nodes_on_their_patches_and_each_edge_once():
    pytest.importorskip("matplotlib")
    figure = viz.plot_graph(IMAGE, graph().connect_grid(4))  # 4 x 6 patches of 4 x 4 pixels, both directions
    lines, circles = parts(figure)
    assert circles.get_offsets()[:2].tolist() == [[2, 2], [6, 2]]
    assert len(lines.get_segments()) == 4 * 5 + 3 * 6
    assert {float(np.abs(s[0] - s[1]).sum()) for s in lines.get_segments()} == {4}
    assert "24 nodes, 38 edges" in texts(figure)


def test_plot_graph_draws_coarse_nodes_larger_and_at_their_centroids():
    pytest.importorskip("matplotlib")
    from matplotlib.collections import EllipseCollection

    coarse = tg.coarsen(graph().connect_grid(4), "grid-pool", 6).graph
    figure, fine = viz.plot_graph(IMAGE, coarse), viz.plot_graph(IMAGE, graph())
    small, large = (next(c for c in f.axes[0].collections if isinstance(c, EllipseCollection)) for f in (fine, figure))
    assert large.get_widths().tolist() == pytest.approx([2 * small.get_widths()[0]] * 6)  # four patches each
    assert sorted(large.get_offsets().tolist()) == [[4, 4], [4, 12], [12, 4], [12, 12], [20, 4], [20, 12]]


def test_plot_graph_makes_strong_edges_opaque():
    pytest.importorskip("matplotlib")
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    weighted = graph().with_edges(edges, torch.tensor([1.0, 5.0, 3.0]))
    for distance, strongest in ((True, 2), (False, 6)):  # x of the strongest edge's first node, in pixels
        lines, _ = parts(viz.plot_graph(IMAGE, weighted, distance=distance))
        alphas = lines.get_colors()[:, 3]
        assert alphas.argmax() == 2 and lines.get_segments()[2][0].tolist() == [strongest, 2]


def test_plot_graph_draws_a_sample_of_many_edges_and_says_how_many_there_are():
    pytest.importorskip("matplotlib")
    figure, again = (viz.plot_graph(IMAGE, graph().connect_grid(8), max_edges=10) for _ in range(2))
    lines, _ = parts(figure)
    assert len(lines.get_segments()) == 10 and "24 nodes, 68 edges" in texts(figure)
    assert np.array_equal(np.array(lines.get_segments()), np.array(parts(again)[0].get_segments()))
    assert len(parts(viz.plot_graph(IMAGE, graph().connect_grid(8), max_edges=None))[0].get_segments()) == 68


def test_plot_graph_draws_one_image_of_a_batch_into_given_axes():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    both = graph(images=2).connect_knn(3)
    figure = viz.plot_graph(IMAGE, both, index=1, ax=ax)
    alone = viz.plot_graph(IMAGE, both.split()[1])
    assert figure is ax.get_figure()
    assert np.array_equal(np.array(parts(figure)[0].get_segments()), np.array(parts(alone)[0].get_segments()))


def test_plot_graph_takes_a_graph_without_edges():
    pytest.importorskip("matplotlib")
    assert parts(viz.plot_graph(IMAGE, graph()))[0] is None


def test_plot_graph_refuses_what_it_cannot_place():
    with pytest.raises(ValueError, match="Expected a graph with a grid"):
        viz.plot_graph(IMAGE, tg.TokenGraph.from_tokens(torch.randn(1, 24, 5)))
    with pytest.raises(ValueError, match=r"index in \[0, B=1\) \(got 2\)"):
        viz.plot_graph(IMAGE, graph(), index=2)
    with pytest.raises(ValueError, match=r"dim in \[0, 1\]"):
        viz.plot_graph(IMAGE, graph(), dim=2.0)


# Features


def test_feature_colors_span_their_own_range_and_do_not_depend_on_a_rotation():
    features = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(8, 0, -1)
    colors = viz.feature_colors(features, (4, 6))
    assert colors.shape == (4, 6, 3) and colors.min() == 0 and colors.max() == 1
    turned = viz.feature_colors(features.roll(1, dims=1), (4, 6))
    assert np.allclose(colors, turned, atol=1e-5)


def test_feature_colors_are_those_of_the_reference():
    features = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    lifted = features.clone()
    lifted[12:] = features[:12]
    colors, own = viz.feature_colors(lifted, (4, 6), like=features), viz.feature_colors(features, (4, 6))
    assert np.array_equal(colors[:2], own[:2]) and np.array_equal(colors[2:], own[:2])


def test_feature_colors_take_constant_features_and_few_channels():
    assert viz.feature_colors(torch.ones(4, 2), (2, 2)).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="one width"):
        viz.feature_colors(torch.ones(4, 2), (2, 2), like=torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"shape \[N, C\] or \[B, N, C\]"):
        viz.feature_colors(torch.ones(4), (2, 2))


def test_plot_features_names_every_map():
    pytest.importorskip("matplotlib")
    features = torch.randn(2, 24, 8)
    figure = viz.plot_features(IMAGE, {"full": features, "lifted": features}, (4, 6), notes={"lifted": "cosine 1"})
    assert len(figure.axes) == 3 and all(word in texts(figure) for word in ("photograph", "full", "lifted", "cosine 1"))
    with pytest.raises(ValueError, match="at least one feature map"):
        viz.plot_features(IMAGE, {}, (4, 6))


def test_feature_colors_fit_one_pca_over_every_row_of_like():
    batch = (
        torch.randn(3, 24, 8, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1.0, 5.0, 20.0])[:, None, None]
    )
    forms = [batch, batch.view(72, 8), batch.view(3, 4, 6, 8), batch.numpy(), list(batch), [batch[0], batch[1:]]]
    pictures = [viz.feature_colors(batch, (4, 6), like=form, index=1) for form in forms]
    assert all(np.allclose(picture, pictures[0], atol=1e-5) for picture in pictures)
    assert not np.allclose(pictures[0], viz.feature_colors(batch, (4, 6), like=batch[1], index=1), atol=0.05)
    whole = viz.feature_colors(batch.view(72, 8), (12, 6))  # all images as one picture have the same colours
    assert np.allclose(whole[4:8], pictures[0], atol=1e-5)


def test_feature_colors_take_one_reference_for_any_image():
    batch, one = torch.randn(3, 24, 8), torch.randn(10, 8)  # another number of rows than the grid has
    for index in range(3):
        alone = viz.feature_colors(batch[index], (4, 6), like=one)
        assert np.array_equal(viz.feature_colors(batch, (4, 6), like=one, index=index), alone)


def test_feature_colors_refuse_references_without_rows_or_with_nan():
    features = torch.randn(24, 8)
    for like, message in [
        (torch.ones(8), r"like of shape \[\.\.\., C\]"),
        (torch.ones(0, 8), "at least one row"),
        ([torch.ones(2, 8), torch.ones(2, 7)], "one width in like"),
        (torch.full((4, 8), torch.nan), "finite features"),
    ]:
        with pytest.raises(ValueError, match=message):
            viz.feature_colors(features, (4, 6), like=like)


def test_plot_features_takes_its_colours_from_all_of_like():
    pytest.importorskip("matplotlib")
    batch = torch.randn(2, 24, 8) * torch.tensor([1.0, 20.0])[:, None, None]
    figure = viz.plot_features(IMAGE, {"full": batch}, (4, 6), like=batch, index=1)
    drawn = figure.axes[1].images[0].get_array()
    assert np.allclose(drawn, viz.feature_colors(batch, (4, 6), like=batch, index=1), atol=1e-6)


# Costs


def stage(method="tome", form="graph", shape="(8, 196, 384)", stage="select", median=2.0, iqr=0.2):
    return {"method": method, "form": form, "shape": shape, "stage": stage, "median_ms": median, "iqr_ms": iqr}


def bars(ax) -> list[tuple[float, float]]:
    return [(round(p.get_x(), 6), round(p.get_width(), 6)) for p in ax.patches]


def test_plot_stage_costs_stacks_the_stages_in_their_order():
    pytest.importorskip("matplotlib")
    rows = [stage(stage="lift", median=1.0), stage(), stage(stage="reduce", median=3.0), stage(form="dense", median=12)]
    figure = viz.plot_stage_costs(rows, title="Costs")
    assert bars(figure.axes[0]) == [(0, 2), (2, 3), (5, 1), (0, 12)]
    assert "graph  6.00 ms  (2.0x faster)" in texts(figure) and "dense  12.0 ms" in texts(figure)


def test_plot_stage_costs_says_when_the_graph_is_slower():
    pytest.importorskip("matplotlib")
    figure = viz.plot_stage_costs([stage(median=4.0), stage(form="dense", median=2.0)])
    assert "(2.0x slower)" in texts(figure)


def test_plot_stage_costs_gives_each_shape_a_panel_and_fits_methods_without_a_dense_form():
    pytest.importorskip("matplotlib")
    rows = [stage(shape=s, method=m) for s in ("small", "middle", "large") for m in ("tome", "random")]
    figure = viz.plot_stage_costs(rows)
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()] == ["small", "middle", "large"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["tome", "random"]


def test_plot_end_to_end_sets_attached_against_plain_and_ideal():
    pytest.importorskip("matplotlib")
    rows = [
        {"name": "deit", "kind": "plain", "median_ms": 200.0, "iqr_ms": 8.0, "ratio_to_plain": 1.0},
        {"name": "tome", "kind": "attached", "median_ms": 110.0, "iqr_ms": 4.0, "ratio_to_plain": 0.55},
        {"name": "tome", "kind": "ideal", "median_ms": 100.0, "iqr_ms": 4.0, "ratio_to_plain": 0.5},
    ]
    figure = viz.plot_end_to_end(rows)
    assert bars(figure.axes[0]) == [(0, 200), (0, 110), (0, 100)]
    assert "110 ms  0.55 of plain, 1.10 of ideal" in texts(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["deit", "tome"]


@pytest.mark.parametrize(
    ("plot", "rows", "match"),
    [
        (viz.plot_stage_costs, [], "at least one row"),
        (viz.plot_stage_costs, [{"method": "tome"}], "one without form, shape, stage, median_ms, iqr_ms"),
        (viz.plot_stage_costs, [stage(form="sparse")], "form to be one of graph, dense .got 'sparse'"),
        (viz.plot_stage_costs, [stage(stage="connect")], "stage to be one of build, select, reduce, lift"),
        (viz.plot_end_to_end, [{"name": "x"}], "one without kind"),
    ],
)
def test_cost_plots_refuse_rows_that_do_not_fit(plot, rows, match):
    with pytest.raises(ValueError, match=match):
        plot(rows)


def test_every_figure_saves_without_overlapping_titles(tmp_path):
    pytest.importorskip("matplotlib")
    figure = viz.plot_clusters(IMAGE, {"a": torch.arange(24)}, (4, 6), title="Title", subtitle="Subtitle")
    figure.savefig(tmp_path / "clusters.png")
    assert (tmp_path / "clusters.png").stat().st_size > 5000
    boxes = [t.get_window_extent() for t in figure.texts] + [ax.get_tightbbox() for ax in figure.axes]
    heights = [(box.y0, box.y1) for box in boxes]
    assert heights[1][1] <= heights[0][1] and heights[2][1] <= heights[1][0]


# Videos


def test_cluster_overlay_of_a_video_gives_a_cluster_one_colour_in_all_frames():
    frames = torch.stack([torch.zeros(3, 4, 8), torch.ones(3, 4, 8)])
    labels = torch.tensor([[0, 1], [0, 2]])  # cluster 0 lives in both frames
    picture = viz.cluster_overlay(frames, labels, (2, 1, 2), line=0)
    assert picture.shape == (2, 4, 8, 3)
    assert (picture[:, :, :4] == 0.5).all() and (picture[0, :, 4:] == 0).all() and (picture[1, :, 4:] == 1).all()
    one = viz.cluster_overlay(frames[1:], labels[1:], (1, 1, 2))
    assert np.array_equal(one[0], viz.cluster_overlay(frames[1], labels[1], (1, 2)))


def test_cluster_overlay_wants_a_picture_a_frame():
    with pytest.raises(ValueError, match=r"Expected T=3 pictures of one shape, one per frame \(got 2 of"):
        viz.cluster_overlay(torch.zeros(2, 3, 4, 8), torch.zeros(3, 2, dtype=torch.long), (3, 1, 2))


def test_plot_clusters_of_a_video_has_a_row_a_method_and_a_column_a_frame():
    pytest.importorskip("matplotlib")
    frames, x = torch.rand(3, 3, 8, 12), torch.randn(2, 3 * 4 * 6, 5)
    methods = {"ailurus": tg.ailurus(x, 6, (3, 4, 6)), "pool": torch.arange(144) // 12}
    figure = viz.plot_clusters(frames, methods, (3, 4, 6), index=1)
    assert len(figure.axes) == 9 and "6 tokens" in texts(figure) and "3 x 4 x 6" in texts(figure)


def test_what_draws_images_alone_says_so_of_a_video():
    video = graph().__class__.from_tokens(torch.randn(1, 48, 5), grid=(2, 4, 6))
    with pytest.raises(ValueError, match=r"Expected a graph with a grid \(H, W\) \(got \(2, 4, 6\)\)"):
        viz.plot_graph(IMAGE, video)
    assert viz.feature_colors(video.x, (2, 4, 6)).shape == (2, 4, 6, 3)
    with pytest.raises(ValueError, match=r"Expected grid as \(H, W\) \(got \(2, 4, 6\)\)"):
        viz.plot_features(IMAGE, {"a": video.x}, (2, 4, 6))


# Quality


def test_plot_quality_has_a_panel_for_each_measure_that_applies():
    fine = graph(images=2).connect_grid()
    found = {n: tg.quality(fine, tg.coarsen(fine, n, 6).assignment) for n in ("grid-pool", "heavy-edges")}
    figure = viz.plot_quality(found, title="Two ways")
    assert len(figure.axes) == 8 and sum(ax.axison for ax in figure.axes) == 5
    assert "modularity (more is better)" in texts(figure) and "boundary recall" not in texts(figure)
    bars = [[bar.get_width() for bar in ax.patches] for ax in figure.axes[:5]]
    wanted = [
        [q.mean()[k] for q in found.values()] for k in ("spectral", "cut", "modularity", "variance", "compactness")
    ]
    assert np.allclose(bars, wanted)
    mask = torch.zeros(2, 8, 12, dtype=torch.long)
    mask[:, 4:] = 1
    found["heavy-edges"] = tg.quality(fine, tg.coarsen(fine, "heavy-edges", 6).assignment, mask)
    figure = viz.plot_quality(found)
    assert len(figure.axes) == 8 and texts(figure).count("not measured") == 3


def test_plot_quality_refuses_nothing():
    with pytest.raises(ValueError, match=r"Expected at least one method's quality \(got none\)"):
        viz.plot_quality({})


def test_plot_clusters_counts_in_the_unit_given():
    figure = viz.plot_clusters(torch.rand(3, 8, 8), {"mask": torch.tensor([0, 0, 1, 1])}, (2, 2), unit="regions")
    assert figure.axes[1].get_title(loc="right") == "2 regions"
