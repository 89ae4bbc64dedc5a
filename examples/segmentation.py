"""Dense prediction with fewer tokens: trains a small segmenter, then runs it plain and with four strategies.

Scenes are shapes of one material on a ground of another, both from images that scikit-image ships. The left half of
each image is for training, the right half for the test. Needs the extras timm and viz, and minutes on a CPU.

    python examples/segmentation.py        (--steps 40: a rougher run; --head masks: a mask transformer on top)
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from segmenter import MaskTransformer
from skimage import data
from skimage.color import gray2rgb
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.cost import vit_cost
from tokengraph.viz import cluster_overlay

MATERIALS = ("brick", "grass", "gravel", "text", "immunohistochemistry", "hubble_deep_field", "chelsea")
SIZE, PATCH = 128, 8
GRID = (SIZE // PATCH, SIZE // PATCH)


def load_materials() -> list[Tensor]:
    """Returns the image of each material, ``[3, H, W]`` in [0, 1]."""
    images = [getattr(data, name)() for name in MATERIALS]
    images = [torch.tensor(i if i.ndim == 3 else gray2rgb(i)).float().permute(2, 0, 1) / 255 for i in images]
    return [F.interpolate(i[None], (2 * SIZE, 4 * SIZE), mode="bilinear", antialias=True)[0] for i in images]


def scenes(materials: list[Tensor], count: int, generator: torch.Generator, *, test: bool) -> tuple[Tensor, Tensor]:
    """Returns images ``[count, 3, SIZE, SIZE]`` and the material of each pixel."""
    half = 2 * SIZE
    ys, xs = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")

    def draw(high: int, low: int = 0) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def crop(kind: int) -> Tensor:
        top, left = draw(SIZE), draw(SIZE) + half * test
        return materials[kind][:, top : top + SIZE, left : left + SIZE]

    images, labels = [], []
    for _ in range(count):
        label = torch.full((SIZE, SIZE), draw(len(materials)))
        image = crop(int(label[0, 0])).clone()
        for _ in range(4):
            kind, y, x, high, wide = draw(len(materials)), draw(SIZE), draw(SIZE), draw(48, 16), draw(48, 16)
            dy, dx = (ys - y).abs() / high, (xs - x).abs() / wide
            inside = dy**2 + dx**2 < 1 if draw(2) else (dy < 0.8) & (dx < 0.8)
            image[:, inside], label[inside] = crop(kind)[:, inside], kind
        images.append(image)
        labels.append(label)
    return torch.stack(images), torch.stack(labels)


class Segmenter(nn.Module):
    """A plain vision transformer with one linear layer for each patch, or with a mask transformer."""

    def __init__(self, head: str = "linear") -> None:
        super().__init__()
        sizes: dict[str, Any] = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 96, "depth": 8, "num_heads": 3}
        self.backbone = timm.models.VisionTransformer(**sizes, class_token=False, global_pool="", num_classes=0)
        kinds = len(MATERIALS)
        self.head = nn.Linear(96, kinds) if head == "linear" else MaskTransformer(96, kinds)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.backbone.forward_features(images * 2 - 1)
        logits = self.head(tokens).transpose(1, 2).unflatten(2, GRID)
        return F.interpolate(logits, scale_factor=PATCH, mode="bilinear")


def train(model: nn.Module, materials: list[Tensor], steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps)
    for step in range(steps):
        images, labels = scenes(materials, 16, generator, test=False)
        loss = F.cross_entropy(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 40 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {loss.item():.3f}", flush=True)


def mean_iou(predicted: Tensor, labels: Tensor) -> float:
    """Returns the intersection over union, averaged over materials."""
    ious = []
    for kind in range(len(MATERIALS)):
        ours, theirs = predicted == kind, labels == kind
        ious.append((ours & theirs).sum() / (ours | theirs).sum().clamp_min(1))
    return torch.stack(ious).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--head", choices=["linear", "masks"], default="linear")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--out", type=Path, default=Path("outputs/segmentation"))
    args = parser.parse_args()
    torch.manual_seed(0)
    materials, model = load_materials(), Segmenter(args.head)
    train(model, materials, args.steps)
    model.eval()
    images, labels = scenes(materials, 32, torch.Generator().manual_seed(1), test=True)

    # Every patch comes back after the last block (lift=True), so the head gets a full map, as in training.
    ways: dict[str, Any] = {
        "plain": None,
        "token migration": (tg.TokenMigration(),),
        "AiluRus": (tg.AiluRus(), {2: 0.5, 8: "reconstruct"}),
        "Expedite": (tg.Expedite(clusters=(11, 11), inv_temperature="auto"), {2: "cluster", 8: "reconstruct"}),
        "MPM": (tg.MPM(layers=(2, 4)),),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    predicted, counts, clusters = {}, {}, None
    for _ in range(args.rounds):  # interleaved, so that a busy machine affects all alike
        for name, way in ways.items():
            with tg.attach(model, *way, lift=True) if way else nullcontext() as handle, torch.no_grad():
                start = time.perf_counter()
                predicted[name] = torch.cat([model(batch) for batch in images.split(8)]).argmax(dim=1)
                times[name].append(time.perf_counter() - start)
                counts[name] = handle.trace.counts if handle else [GRID[0] * GRID[1]] * 9
                if name == "AiluRus":
                    clusters = handle.trace.source(4)
    rows = []
    for name, way in ways.items():
        flops = vit_cost(counts[name], 96, num_prefix=0, head_width=32, select=way[0] if way else None).total.flops
        ratio = statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True))
        rows.append({"name": name, "miou": mean_iou(predicted[name], labels), "gflops": flops / 1e9, "time": ratio})
        print(
            f"{name:15s}  mIoU {rows[-1]['miou']:.3f}  GFLOPs {flops / 1e9:.3f}  time {ratio:.2f} of plain  "
            f"tokens {counts[name][0]} to {min(counts[name])}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(images, labels, predicted, clusters, args.out / "predictions.png")
    print(f"Pictures: {args.out}")


def draw(images: Tensor, labels: Tensor, predicted: dict[str, Tensor], clusters: Any, path: Path) -> None:
    """Draws scenes, labels, every prediction, and the clusters of AiluRus, side by side."""
    count = 3
    figure = Figure(figsize=(17, 6.6), layout="constrained")
    axes = figure.subplots(count, 3 + len(predicted))
    mine = [clusters.cluster[int(clusters.ptr[b]) : int(clusters.ptr[b + 1])] for b in range(count)]
    for row in range(count):  # the clusters are those of the last batch
        last = len(images) - 8 + row
        shown = {"scene": images[last].permute(1, 2, 0), "truth": labels[last]}
        shown |= {name: maps[last] for name, maps in predicted.items()}
        shown |= {"its clusters": cluster_overlay(images[last], mine[row], GRID)}
        for ax, (title, picture) in zip(axes[row], shown.items(), strict=True):
            ax.imshow(picture, cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
            ax.set_axis_off()
            ax.set_title(title if row == 0 else "", fontsize=11)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
