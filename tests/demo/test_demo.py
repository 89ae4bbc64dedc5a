"""The command line: what it prints, writes and answers."""

import json

import pytest
import torch
from needs import library, timm_model

import tokengraph as tg
from tokengraph.__main__ import main
from tokengraph.demo import runs
from tokengraph.demo.clusterings import cluster

library("timm")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
image = pytest.importorskip("PIL.Image")

TINY = ["--model", "vit_tiny_patch16_224", "--size", "64", "--no-pretrained"]


@pytest.fixture
def photo(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(70, 90, 3, generator=generator) * 255).to(torch.uint8)
    image.fromarray(pixels.numpy()).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


@pytest.mark.slow
def test_demo_prints_its_tables_and_writes_its_pictures(monkeypatch, tmp_path, photo, capsys):
    monkeypatch.setattr(runs, "SECONDS", 0.5)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["demo", "--image", str(photo), *TINY, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for text in (
        "mine.png, 64 x 64 pixels",
        "random weights, as asked for",
        "TokenGraph(images=1, nodes=16, edges=64",
        "topk (norm)",
        "16 x2  4 x11",  # AiluRus: a quarter left after two blocks
        "16  15  14  13  12  11  10  9  8  7  6  5  4",  # ToMe: one merged in each
        "its ideal",
    ):
        assert text in printed
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 80
    for name in tg.registry():
        assert name in printed
    pictures = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert pictures == ["clusters.png", "features.png", "graph.png", "times.png"]
    for name in pictures:
        with image.open(tmp_path / "out" / name) as picture:
            assert picture.width >= 1000 and len(picture.convert("RGB").getcolors(10**7)) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--image", "none.png"], "Expected the path of an image file (got 'none.png': no such file)."),
        (["demo", "--model", "vit_tinny", "--no-pretrained"], "Expected a model name that timm knows"),
        (["demo", *TINY, "--size", "70"], "multiple of the patch size 16 (got 70). Try 64."),
        (["demo", *TINY, "--size", "0"], "Expected size >= 1"),
        (["demo", "--model", "swin_tiny_patch4_window7_224", "--no-pretrained", "--size", "224"], "SwinTransformer"),
    ],
)
def test_demo_answers_bad_input_with_one_line(arguments, message, capsys, photo, monkeypatch):
    monkeypatch.chdir(photo.parent)
    if "--image" not in arguments:
        arguments = [*arguments, "--image", str(photo)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("tokengraph: Expected ") and message in error and error.count("\n") == 1
    assert not (photo.parent / "outputs").exists()


def test_backends_lists_every_engine(capsys):
    assert main(["backends"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in tg.backends()) and torch.__version__ in printed


def test_main_says_which_extra_has_rich(monkeypatch, capsys):
    import tokengraph.cli.demo as command

    def missing(module):
        raise ImportError("Expected rich to be installed (got no such package).")

    monkeypatch.setattr(command, "optional", missing)
    assert main(["demo"]) == 1 and "Expected rich" in capsys.readouterr().err


def test_main_without_a_command_exits_with_its_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: tokengraph" in capsys.readouterr().err


def test_cluster_halves_several_times_where_one_round_cannot_reach_the_budget():
    graph = tg.TokenGraph.from_tokens(torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0)), grid=(8, 8))
    one = cluster(graph, "tome", 8)
    assert (one.rounds, one.graph.num_nodes, one.assignment.num_tokens) == (3, 8, 64)
    assert cluster(graph, "dpc-knn", 8).rounds == 1


def test_cluster_gives_the_reason_why_a_strategy_is_left_out(monkeypatch):
    graph = tg.TokenGraph.from_tokens(torch.randn(1, 16, 8))  # AiluRus needs a grid
    assert "full patch grid" in cluster(graph, "ailurus", 4).skipped
    assert cluster(graph, "dpc-knn", 4).skipped == ""
    monkeypatch.setattr(tg.DPCKNN, "learns", True)
    assert "train" in cluster(graph, "dpc-knn", 4).skipped


def test_runs_compare_features_with_and_without_their_mean():
    base = torch.tensor([[[10.0, 1.0], [10.0, -1.0]]])
    plain, other = (runs.Run("", "plain", None, [2], 0.0, features) for features in (base, base.flip(1)))
    raw, centred = other.similarity(plain)
    assert raw == pytest.approx(99 / 101) and centred == pytest.approx(-1)


# Families

FAMILIES = [  # one timm model a kind of block, embedding and prefix that README's table names
    *("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_medium_patch16_gap_240"),
    *("vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "vit_base_patch16_rope_224"),
    *("vit_small_patch16_dinov3", "beit_base_patch16_224", "beitv2_base_patch16_224", "naflexvit_base_patch16_gap"),
]
WITHOUT_IDEAL = ("eva02", "rope", "dinov3", "beit")  # whose blocks take tables along with the tokens


@pytest.fixture
def shallow(monkeypatch):
    """Models of three blocks, timed once, so that a demo takes seconds."""
    from tokengraph.compat import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, depth=3, **options))
    monkeypatch.setattr(runs, "SECONDS", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_demo_runs_with_every_family_of_the_table(name, shallow, photo, tmp_path, capsys):
    size = "56" if "patch14" in name else "64"
    arguments = ["--model", name, "--size", size, "--no-pretrained", "--out", str(tmp_path / "out")]
    assert main(["demo", "--image", str(photo), *arguments]) == 0, capsys.readouterr().err
    pictures = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert pictures == ["clusters.png", "features.png", "graph.png", "times.png"]
    printed = " ".join(capsys.readouterr().out.split())
    assert ("The ideal of ToMe" in printed) == any(word in name for word in WITHOUT_IDEAL)
    assert ("its ideal" in printed) != ("The ideal of ToMe" in printed) and "AiluRus {2: 0.25}" in printed


def test_make_runs_leaves_out_ideals_that_cannot_run():
    model = timm_model("vit_small_patch16_dinov3", depth=3, img_size=64, num_classes=0).eval()
    with torch.no_grad():
        made, left_out = runs.make_runs(model, torch.randn(1, 3, 64, 64), 2)
    assert [run.kind for run in made] == ["plain", "attached", "attached", "attached"]
    assert len(left_out) == 2 and all("ideal" in line and "nothing but tokens" in line for line in left_out)
    assert all(run.features.shape == (1, 16, 384) for run in made)


def test_make_runs_leaves_out_strategies_that_the_model_refuses(monkeypatch):
    def refuses(*arguments, **options):
        raise ValueError("Expected something else (got this).\nMore.")

    monkeypatch.setattr(runs, "attach", refuses)
    model = library("timm").create_model("vit_tiny_patch16_224", depth=1, img_size=64, num_classes=0).eval()
    with torch.no_grad():
        made, left_out = runs.make_runs(model, torch.randn(1, 3, 64, 64), 1)
    assert [run.kind for run in made] == ["plain"] and len(left_out) == 3
    assert "left out: Expected something else (got this)." in left_out[0]
    with pytest.raises(ValueError, match="something else"):
        runs.check_attaches(model, 1)


@pytest.mark.slow
def test_demo_keeps_its_pictures_where_timing_fails(monkeypatch, shallow, photo, tmp_path, capsys):
    from tokengraph.demo import run

    def fails(*arguments):
        raise RuntimeError("no clock")

    monkeypatch.setattr(run, "measure", fails)
    assert main(["demo", "--image", str(photo), *TINY, "--out", str(tmp_path / "out")]) == 0
    assert "No times: no clock" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clusters.png", "features.png", "graph.png"]


def test_demo_prints_json_alone_to_standard_output(monkeypatch, shallow, photo, tmp_path, capsys):
    from tokengraph.demo import run

    monkeypatch.setattr(run, "registry", lambda: ["tome", "dynamicvit"])
    monkeypatch.setattr(run, "draw", lambda folder, *_: [folder / "graph.png"])
    monkeypatch.setattr(run, "draw_times", lambda folder, _: folder / "times.png")
    assert main(["demo", "--json", "--image", str(photo), *TINY, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "mine.png" in printed.err and found["photograph"].endswith("mine.png") and not found["pretrained"]
    assert found["graph"] == {"nodes": 16, "edges": 64}
    first, second = found["clusterings"]
    assert (first["strategy"], first["tokens"], first["patches"]) == ("tome", 2, 16.0) and 0 < first["cosine"] <= 1
    assert second == {"strategy": "dynamicvit", "skipped": "it has parameters to train first"}
    plain, attached = found["runs"][0], found["runs"][1]
    assert plain["tokens"] == [16, 16, 16, 16] and plain["cosine"] is None and plain["milliseconds"] > 0
    assert attached["tokens"] == [16, 16, 4, 4] and attached["gflops"] < plain["gflops"] and attached["cosine"] < 1
    assert [file.rsplit("/", 1)[-1] for file in found["pictures"]] == ["graph.png", "times.png"]


@pytest.mark.parametrize("out", ["file", "file/below", "nul\0"])
def test_demo_refuses_folders_that_cannot_be_made(out, shallow, photo, tmp_path, capsys, monkeypatch):
    from tokengraph.demo import run

    monkeypatch.setattr(run, "make_runs", None)  # the work, which must not begin
    (tmp_path / "file").write_text("in the way")
    assert main(["demo", "--image", str(photo), *TINY, "--out", str(tmp_path / out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tokengraph: Expected a folder to write pictures into") and error.count("\n") == 1


@pytest.mark.parametrize("kind", ["folder", "bomb", "cut"])
def test_demo_answers_odd_images_with_one_line(kind, photo, tmp_path, capsys, monkeypatch):
    file = tmp_path if kind == "folder" else photo
    if kind == "bomb":
        monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 10)
    elif kind == "cut":
        photo.write_bytes(photo.read_bytes()[:200])
    assert main(["demo", "--image", str(file), *TINY]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tokengraph: Expected ") and error.count("\n") == 1
