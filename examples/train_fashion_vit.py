"""Training a small ViT on Fashion-MNIST from scratch: 49 patches of 4 x 4 pixels, a class token, 1.3 million weights.

The data come from Debian's package dataset-fashion-mnist; `python benchmarks/truth fetch` brings them without root.
Writes the weights in float16 (under 3 MB) with the model's arguments and its test accuracy. About an hour on one core.

    python examples/train_fashion_vit.py --data /usr/share/datasets/fashion-mnist
    (interrupted: the same command goes on from the last checkpoint, and ends with the same weights)
"""

import argparse
import gzip
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.compat import timm

FOLDER = Path("truth-data/unpacked/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.286, 0.353  # of the training pixels, in [0, 1]
SHAPE = {
    "img_size": 28,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 128,
    "depth": 8,
    "num_heads": 4,
    "mlp_ratio": 3.0,
}


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=FOLDER, help="folder of the four .gz files")
    add("--out", type=Path, default=Path("outputs/fashion-vit"), help="checkpoint.pt and fashion_vit.pt go here")
    add("--epochs", type=int, default=10)
    add("--batch", type=int, default=128)
    add("--lr", type=float, default=1.5e-3)
    add("--seed", type=int, default=0)
    add("--images", type=int, default=60_000, help="images to train on, the first of the set")
    add("--every", type=int, default=100, help="steps between checkpoints")
    add("--stop-after", type=int, default=10**9, help="leave after this many steps, to be resumed")
    return parser.parse_args(argv)


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 28, 28]``, normalized, and labels ``[N]``; ``part`` is ``"train"`` or ``"t10k"``."""

    def read(kind: str, offset: int) -> np.ndarray:
        with gzip.open(folder / f"{part}-{kind}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8, offset=offset)

    pixels = torch.from_numpy(read("images-idx3", 16).reshape(-1, 1, 28, 28).copy())
    return (pixels / 255 - MEAN) / STD, torch.from_numpy(read("labels-idx1", 8).astype(np.int64))


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.models.VisionTransformer(**SHAPE)


def batch_of(step: int, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Indices ``[batch]`` and which to mirror: they depend on seed and step alone, so a resumed run draws the same."""
    steps = args.images // args.batch
    order = torch.randperm(args.images, generator=torch.Generator().manual_seed(1000 * args.seed + step // steps))
    mirror = torch.rand(args.batch, generator=torch.Generator().manual_seed(10**6 * (args.seed + 1) + step)) < 0.5
    return order[step % steps * args.batch :][: args.batch], mirror


def rate(step: int, total: int, peak: float) -> float:
    """Learning rate: up for a twentieth of the run, then down along a cosine."""
    warm = max(1, total // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(
        (model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    model.train()
    return right / len(labels)


def save(content: dict, path: Path) -> None:
    """Whole or not at all: an interruption leaves the older file."""
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def train(args: argparse.Namespace) -> tuple[nn.Module, int]:
    """Trains from the last checkpoint, if there is one, and returns the model and the steps that it has done."""
    images, labels = load(args.data, "train")
    model, file = make_model(args.seed), args.out / "checkpoint.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    steps, done = args.images // args.batch, 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    total, start, lost = args.epochs * steps, time.time(), []
    last = min(total, done + args.stop_after)
    for step in range(done, last):
        chosen, mirror = batch_of(step, args)
        x = images[chosen]
        x = torch.where(mirror.view(-1, 1, 1, 1), x.flip(3), x)
        loss = F.cross_entropy(model(x), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, total, args.lr)
        optimizer.step()
        lost.append(loss.item())
        done = step + 1
        if done % args.every == 0 or done == last:
            save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}, file)
            print(f"step {done} of {total}: loss {np.mean(lost[-100:]):.3f}, {time.time() - start:.0f} s", flush=True)
        if done % steps == 0:
            print(f"epoch {done // steps}: test accuracy {accuracy(model, *load(args.data, 't10k')):.4f}", flush=True)
    return model, done


def main() -> None:
    args = options()
    args.out.mkdir(parents=True, exist_ok=True)
    model, done = train(args)
    if done < args.epochs * (args.images // args.batch):
        print(f"stopped after {done} steps; the same command goes on")
        return
    weights = {name: value.half() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    measured = accuracy(model, *load(args.data, "t10k"))
    save(
        {"shape": SHAPE, "mean": MEAN, "std": STD, "accuracy": measured, "weights": weights},
        args.out / "fashion_vit.pt",
    )
    print(f"test accuracy {measured:.4f}, weights in {args.out / 'fashion_vit.pt'}")


if __name__ == "__main__":
    main()
