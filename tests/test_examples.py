"""Each example runs as a user would run it, and prints what it promises."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from quick import quick_only

from tokengraph import compat

FOLDER = Path(__file__).parent.parent / "examples"


def run(name: str, *needs: str, options: tuple[str, ...] = (), cwd: Path | None = None) -> str:
    for package in needs:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", *options], capture_output=True, text=True, timeout=600, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_quickstart_shows_graph_coarse_graph_and_full_resolution():
    printed = run("quickstart", "timm", "PIL", "skimage")
    assert "nodes=196, edges=1568" in printed and "nodes=49" in printed
    assert "[196, 196, 49, 49, 49, 49, 49, 49, 49, 49, 49, 49, 49]" in printed
    assert "torch.Size([1, 50, 384]) -> torch.Size([1, 384, 14, 14])" in printed


@pytest.mark.slow
def test_dense_features_brings_maps_back_at_full_resolution():
    printed = run("dense_features", "timm", "PIL", "skimage")
    rows = re.findall(r"(\d+) of 576 tokens: \d+ ms, maps \[1, 192, 24, 24\], cosine by layer ([\d., ]+)", printed)
    likeness = {int(kept): float(cosines.split(", ")[-1]) for kept, cosines in rows}
    assert list(likeness) == [288, 144, 58]
    assert 1 > likeness[288] > likeness[144] > likeness[58] > 0.8


@pytest.mark.slow
def test_gnn_on_tokens_learns_from_a_third_of_the_tokens():
    printed = run("gnn_on_tokens", "sklearn")
    accuracy = {
        int(k): float(a) for k, a in re.findall(r"(\d+) tokens, \d+ edges per digit: accuracy ([\d.]+)%", printed)
    }
    assert list(accuracy) == [64, 20] and accuracy[64] > 85 and accuracy[20] > 70  # chance: 10


@pytest.mark.slow
def test_new_strategy_works_by_name_on_graphs_and_in_models():
    printed = run("new_strategy", "timm", "PIL", "skimage")
    rows = re.findall(r"([\w-]+): tokens 49, cosine on the graph ([\d.]+), in the model ([\d.]+)", printed)
    graph, model = ({name: float(row[i]) for name, *row in rows} for i in (0, 1))
    assert graph["k-means"] > graph["grid-pool"] and model["k-means"] > model["grid-pool"]


@pytest.mark.slow
def test_vlm_draws_the_kept_tokens_and_shortens_the_prompt(tmp_path):
    printed = run("vlm", "transformers", "PIL", "skimage", "matplotlib", options=("--out", str(tmp_path / "vlm.png")))
    assert "144 of 576 visual tokens" in printed
    assert "all tokens: prompt of 582 tokens" in printed and "fewer: prompt of 150 tokens" in printed
    assert (tmp_path / "vlm.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_notebook_of_visual_tokens_runs(tmp_path):
    cells = json.loads((FOLDER / "vlm.ipynb").read_text(encoding="utf-8"))["cells"]
    script = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "notebook.py").write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "notebook.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "all 582" in done.stdout and "fewer 150" in done.stdout


@pytest.mark.slow
def test_gtp_graph_shows_the_graph_that_loses_tokens(tmp_path):
    printed = run("gtp_graph", "timm", "PIL", "skimage", "matplotlib", cwd=tmp_path)
    rows = re.findall(r"after +(\d+) blocks: (\d+) tokens, (\d+) edges", printed)
    assert [(int(layer), int(tokens)) for layer, tokens, _ in rows] == [(0, 196), (4, 164), (8, 132), (12, 100)]
    edges = [int(e) for *_, e in rows]
    assert edges == sorted(edges, reverse=True) and edges[-1] > 100


@pytest.mark.slow
def test_expedite_dense_comes_back_closer_than_cells_do(tmp_path):
    printed = run("expedite_dense", "timm", "PIL", "skimage", "matplotlib", cwd=tmp_path)
    assert "[1024, 1024, 1024, 1024, 256, 256, 256, 256, 256, 256, 1024, 1024, 1024]" in printed
    soft, cells = (float(e) for e in re.findall(r"relative error ([\d.]+)", printed))
    assert soft < 0.8 * cells


@pytest.mark.slow
def test_segmentation_keeps_its_map_with_fewer_tokens(tmp_path):
    printed = run(
        "segmentation", "timm", "skimage", "matplotlib", options=("--steps", "40", "--rounds", "2"), cwd=tmp_path
    )
    found = re.findall(r"(plain|token migration|AiluRus) +mIoU ([\d.]+)  GFLOPs ([\d.]+)", printed)
    miou, flops = ({name: float(row[i]) for name, *row in found} for i in (0, 1))
    assert list(miou) == ["plain", "token migration", "AiluRus"] and miou["plain"] > 0.2
    assert miou["AiluRus"] > 0.8 * miou["plain"] and miou["token migration"] > 0.6 * miou["plain"]
    assert max(flops["AiluRus"], flops["token migration"]) < 0.7 * flops["plain"]
    assert (tmp_path / "outputs" / "segmentation" / "predictions.png").exists()


@pytest.mark.slow
def test_transformers_models_shows_a_classifier_and_whole_maps_of_a_backbone():
    printed = run("transformers_models", "transformers", "PIL", "skimage")
    rows = re.findall(r"classifier, ([\w-]+): 196 -> 100 tokens, cosine of the logits ([\d.]+)", printed)
    assert [name for name, _ in rows] == ["tome", "topk", "gtp"] and all(float(c) > 0.97 for _, c in rows)
    maps = re.findall(r"backbone, (stage\d+): 256 tokens, map \[1, 192, 32, 32\], cosine ([\d.]+)", printed)
    assert [stage for stage, _ in maps] == ["stage6", "stage12"] and all(float(c) > 0.9 for _, c in maps)


@pytest.mark.slow
def test_torchvision_model_stays_closest_where_keys_weigh_by_the_log_of_their_size():
    printed = run("torchvision_model", "torchvision", "PIL", "skimage")
    rows = dict(re.findall(r"tome, prop_attn=([\w-]+): 40 tokens, .* cosine ([\d.]+)", printed))
    assert float(rows["log"]) > float(rows["half-log"]) > float(rows["none"]) > 0.9


@pytest.mark.slow
def test_retrieval_finds_as_many_photographs_with_half_of_the_tokens():
    printed = run("retrieval", "timm", "PIL", "skimage")
    found = [int(n) for n in re.findall(r"(\d) of 9 photographs found", printed)]
    assert len(found) == 4 and found[0] >= 5 and min(found) >= found[0] - 1  # chance: 1 of 9
    assert all(float(c) > 0.98 for c in re.findall(r"plain features ([\d.]+)", printed))


@pytest.mark.slow
def test_gnn_pooling_learns_with_every_pooling_layer():
    printed = run("gnn_pooling", "sklearn")
    rows = re.findall(r"([\w -]+): (\d+) nodes a digit, (\d+) parameters, accuracy ([\d.]+)%", printed)
    nodes, count, accuracy = ({name.strip(): float(row[i]) for name, *row in rows} for i in range(3))
    assert list(nodes.values()) == [64, 16, 16, 16] and min(accuracy.values()) > 55  # chance: 10
    assert count["top-k of PyG"] == count["heavy edges"] + 48  # its projection trains with the network


DENSE = {"segmenter": ("timm",), "eomt": ("transformers", "scipy"), "detector": ("timm", "torchvision")}


def dense_rows(name: str, *options: str) -> dict[str, list[float]]:
    """Quality, GFLOPs of backbone and whole, and both times over plain."""
    if name == "detector" and not has_nms():
        pytest.skip("this torchvision's operators do not load beside this torch")
    printed = run(name, *DENSE[name], options=options)
    number = "([\\d.]+|nan)"
    row = rf"(\w+) +quality {number} +backbone {number} GFLOPs, time {number} .* whole {number} GFLOPs, time {number}"
    return {name: [float(v) for v in values] for name, *values in re.findall(row, printed)}


def has_nms() -> bool:
    try:
        compat.torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception:  # not installed, or built for another torch
        return False
    return True


@pytest.mark.parametrize("name", quick_only(["segmenter"], DENSE))
def test_dense_examples_run_every_strategy_in_backbone_and_whole(name):
    rows = dense_rows(name, "--quick")
    assert list(rows) == ["plain", "AiluRus", "Expedite", "MPM"]
    plain = rows.pop("plain")
    assert plain[1] < plain[3] and plain[2] == plain[4] == 1
    for row in rows.values():  # heads cost the same
        assert row[1] < 0.95 * plain[1] and abs((row[3] - row[1]) - (plain[3] - plain[1])) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("segmenter", 0.7), ("eomt", 0.5), ("detector", 0.6)])
def test_dense_examples_learn_and_keep_quality_with_fewer_tokens(name, least):
    rows = dense_rows(name, "--steps", "150", "--rounds", "1")
    assert rows["plain"][0] > least and all(row[0] > 0.85 * rows["plain"][0] for row in rows.values())
