"""Trains SViT's gates in a trained ViT until each block runs on a given share of the tokens; idle tokens may come back.

The model is the small Fashion-MNIST ViT of train_fashion_vit.py; its weights move at 5 % of the gates' rate, and the
dense model teaches. It is compared on test images, before and after training, with the dense model, and with IdleViT,
which idles as many tokens by class attention and trains nothing. The last block has no gate: its patch tokens have no
part in the loss of a model that reads its class token, so a gate there would learn nothing but its share. Minutes on
one core. Resuming, several processes and bfloat16 are as in train_dynamicvit.py, whose options this script takes.

    python examples/train_gates.py --data /usr/share/datasets/fashion-mnist
    python examples/train_gates.py --images 2048 --test 2000 --epochs 0 2    (rougher)
    python examples/train_gates.py --stop-after 1; python examples/train_gates.py --resume outputs/gates/checkpoint.pt
    torchrun --nproc-per-node 2 examples/train_gates.py    (targets are met by the share of each process's images)
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
from torch import Tensor, nn
from train_dynamicvit import Outcome, cosine, fit
from train_fashion_vit import FOLDER, load
from train_rates import WEIGHTS, load_model
from training.run import Run

import tokengraph as tg
from tokengraph.losses import ShareLoss


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=FOLDER, help="folder of the four .gz files of Fashion-MNIST")
    add("--weights", type=Path, default=WEIGHTS, help="file of train_fashion_vit.py")
    add("--test", type=int, default=10_000, help="test images")
    add("--share-weight", type=float, default=4.0, help="of the distance of shares from their targets; published: 4")
    own, others = parser.parse_known_args(argv)
    short = ["--out", "outputs/gates", "--images", "4096", "--batch", "64", "--epochs", "0", "4", "--lr", "0", "0.002"]
    args = train_dynamicvit.options([*short, "--keep", "0.7", *others])
    for name, value in vars(own).items():
        setattr(args, name, value)
    args.settings = ("share_weight",)
    return args


class Student(nn.Module):
    """Returns everything that the loss needs from one forward, as DistributedDataParallel requires."""

    def __init__(self, handle: tg.Attachment) -> None:
        super().__init__()
        self.model, self.handle = handle.model, handle  # the dense teacher stays outside: it does not train

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.model(images), self.handle.trace.decisions


class GatesTask:
    """Trains gates, and the rest of the model at 5 % of their learning rate."""

    name = "gates"

    def __init__(self, dense: nn.Module, args: argparse.Namespace) -> None:
        self.teacher, self.model, self.epochs = dense, copy.deepcopy(dense).requires_grad_(True), args.epochs[1]
        depth = len(self.model.blocks)
        gated = tuple(range(depth // 4, depth - 1))
        shares = [args.keep ** (1 + 3 * i // len(gated)) for i in range(len(gated))]  # three thirds
        self.handle = tg.attach(self.model, tg.SViT(shares, layers=gated))
        self.select: Any = self.handle.select
        self.module, self.criterion = Student(self.handle), ShareLoss(shares, weight=args.share_weight)
        gates = list(self.select.gates.parameters())
        known = {id(p) for p in gates}
        backbone = [p for p in self.model.parameters() if id(p) not in known]
        self.groups = [{"params": gates, "lr": args.lr[1]}, {"params": backbone, "lr": 0.05 * args.lr[1]}]
        self.factors: list[Callable[[float], float]] = [lambda epoch: cosine(epoch, self.epochs)] * 2

    def draw(self, run: Run) -> None:
        """Draws the gates' noise for the global batch, so that decisions do not depend on the number of processes.

        The noise fades from epoch to epoch, to none in the last: shares are then those of evaluation, which has none.
        """
        epoch = len(run.rows) // (run.args.images // run.args.batch)
        scale = 1 - epoch / max(self.epochs - 1, 1)
        shape = len(self.select.targets), run.args.batch, self.handle.trace.patches
        uniform = torch.rand(shape, generator=run.generator).clamp(1e-6, 1 - 1e-6)
        noise = scale * (uniform.log() - (-uniform).log1p())
        self.select.noise = [run.processes.share(gate) for gate in noise]

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        logits, decisions = module(images)
        with torch.no_grad():
            wanted = self.teacher(images).float().softmax(dim=1)
        parts = {"classification": F.cross_entropy(logits.float(), wanted), "share": self.criterion(decisions)}
        loss = torch.stack([*parts.values()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}, [d.detach().mean() for d in decisions]


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, handle: Any = None) -> dict[str, Any]:
    """Accuracy, and the mean share of the tokens that each block runs on."""
    model.eval()
    right, ran = 0, 0.0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        right += (model(x).argmax(1) == y).sum().item()
        if handle is not None:
            trace = handle.trace
            ran = ran + torch.tensor([sum(trace.worked_per_image(i + 1)) / trace.patches for i in range(trace.depth)])
    shares = [] if handle is None else [round(s, 4) for s in (ran / len(labels)).tolist()]
    return {"accuracy": right / len(labels), "shares": shares}


def report(run: Run, task: GatesTask, dense: nn.Module, images: Tensor, labels: Tensor) -> None:
    args, targets, layers = run.args, task.select.targets, task.select.layers
    torch.manual_seed(args.seed)
    found = {"dense": evaluate(dense, images, labels)}
    before = tg.attach(copy.deepcopy(dense), tg.SViT(targets, layers=layers))
    found["SViT before training"] = evaluate(before.model, images, labels, before)
    idle = tg.attach(copy.deepcopy(dense), tg.IdleViT(layers=layers, ratios=targets))
    found["IdleViT, not trained"] = evaluate(idle.model, images, labels, idle)
    found["SViT after training"] = evaluate(task.model, images, labels, task.handle)
    content = {"models": found, "targets": dict(zip(map(str, layers), targets, strict=True))}
    (args.out / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    torch.save(task.model.state_dict(), args.out / "svit.pt")
    print(f"{'targets':22}          {' '.join(f'{t:.3f}' for t in targets)}  (blocks {layers[0]} to {layers[-1]})")
    for name, row in found.items():
        shares = " ".join(f"{row['shares'][i]:.3f}" for i in layers) if row["shares"] else ""
        print(f"{name:22} {100 * row['accuracy']:6.2f} %  {shares}")
    print(f"Weights and log: {args.out}")


def main(argv: list[str] | None = None) -> None:
    run = Run(options(sys.argv[1:] if argv is None else argv))
    args = run.args
    dense, _ = load_model(args.weights)
    images, labels = (t[: args.images] for t in load(args.data, "train"))
    task = GatesTask(dense, args)
    done = fit(run, task, images, labels)
    if done and run.first:
        report(run, task, dense, *(t[: args.test] for t in load(args.data, "t10k")))
    run.finish(done)


if __name__ == "__main__":
    main()
