"""Trains DTEM: first a small ViT, then the metric by which its tokens merge; the rest of the model stays as it is.

The data are scikit-learn's handwritten digits, Fashion-MNIST (`--data FOLDER` of its four .gz files, for example from
`python benchmarks/truth fetch`) or made-up gratings (`--data synthetic`); all at 16 x 16 pixels, 64 tokens. Everything
else, resuming and several processes too, is as in train_dynamicvit.py, whose options this script takes.

    python examples/train_dtem.py                    (minutes on two cores)
    python examples/train_dtem.py --data synthetic --quick --rounds 1
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import train_dynamicvit
from rich.console import Console
from torch import Tensor, nn
from train_dynamicvit import GRID, DenseTask, Outcome, cosine, fit, make_model
from train_fashion_vit import load
from training.report import compare, comparison_table
from training.run import Run

import tokengraph as tg


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, synthetic, or a folder with Fashion-MNIST")
    parser.add_argument("--removed", type=int, default=14, help="tokens that each block merges away")
    parser.add_argument("--test", type=int, default=389, help="images for the test")
    own, others = parser.parse_known_args(argv)
    args = train_dynamicvit.options(["--out", "outputs/dtem", *others])
    for name, value in vars(own).items():
        setattr(args, name, value)
    return args


def gratings(count: int) -> tuple[Tensor, Tensor]:
    """Returns noisy stripes ``[count, 1, 16, 16]`` of ten directions, and which."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (count,), generator=draw)
    angle, phase = labels * torch.pi / 10, 6.3 * torch.rand(count, 1, 1, generator=draw)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = (y * angle.sin()[:, None, None] + x * angle.cos()[:, None, None] + phase).sin()
    return (waves + 0.5 * torch.randn(count, 16, 16, generator=draw))[:, None], labels


def load_data(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Returns images ``[N, 1, 16, 16]`` and labels; those of the test come last."""
    if args.data == "digits":
        return train_dynamicvit.load_data()
    if args.data == "synthetic":
        return gratings(args.images + args.test)
    parts = [load(Path(args.data), part) for part in ("train", "t10k")]
    images = torch.cat([parts[0][0][: args.images], parts[1][0][: args.test]])
    labels = torch.cat([parts[0][1][: args.images], parts[1][1][: args.test]])
    return F.interpolate(images, size=(2 * GRID, 2 * GRID), mode="area"), labels


class Student(nn.Module):
    """The attached model, of which only the metric trains."""

    def __init__(self, handle: tg.Attachment) -> None:
        super().__init__()
        self.model, self.handle = handle.model, handle

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class MetricTask:
    """Trains the metric to leave the dense model's answers as they are."""

    name = "metric"

    def __init__(self, dense: nn.Module, args: argparse.Namespace) -> None:
        self.teacher, self.model, self.epochs = dense.eval(), copy.deepcopy(dense), args.epochs[1]
        self.handle = tg.attach(self.model, tg.DTEM(width=16), args.removed)
        self.module = Student(self.handle)
        self.model.requires_grad_(False)
        metric: Any = self.handle.select.modules["metric_layers"].requires_grad_(True)
        # The last block's step moves patches alone, which a head on the class token does not see.
        self.groups: list[dict[str, Any]] = [{"params": list(metric[:-1].parameters()), "lr": args.lr[1]}]
        self.factors: list[Callable[[float], float]] = [lambda epoch: cosine(epoch, self.epochs)]

    def draw(self, run: Run) -> None:
        """Draws nothing: the relaxed step has no noise."""

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        logits = module(images)
        with torch.no_grad():
            wanted = self.teacher(images).log_softmax(dim=1)
        parts = {
            "classification": F.cross_entropy(logits, labels),
            "distillation": F.kl_div(logits.log_softmax(dim=1), wanted, reduction="batchmean", log_target=True),
        }
        return parts["classification"] + parts["distillation"], {k: v.detach() for k, v in parts.items()}, []


def report(run: Run, task: MetricTask, images: Tensor, labels: Tensor) -> None:
    """Writes the comparison; in eval mode the model merges hard, to fixed counts."""
    trained, out = task.model.eval(), run.args.out
    by_keys = tg.attach(copy.deepcopy(task.teacher), "tome", run.args.removed)
    models = {"dense": task.teacher, "ToMe, by keys": by_keys, "DTEM, by the metric": trained}
    compared = compare(models, images, labels, run.args.rounds)
    counts = task.handle.trace.counts
    (out / "report.json").write_text(json.dumps({"models": compared, "tokens": counts}, indent=1) + "\n")
    torch.save(trained.state_dict(), out / "dtem.pt")
    Console().print(comparison_table(compared))
    print(f"Tokens after each block: {counts}. Log and weights: {out}")


def main(argv: list[str] | None = None) -> None:
    run = Run(options(sys.argv[1:] if argv is None else argv))
    images, labels = load_data(run.args)
    count, model = run.args.images, make_model()
    done = bool(run.dense) or fit(run, DenseTask(model, run.args), images[:count], labels[:count])
    if done:
        model.load_state_dict(run.dense or model.state_dict())
        run.dense = {name: value.clone() for name, value in model.state_dict().items()}
        task = MetricTask(model, run.args)
        done = fit(run, task, images[:count], labels[:count])
        if done and run.first:
            report(run, task, images[-run.args.test :], labels[-run.args.test :])
    run.finish(done)


if __name__ == "__main__":
    main()
