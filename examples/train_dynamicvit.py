"""Trains DynamicViT: first a small ViT, then prediction modules in it that learn to keep given shares of tokens.

The data are the handwritten digits that scikit-learn ships: 16 x 16 pixels, 64 tokens. It takes minutes on two cores,
and needs scikit-learn and the extras timm, viz and cli.

    python examples/train_dynamicvit.py                   (--quick: a rougher run)
    python examples/train_dynamicvit.py --stop-after 15   (interrupt; the next line resumes, with bit-identical results)
    python examples/train_dynamicvit.py --resume outputs/dynamicvit/checkpoint.pt
    torchrun --nproc-per-node 2 examples/train_dynamicvit.py   (the same up to rounding)
"""

import argparse
import copy
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from training.report import average, compare, comparison_table, facts, kept_table, plot, progress
from training.run import Run

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.losses import DynamicViTLoss

TRAIN = 1408  # of 1,797 digits; the others are for the test
GRID = 8  # 8 x 8 tokens
Outcome = tuple[Tensor, dict[str, Tensor], list[Tensor]]  # loss, its parts, shares kept


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path("outputs/dynamicvit"), help="everything is written here")
    add("--keep", type=float, default=0.5, help="shares kept: this, its square, its cube")
    add("--epochs", type=int, nargs=2, default=[12, 15], help="of the dense model, of the predictors")
    add("--frozen", type=int, default=4, help="first epochs of the predictors, in which the backbone stays as it is")
    add("--images", type=int, default=TRAIN, help="digits to train on; those for the test are always the same")
    add("--batch", type=int, default=32, help="images a step, of all processes together")
    add("--lr", type=float, nargs=2, default=[2e-3, 2e-3], help="of the dense model, of the predictors")
    add("--ratio-weight", type=float, default=20.0, help="of the ratio term; published, for long trainings: 2")
    add("--seed", type=int, default=0)
    add("--amp", action="store_true", help="bfloat16 where autocast finds it safe")
    add("--checkpoint-blocks", action="store_true", help="compute blocks again in backward, for less memory")
    add("--dense", type=Path, help="weights of the dense model: dense.pt of an earlier run")
    add("--resume", type=Path, help="checkpoint.pt to go on from, with the options of its run")
    add("--stop-after", type=int, default=10**9, help="leave after this many epochs, to be resumed")
    add("--rounds", type=int, default=25, help="of timing, at the end")
    add("--quick", action="store_true", help="fewer epochs")
    args = parser.parse_args(argv)
    if args.quick:
        args.epochs, args.frozen = [8, 8], 2
    return args


def load_data() -> tuple[Tensor, Tensor]:
    """Returns images ``[1797, 1, 16, 16]`` and labels in a fixed random order."""
    pixels, labels = (torch.tensor(t) for t in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = F.interpolate(pixels[order].float().view(-1, 1, 8, 8) / 8, size=(2 * GRID, 2 * GRID), mode="bilinear")
    return images, labels[order]


def make_model() -> nn.Module:
    # Normed queries and keys prevent extreme attention, so that gradients of decisions stay usable. Attention does not
    # depend on biases of keys, so rounding alone would train them, differently in each run: there are none.
    model = timm.models.VisionTransformer(
        img_size=2 * GRID,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=64,
        depth=4,
        num_heads=4,
        qkv_bias=False,
        qk_norm=True,
        norm_layer=nn.RMSNorm,
    )
    nn.init.normal_(model.pos_embed, std=0.5)  # tokens of so few pixels need their position
    return model


def cosine(epoch: float, epochs: int) -> float:
    """Returns the factor of the learning rate: up during one epoch, then down to 0."""
    return min(1.0, 0.1 + epoch) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


class DenseTask:
    """Trains the dense model."""

    name = "dense"

    def __init__(self, model: nn.Module, args: argparse.Namespace) -> None:
        self.model = self.module = model
        self.epochs = args.epochs[0]
        self.groups = [{"params": list(model.parameters()), "lr": args.lr[0]}]
        self.factors: list[Callable[[float], float]] = [lambda epoch: cosine(epoch, self.epochs)]

    def draw(self, run: Run) -> None:
        """Draws nothing: this task has no decisions."""

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        loss = F.cross_entropy(module(images), labels)
        return loss, {"classification": loss.detach()}, []


class Student(nn.Module):
    """Returns everything that the loss needs from one forward, as DistributedDataParallel requires."""

    def __init__(self, handle: tg.Attachment) -> None:
        super().__init__()
        self.model, self.handle = handle.model, handle

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        tokens = self.model.forward_features(images)
        return self.model.forward_head(tokens), tokens[:, 1:], self.handle.trace.decisions


class PredictorTask:
    """Trains predictors, and the rest of the model at 1 % of their learning rate; the dense model is the teacher."""

    name = "predictors"

    def __init__(self, dense: nn.Module, args: argparse.Namespace) -> None:
        self.teacher, self.model, self.epochs = dense, copy.deepcopy(dense), args.epochs[1]
        # Every image keeps a token, so that means over images do not depend on the number of processes.
        self.handle = tg.attach(self.model, tg.DynamicViT(args.keep, at_least_one=True))
        self.select: Any = self.handle.select
        self.module = Student(self.handle)
        weights = {"ratio": args.ratio_weight}
        self.criterion = DynamicViTLoss(self.select.ratios, weights=weights, per="graph", token_per="graph")
        named = list(self.model.named_parameters())
        predictors = [p for name, p in named if name.startswith("score_predictor.")]
        backbone = [p for name, p in named if not name.startswith("score_predictor.")]
        self.groups = [{"params": predictors, "lr": args.lr[1]}, {"params": backbone, "lr": 0.01 * args.lr[1]}]
        self.factors: list[Callable[[float], float]] = [
            lambda epoch: cosine(epoch, self.epochs),
            lambda epoch: 0.0 if epoch < args.frozen else cosine(epoch, self.epochs),
        ]

    def draw(self, run: Run) -> None:
        """Draws Gumbel noise for the global batch, so that decisions do not depend on the number of processes."""
        shape = len(self.select.ratios), run.args.batch, GRID**2, 2
        noise = torch.empty(shape).exponential_(generator=run.generator).log().neg()
        self.select.noise = [run.processes.share(stage) for stage in noise]

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        logits, tokens, decisions = module(images)
        loss, parts = self.criterion(logits, labels, decisions, tokens=tokens, teacher=self.teacher, x=images)
        return loss, parts, [d.detach().mean() for d in decisions]


def fit(run: Run, task: Any, images: Tensor, labels: Tensor) -> bool:
    """Trains to the end and returns True, or stops early as the options say and returns False."""
    args, steps = run.args, len(images) // run.args.batch
    optimizer = torch.optim.AdamW(task.groups, betas=(0.9, 0.95), weight_decay=0.05)
    factors = [lambda step, factor=factor: factor(step / steps) for factor in task.factors]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    start = run.restore(task, optimizer, schedule)
    task.model.set_grad_checkpointing(args.checkpoint_blocks)
    module = run.processes.wrap(task.module.train())
    with progress(disable=not run.first) as bar:
        line = bar.add_task(task.name, total=task.epochs * steps, completed=start * steps, facts="")
        for epoch in range(start, task.epochs):
            if run.epochs_left == 0:
                return False
            rows = []
            order = torch.randperm(len(images), generator=run.generator)
            for step, batch in enumerate(order.split(args.batch)[:steps]):
                task.draw(run)
                mine = run.processes.share(batch)
                with torch.autocast("cpu", torch.bfloat16) if args.amp else nullcontext():
                    loss, parts, kept = task.loss(module, images[mine], labels[mine])
                optimizer.zero_grad()
                loss.backward()  # averages the gradients over processes
                optimizer.step()
                values = run.processes.mean(torch.stack([loss.detach(), *parts.values(), *kept])).tolist()
                row = {"phase": task.name, "epoch": epoch, "step": step, "lr": schedule.get_last_lr()}
                row |= dict(zip(["loss", *parts], values, strict=False)) | {"kept": values[1 + len(parts) :]}
                rows.append(row)
                schedule.step()
                bar.update(line, advance=1, facts=facts([row]))
            run.finish_epoch(rows, task, optimizer, schedule, epoch + 1)
            if run.first:
                bar.console.print(f"{task.name} {epoch + 1:2d}/{task.epochs}  {facts(rows)}", highlight=False)
    task.model.set_grad_checkpointing(False)
    return True


def report(run: Run, task: PredictorTask, images: Tensor, labels: Tensor) -> None:
    """Writes tables, plot and report.json; in eval mode the model prunes to fixed counts."""
    out, ratios = run.args.out, task.select.ratios
    counts = {layer: task.handle.trace.plan[layer] for layer in task.select.layers}
    dense, trained = task.teacher.eval(), task.model.eval()
    by_attention = tg.attach(copy.deepcopy(dense), tg.TopK(score="class"), counts)
    models = {"dense": dense, "pruned by class attention": by_attention, "pruned by trained predictors": trained}
    compared = compare(models, images, labels, run.args.rounds)
    rows = [row for row in run.rows if row["phase"] == task.name]
    kept = average([row for row in rows if row["epoch"] == task.epochs - 1], "kept")
    found = {"models": compared, "kept": kept, "targets": ratios, "tokens": task.handle.trace.counts}
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    torch.save(trained.state_dict(), out / "dynamicvit.pt")
    plot(out / "training.png", rows, ratios, run.args.frozen)
    console = Console()
    console.print(comparison_table(compared), kept_table(kept, ratios))
    console.print(f"Tokens after each block: {task.handle.trace.counts}. Log, plot and weights: {out}", highlight=False)


def main(argv: list[str] | None = None) -> None:
    run = Run(options(argv))
    images, labels = load_data()
    model = make_model()
    if run.args.dense and not run.dense:
        run.dense = torch.load(run.args.dense, weights_only=True)
    done = bool(run.dense) or fit(run, DenseTask(model, run.args), images[: run.args.images], labels[: run.args.images])
    if done:
        model.load_state_dict(run.dense or model.state_dict())
        run.dense = {name: value.clone() for name, value in model.state_dict().items()}
        if run.first:
            torch.save(run.dense, run.args.out / "dense.pt")
        task = PredictorTask(model, run.args)
        done = fit(run, task, images[: run.args.images], labels[: run.args.images])
        if done and run.first:
            report(run, task, images[TRAIN:], labels[TRAIN:])
    run.finish(done)


if __name__ == "__main__":
    main()
