"""Trains GNNs on token graphs of a ViT-S/14, fine and coarse, against probes on the same tokens. Resumes.

    TRUTH_WEIGHTS=package python benchmarks/token_gnn --data truth-data

`python benchmarks/truth fetch` gets the data. Rows go into benchmarks/results/token_gnn.json as they come; a repeated
command makes the rows that are missing, and the table token_gnn.md from all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(folder for folder in sys.path if not folder or Path(folder).resolve() != HERE)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch_geometric.data import Batch  # noqa: E402

import tokengraph as tg  # noqa: E402
from token_gnn.nets import BATCH, EPOCHS, predict, train  # noqa: E402
from token_gnn.tokens import TASKS, Split, make  # noqa: E402
from tokengraph.datasets import Recipe  # noqa: E402
from tokengraph.evaluate.memory import peak_bytes  # noqa: E402
from tokengraph.evaluate.probe import probe  # noqa: E402
from tokengraph.evaluate.statistics import interval, mcnemar, mean_of, resample  # noqa: E402
from tokengraph.evaluate.store import write_text  # noqa: E402

RESULTS = HERE.parent / "results"
PROBES = ("linear probe", "attention pooling")
COARSE = {
    "dpc-knn": {64: "dpc-knn:64", 16: "dpc-knn:16"},
    "tome": {64: "tome:[128, 64]", 16: "tome:[128, 64, 32, 16]"},
    "ailurus": {64: "ailurus:64", 16: "ailurus:16"},
}
Plan = tuple[str, str, int, int]  # network, coarsening, nodes, seed


def plans(seeds: int) -> list[Plan]:
    """Everything to train, probes first."""
    found: list[Plan] = []
    for seed in range(seeds):
        found += [(name, "none", 256, seed) for name in PROBES if seed == 0 or name != "linear probe"]
        graphs = [("none", 256), *((name, nodes) for nodes in (64, 16) for name in COARSE)]
        found += [(net, name, nodes, seed) for net in ("gin", "transformer") for name, nodes in reversed(graphs)]
    return found


@lru_cache(maxsize=2)
def graphs_of(split: Split, coarsen: str, nodes: int) -> tuple[list[Any], float]:
    """Returns all graphs of a task, and the milliseconds that one takes without the model."""
    recipe = Recipe(connect="knn:8", coarsen=coarsen if coarsen == "none" else COARSE[coarsen][nodes])
    graphs: list[Any] = []
    start = time.perf_counter()
    for tokens in split.tokens.split(50):
        graph = tg.TokenGraph.from_tokens(tokens.float(), (16, 16), num_prefix=1)
        graphs += recipe.make(graph)[0].split()
    spent = 1000 * (time.perf_counter() - start) / len(graphs)
    for graph, label in zip(graphs, split.labels, strict=True):
        graph.y = label[None]
    return graphs, spent


def by_probe(split: Split) -> tuple[np.ndarray, dict[str, float]]:
    """The library's linear probe on the class token and the mean patch."""
    tokens = split.tokens.float()
    pooled = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).numpy()
    labels, cut = split.labels.numpy(), split.train
    start = time.perf_counter()
    found = probe("linear", pooled[:cut], labels[:cut], pooled[cut:], l2=0.01, neighbors=20, classes=split.classes)
    return found[:, 0], {"train_s": time.perf_counter() - start}


def measure(split: Split, plan: Plan) -> dict[str, Any]:
    """Trains one network and returns its row."""
    name, coarsen, nodes, seed = plan
    row: dict[str, Any] = {"network": name, "coarsen": coarsen, "nodes": nodes, "seed": seed}
    if name == "linear probe":
        found, figures = by_probe(split)
    else:
        graphs, spent = graphs_of(split, coarsen, nodes)
        net, seconds = train(name, graphs[: split.train], split.classes, seed)
        guess, once = predict(net, graphs[split.train :])
        found, batch = guess.numpy(), Batch.from_data_list(graphs[:BATCH])

        def step() -> None:
            net.zero_grad()
            net(batch).sum().backward()

        figures = {"train_s": seconds, "graph_ms": spent, "predict_ms": once}
        figures |= {"peak_mib": peak_bytes(step, torch.device("cpu")) / 2**20}
        figures |= {"edges": float(np.mean([graph.edge_index.size(1) for graph in graphs]))}
    right = found == split.labels[split.train :].numpy()
    low, high = interval(mean_of(right), resample(len(right), 2000, 0))
    row |= {"accuracy": float(right.mean()), "low": low, "high": high}
    return row | {k: round(v, 3) for k, v in figures.items()} | {"right": "".join(map(str, right.astype(int)))}


def table(found: dict[str, list[dict[str, Any]]], machine: str) -> str:
    """Writes the page of all rows."""
    lines = ["# GNNs on token graphs", "", f"{machine}", "", __doc__.split("\n")[0], ""]
    lines += [
        f"{EPOCHS} epochs, batches of {BATCH}, one width and rate for all networks, no tuning and no augmentation. "
        "Accuracy in % of test images, with 95 % bootstrap intervals over images; p is McNemar's against the linear "
        "probe. Memory: peak of a training step of 32 graphs beyond weights. Graph: edges and coarsening of an image.",
        "",
    ]
    for task, rows in found.items():
        base = next((r for r in rows if r["network"] == "linear probe"), None)
        lines += [f"## {task}: {rows[0]['train']} training images, {len(rows[0]['right'])} test images", ""]
        lines += ["| network | graph | nodes | seed | accuracy | p | train s | graph ms | predict ms | MiB |"]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        for row in rows:
            p = "" if base is None or row is base else f"{mcnemar(*(_bits(r) for r in (base, row))):.2g}"
            percent = " to ".join(f"{100 * row[key]:.1f}" for key in ("low", "high"))
            cells = [row["network"], row["coarsen"], row["nodes"], row["seed"]]
            cells += [f"{100 * row['accuracy']:.1f} ({percent})", p]
            cells += [
                f"{row[key]:.1f}" if key in row else "" for key in ("train_s", "graph_ms", "predict_ms", "peak_mib")
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


def _bits(row: dict[str, Any]) -> np.ndarray:
    return np.array([letter == "1" for letter in row["right"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRUTH_DATA", "truth-data")))
    parser.add_argument("--tokens", type=Path, default=Path("outputs/token_gnn"), help="stored tokens (%(default)s)")
    parser.add_argument("--train", type=int, default=800, help="training images (%(default)s)")
    parser.add_argument("--test", type=int, default=400, help="test images (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each network (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "token_gnn.json")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    found: dict[str, list[dict[str, Any]]] = kept.get("rows", {})
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}; other work ran beside."
    )
    splits = {task: make(task, options.data, options.tokens, options.train, options.test) for task in TASKS}
    for plan in plans(options.seeds):
        for task, split in splits.items():
            rows = found.setdefault(task, [])
            if any(tuple(row[k] for k in ("network", "coarsen", "nodes", "seed")) == plan for row in rows):
                continue
            rows.append({**measure(split, plan), "train": split.train})
            print(task, {k: v for k, v in rows[-1].items() if k != "right"}, flush=True)
            write_text(options.out, json.dumps({"machine": machine, "rows": found}, indent=1) + "\n")
            write_text(options.out.with_suffix(".md"), table(found, machine) + "\n")


if __name__ == "__main__":
    main()
