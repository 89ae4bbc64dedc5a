"""Learns how many tokens each block of a trained ViT keeps (DiffRate), for a given cost; its weights stay frozen.

The model is the small Fashion-MNIST ViT of train_fashion_vit.py, which also teaches. The cost is that of ToMe with a
constant number of merges in each block, at whose counts the rates begin. Tokens merge by similarity, our own option of
DiffRate. The learned rates are compared on test images, image by image, with ToMe, with DiffRate's own step at ToMe's
counts, and with the best of ten hand-made lists, which show what learning the rates adds; docs/how/training.md has the
figures. Minutes on one core. Resuming, several processes and bfloat16 are as in train_dynamicvit.py, whose options
this script takes.

    python examples/train_rates.py --data /usr/share/datasets/fashion-mnist
    python examples/train_rates.py --images 2048 --test 2000 --epochs 0 2    (rougher)
    python examples/train_rates.py --merge-by attention --from-labels --first 1    (the published form)
"""

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import train_dynamicvit
from torch import Tensor, nn
from train_dynamicvit import Outcome, fit
from train_fashion_vit import FOLDER, load
from training.run import Run

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.losses import DiffRateLoss
from tokengraph.nn.rates import count_flops

WEIGHTS = Path(__file__).parents[1] / "benchmarks" / "truth" / "fashion_vit.pt"
UNIT = 1e6  # multiply-adds are told in millions


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=FOLDER, help="folder of the four .gz files of Fashion-MNIST")
    add("--weights", type=Path, default=WEIGHTS, help="file of train_fashion_vit.py")
    add("--removed", type=int, default=6, help="tokens that ToMe merges in each block; its cost is the target")
    add("--test", type=int, default=10_000, help="test images")
    add("--cost-weight", type=float, default=0.02, help="of the squared distance from the target, in millions")
    add("--merge-by", default="similarity", choices=["attention", "similarity"], help="published: attention")
    add("--first", type=int, default=0, help="the first block that may remove tokens; published: 1")
    add("--from-labels", action="store_true", help="learn from labels, as published, not from the dense model's output")
    own, others = parser.parse_known_args(argv)
    short = ["--out", "outputs/rates", "--images", "4096", "--batch", "64", "--epochs", "0", "3", "--lr", "0", "0.05"]
    args = train_dynamicvit.options([*short, *others])
    for name, value in vars(own).items():
        setattr(args, name, value)
    args.settings = ("removed", "cost_weight", "merge_by", "first", "from_labels")
    return args


def load_model(file: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the trained ViT, frozen, and its shape."""
    saved = torch.load(file, weights_only=True)
    model = timm.models.VisionTransformer(**saved["shape"])
    model.load_state_dict({name: value.float() for name, value in saved["weights"].items()})
    return model.requires_grad_(False).eval(), saved["shape"]


def cost(counts: list[int], shape: dict[str, Any]) -> float:
    """Multiply-adds of one image in millions, by the patch tokens behind each block."""
    whole = [(torch.tensor(n + 1.0),) * 2 for n in counts[1:]]
    return count_flops(whole, counts[0], **_terms(shape)).item() / UNIT


def _terms(shape: dict[str, Any]) -> dict[str, Any]:
    names = {"channels": "embed_dim", "classes": "num_classes", "patch": "patch_size", "mlp_ratio": "mlp_ratio"}
    return {ours: shape[theirs] for ours, theirs in names.items()}


class Student(nn.Module):
    """Returns everything that the loss needs from one forward, as DistributedDataParallel requires.

    A teacher gives soft labels: less noisy than labels, as the rates can only come close to the dense model anyway.
    """

    def __init__(self, handle: tg.Attachment, criterion: DiffRateLoss, teacher: nn.Module | None) -> None:
        super().__init__()
        self.model, self.handle, self.criterion, self.teacher = handle.model, handle, criterion, [teacher]

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        select: Any = self.handle.select
        target = labels
        if self.teacher[0] is not None:
            with torch.no_grad():
                target = self.teacher[0](images).float().softmax(dim=1)
        return self.criterion(self.model(images), target, select.learned)


class RatesTask:
    """Trains the rates alone."""

    name = "rates"

    def __init__(self, dense: nn.Module, shape: dict[str, Any], plan: list[int], args: argparse.Namespace) -> None:
        self.model, self.epochs, self.target = copy.deepcopy(dense), args.epochs[1], cost(plan, shape)
        whole, equal = [plan[0] + 1] * shape["depth"], [n + 1 for n in plan[1:]]  # the class token counted
        how = {"merge_by": args.merge_by, "first": args.first, "granularity": 1}
        start = tg.DiffRate(whole, equal, patches=plan[0], learn=True, **how)
        self.handle = tg.attach(self.model, start)
        self.select: Any = self.handle.select
        criterion = DiffRateLoss(self.target, weight=args.cost_weight, unit=UNIT, **_terms(shape))
        self.module = Student(self.handle, criterion, None if args.from_labels else dense)
        learned = [p for p in self.select.learned.parameters() if p.requires_grad]
        self.groups: list[dict[str, Any]] = [{"params": learned, "lr": args.lr[1], "weight_decay": 0.0}]
        self.factors: list[Callable[[float], float]] = [lambda epoch: max(1 - epoch / self.epochs, 0.02)]

    def draw(self, run: Run) -> None:
        """Draws nothing: rates have no noise."""

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> Outcome:
        loss, parts = module(images, labels)
        return loss, parts, []


def hand_made(target: float, shape: dict[str, Any], patches: int) -> list[list[int]]:
    """Lists of tokens behind each block that cost at most the target.

    They remove more and more, or fewer and fewer, or a constant share.
    """
    depth = shape["depth"]
    steps = torch.linspace(-1, 1, depth)
    lists = []
    for slope in (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0):
        shares = (1 + slope * steps).cumsum(0) / depth  # of what is removed in all, behind each block
        tries = ((patches - amount / 4 * shares).round().clamp_min(1) for amount in range(80 * patches))
        lists.append(next(n for n in (list(map(int, t)) for t in tries) if cost([patches, *n], shape) <= target))
    tries = ([max(round(patches * (1 - s / 400) ** (i + 1)), 1) for i in range(depth)] for s in range(400))
    return [*lists, next(n for n in tries if cost([patches, *n], shape) <= target)]


@torch.no_grad()
def best_of(lists: list[list[int]], dense: nn.Module, select: Callable[[list[int]], Any], images: Tensor) -> list[int]:
    """Returns the list with which the model's outputs are nearest to the dense model's, by cross-entropy."""
    wanted = torch.cat([dense(x).softmax(dim=1) for x in images.split(500)])
    losses = []
    for counts in lists:
        with tg.attach(copy.deepcopy(dense), select(counts)) as handle:
            losses.append(F.cross_entropy(torch.cat([handle.model(x) for x in images.split(500)]), wanted).item())
    return lists[losses.index(min(losses))]


def fit_to(select: Any, target: float, shape: dict[str, Any]) -> None:
    """Takes single tokens off the block that keeps most of its own, until the learned rates cost at most the target.

    The loss lets the cost end a little above its target; a comparison at equal cost may not.
    """
    patches = select.patches
    prune, merge = select.rates

    def left() -> list[int]:
        out = [patches]
        for p, m in zip(prune, merge, strict=True):
            out.append(min(out[-1], p - 1, m - 1))
        return out

    while cost(left(), shape) > target:
        counts = left()
        block = max(range(1, len(prune)), key=lambda i: counts[i + 1] - (counts[i + 2] if i + 2 < len(counts) else 0))
        merge[block] = max(counts[block + 1], 2)
    select.prune, select.merge = tuple(prune), tuple(merge)


@torch.no_grad()
def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is classified right, ``[N]`` float."""
    model.eval()
    return torch.cat(
        [(model(x).argmax(1) == y).float() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    )


def compare(models: dict[str, nn.Module], images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy of each, and paired differences of the learned rates from the others with 95 % intervals."""
    hits = {name: right(model, images, labels) for name, model in models.items()}
    gains = {}
    for name in hits.keys() - {"learned rates"}:
        gain = hits["learned rates"] - hits[name]
        mean, half = gain.mean().item(), 1.96 * gain.std().item() / math.sqrt(len(gain))
        gains[name] = [mean, mean - half, mean + half]
    return {"accuracy": {name: hit.mean().item() for name, hit in hits.items()}, "gain": gains}


def report(run: Run, task: RatesTask, shape: dict[str, Any], dense: nn.Module, images: Tensor, labels: Tensor) -> None:
    args = run.args
    fit_to(task.select, task.target, shape)
    by = args.merge_by
    fixed = tg.DiffRate(task.select.prune, task.select.merge, patches=task.select.patches, merge_by=by)
    handles = {"ToMe": tg.attach(copy.deepcopy(dense), "tome", args.removed)}

    def merging(counts: list[int]) -> tg.DiffRate:
        whole = [fixed.patches + 1] * len(counts)
        return tg.DiffRate(whole, [n + 1 for n in counts], patches=fixed.patches, merge_by=by)

    some = load(args.data, "train")[0][:2000]  # the test images choose nothing
    best = best_of(hand_made(task.target, shape, fixed.patches), dense, merging, some)
    handles |= {"constant rates": tg.attach(copy.deepcopy(dense), merging(handles["ToMe"].trace.plan[1:]))}
    handles |= {"best of ten lists": tg.attach(copy.deepcopy(dense), merging(best))}
    handles |= {"learned rates": tg.attach(copy.deepcopy(dense), fixed)}
    found = compare({"dense": dense} | {name: h.model for name, h in handles.items()}, images, labels)
    found["tokens"] = {name: h.trace.counts for name, h in handles.items()}
    found["tokens"]["dense"] = [fixed.patches] * (shape["depth"] + 1)
    found["cost"] = {name: cost(counts, shape) for name, counts in found["tokens"].items()}
    fixed.save(args.out / "rates.json")
    (args.out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, accuracy in found["accuracy"].items():
        print(f"{name:17} {100 * accuracy:.2f} %  {found['cost'][name]:.2f} M  {found['tokens'][name]}")
    for name, (gain, low, high) in found["gain"].items():
        print(f"learned rates against {name}: {100 * gain:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})")
    print(f"Rates and log: {args.out}")


def main(argv: list[str] | None = None) -> None:
    run = Run(options(sys.argv[1:] if argv is None else argv))
    args = run.args
    dense, shape = load_model(args.weights)
    images, labels = (t[: args.images] for t in load(args.data, "train"))
    patches = (shape["img_size"] // shape["patch_size"]) ** 2
    plan = tg.schedule.tokens_per_layer(args.removed, shape["depth"], patches, tg.ToMe().fewest)
    task = RatesTask(dense, shape, plan, args)
    done = fit(run, task, images, labels)
    if done and run.first:
        report(run, task, shape, dense, *(t[: args.test] for t in load(args.data, "t10k")))
    run.finish(done)


if __name__ == "__main__":
    main()
