"""The parts of the GPU kit: laws of the device, neighbours, merging, models, ragged batches, size bias, prefill."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from decoder import Decoder
from harness import Effort, interleave, peak_memory
from launches import COUNTED, count
from merge_cases import Problem, cases
from ragged import images_of, measure
from size_bias import kernels
from torch import Tensor, nn
from torch._dynamo.utils import counters

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.select.base import registry
from tokengraph.testing import make_tokens, tiny_vit
from tokengraph.testing.device_laws import DEVICE_LAWS, connects_alike
from tokengraph.testing.ideal import ideal

Case = tuple[str, Callable[[], dict[str, Any]]]  # what it is, and a call that measures it


@dataclass(frozen=True)
class Kit:
    """Where and how hard to measure.

    Attributes:
        device: The device.
        tiny: The smallest sizes and few rounds, to try every path.
        effort: Rounds and seconds of a group of calls.
    """

    device: torch.device
    tiny: bool
    effort: Effort

    def times(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Median milliseconds of each call, all in turns."""
        return {f"{name}_ms": round(t.ms.median, 4) for name, t in interleave(calls, self.effort).items()}

    @property
    def backend(self) -> str:
        """What compiles; tiny: nothing generates code."""
        return "eager" if self.tiny else "inductor"

    def compiled(self, model: nn.Module, *, graphs: bool = False) -> nn.Module:
        """Compiles a model; with ``graphs`` into CUDA graphs, which replay its launches."""
        mode = {"mode": "reduce-overhead"} if graphs and not self.tiny else {}
        return torch.compile(model, backend=self.backend, **mode)  # type: ignore[return-value]

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers on the device, the same each time."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device, dtype)


def laws(kit: Kit) -> Iterator[Case]:
    """Laws of every strategy and backend, repeatability in deterministic mode, and host synchronisation."""
    chosen = {name: kind() for name, kind in registry().items() if not kind.learns}
    for name, select in chosen.items():
        for law in DEVICE_LAWS:
            yield f"{name} {law.__name__}", lambda s=select, law=law: law(s, kit.device) or {"ok": True}
        yield f"{name} repeats", lambda s=select: repeats(s, kit.device)
        yield f"{name} synchronises", lambda s=select: synchronises(s, kit.device)
    for name, backend in tg.backends().items():
        if backend.available and name != "torch-scatter":
            yield f"{name} neighbours", lambda n=name: connects_alike(n, kit.device) or {"ok": True}


def _step(select: Any, device: torch.device) -> Callable[[], Tensor]:
    """Choosing and reducing, on tokens that lie on the device."""
    x = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)).to(device)
    tokens, rows = make_tokens(x, (8, 8)), x.flatten(0, 1)
    return lambda: select(tokens, select.own_budget or 36).reduce(rows)[0]


def repeats(select: Any, device: torch.device) -> dict[str, Any]:
    """With deterministic algorithms a second run gives the same rows, bit for bit."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        step = _step(select, device)
        first, second = step(), step()
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(first, second), "other rows in a second run"
    return {"ok": True}


def synchronises(select: Any, device: torch.device) -> dict[str, Any]:
    """Says whether choosing and reducing wait for the device; thresholds and per-image budgets have to."""
    step = _step(select, device)
    step()  # builds tables, whose way to the device waits
    try:
        with no_sync(device):
            step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return {"ok": True, "waits": True}
    return {"ok": True, "waits": False}


@contextmanager
def no_sync(device: torch.device) -> Iterator[None]:
    """Makes every host synchronisation of CUDA an error; nothing elsewhere."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def neighbours(kit: Kit) -> Iterator[Case]:
    """kNN by each backend, k = 8."""
    sizes = [(16, 8)] if kit.tiny else [(n, c) for n in (196, 1024, 4096, 16384) for c in (64, 384, 1024)]
    names = [n for n, b in tg.backends().items() if b.available and n not in ("torch-scatter",)]
    for tokens, channels in sizes:

        def case(n: int = tokens, c: int = channels) -> dict[str, Any]:
            x = kit.randn(1, n, c)
            calls = {name: lambda name=name: tg.knn_graph(x, 8, backend=name) for name in names}
            return kit.times(calls) | {"peak_mib": _mib(calls["torch"], kit.device)}

        yield f"{tokens} x {channels}", case


def merging(kit: Kit) -> Iterator[Case]:
    """Each stage of each method, as graph operations and dense."""
    for shape in [(2, 16, 8)] if kit.tiny else [(32, 196, 384), (8, 1024, 768), (1, 4096, 768)]:
        problem = Problem.random(shape, kit.device)
        for each in cases(problem):
            calls = {" ".join(form).strip(): call for form, call in each.forms.items()}
            yield f"{each.method} {each.stage} {shape}", lambda calls=calls: kit.times(calls)


def models(kit: Kit) -> Iterator[Case]:
    """Whole models, plain, attached and ideal, by batch size; compiled, which takes minutes, at one of them.

    Compiled as a whole, and ToMe's also block by block (:func:`tokengraph.compile_blocks`); ToMe and TopK into CUDA
    graphs too, for which fixed budgets read no value.
    """
    names = ["tiny"] if kit.tiny else ["deit_small_patch16_224", "vit_large_patch16_224"]
    settings = {"tome": ("tome", 0.93), "topk": (tg.TopK(), 0.7), "gtp": (tg.GTP(), 0.95), "dpc-knn": ("dpc-knn", 0.5)}
    for name in names:
        model = (tiny_vit() if kit.tiny else timm.create_model(name)).eval().to(kit.device)
        side, depth = (32, 3) if kit.tiny else (224, len(model.blocks))  # type: ignore[arg-type]
        for batch in (1,) if kit.tiny else (1, 32, 256):
            images = kit.randn(batch, 3, side, side)
            for dtype in (torch.float32, torch.bfloat16):
                for setting, (select, share) in settings.items():
                    one_cut = setting in ("topk", "dpc-knn")
                    schedule = {depth // 3: share} if one_cut else tg.schedule.ratio(share)
                    one = setting == "tome" if kit.tiny else batch == 32
                    ways = ["eager", *["compiled"] * (one and dtype == torch.bfloat16)]
                    ways += ["blocks"] * (setting == "tome" and "compiled" in ways)
                    few = batch < 256 and dtype == torch.bfloat16
                    ways += ["graphs"] * (few and setting in ("tome", "topk"))
                    for how in ways:
                        label = f"{name} B={batch} {str(dtype)[6:]} {setting} {how}"
                        given = model.to(dtype), images.to(dtype), select, schedule, how
                        yield label, lambda given=given: _model(kit, *given)


def _model(kit: Kit, model: nn.Module, x: Tensor, select: Any, schedule: Any, how: str) -> dict[str, Any]:
    """Times a setting; ``how``: eager, compiled as a whole, into CUDA graphs, or by blocks, which the ideal is not.

    ``graph_skips`` counts graphs that torch ran without CUDA graphs, of all three models.
    """
    with ExitStack() as stack, torch.inference_mode():
        plain, ours, theirs = (copy.deepcopy(model) for _ in range(3))
        handle = stack.enter_context(tg.attach(ours, select, schedule))
        ours(x)
        open_maps = handle.select.needs_map
        counts = handle.trace.counts_worked
        stack.enter_context(ideal(theirs, counts, handle.select.placement, open_maps=open_maps))
        torch.compiler.reset()
        run = {"plain": plain, "attached": ours, "ideal": theirs}
        counters["inductor"].clear()
        if how in ("compiled", "graphs"):
            run = {name: kit.compiled(m, graphs=how == "graphs") for name, m in run.items()}
        if how == "blocks":
            tg.compile_blocks(handle, backend=kit.backend)
            for block in plain.blocks:  # type: ignore[union-attr]
                block.compile(backend=kit.backend, dynamic=True)
        times = kit.times({name: lambda m=m: m(x) for name, m in run.items()})
        found = times | {"counts": counts, "peak_mib": _mib(lambda: run["attached"](x), kit.device)}
        return found | ({"graph_skips": counters["inductor"]["cudagraph_skips"]} if how == "graphs" else {})


def ragged(kit: Kit) -> Iterator[Case]:
    """Images that keep different numbers of tokens: padded, in groups, packed by a nested tensor, and one by one."""
    side, patch, batches = (4, 8, (3,)) if kit.tiny else (14, 16, (32, 128))
    layers = {"layers": (1, 2)} if kit.tiny else {}
    settings = {"dynamicvit": tg.DynamicViT(threshold=0.5, **layers), "mpm": tg.MPM(**layers)}
    model = (tiny_vit() if kit.tiny else timm.create_model("deit_small_patch16_224")).eval().to(kit.device)
    for batch in batches:
        images, noise = (t.to(kit.device) for t in images_of(batch, side, patch))
        for dtype in (torch.float32, torch.bfloat16):
            for name, select in settings.items():
                given = copy.deepcopy(model), select, images, noise, kit.effort
                yield f"{name} B={batch} {str(dtype)[6:]}", lambda given=given, dtype=dtype: measure(*given, dtype)


def biases(kit: Kit) -> Iterator[Case]:
    """Attention without a bias (the flash kernel), with a mask, and with the bias folded into the heads."""
    shapes = [(1, 2, 9, 16)] if kit.tiny else [(32, 6, 197, 64), (32, 16, 577, 64), (8, 16, 2049, 64)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            calls = kernels(shape, dtype, str(kit.device))
            yield f"{shape} {str(dtype)[6:]}", lambda calls=calls: kit.times(calls)


def prefill(kit: Kit) -> Iterator[Case]:
    """Prefill of a decoder over image tokens and text: all image tokens, and a quarter chosen by a strategy."""
    layers, width, heads, side, text = (1, 32, 2, 4, 4) if kit.tiny else (16, 2048, 16, 24, 64)
    dtype = torch.float32 if kit.tiny else torch.bfloat16
    with torch.device(kit.device):
        decoder = Decoder(layers, width, heads).to(dtype).eval()
    keep = side * side // 4
    for batch in (1,) if kit.tiny else (1, 8):
        image, words = (kit.randn(batch, n, width, dtype=dtype) for n in (side * side, text))
        for name, select in {"grid-pool": tg.GridPool(), "ailurus": tg.AiluRus(), "tome": tg.ToMe()}.items():

            def fewer(select: Any = select, image: Tensor = image) -> Tensor:
                rest = max(keep, select.fewest(side * side))
                chosen = select(make_tokens(image, (side, side)), rest)
                return chosen.reduce(image.flatten(0, 1))[0].view(image.size(0), rest, width)

            def case(fewer: Any = fewer, image: Tensor = image, words: Tensor = words) -> dict[str, Any]:
                with torch.inference_mode():
                    return kit.times(
                        {
                            "all": lambda: decoder(torch.cat([image, words], dim=1)),
                            "fewer": lambda: decoder(torch.cat([fewer(), words], dim=1)),
                            "choosing": fewer,
                        }
                    )

            yield f"B={batch} {name}", case


def launching(kit: Kit) -> Iterator[Case]:
    """Operations that each strategy adds, on this device."""
    model = timm.create_model("deit_small_patch16_224").eval().to(kit.device)
    images = kit.randn(1 if kit.tiny else 8, 3, 224, 224)
    for each in COUNTED[:2] if kit.tiny else COUNTED:
        yield each.name, lambda each=each: {k: v for k, v in count(each, model, images).items() if k != "strategy"}


def _mib(call: Callable[[], object], device: torch.device) -> float:
    return round(peak_memory(call, device) / 2**20, 1)


PARTS: dict[str, Callable[[Kit], Iterator[Case]]] = {
    "laws": laws,
    "launches": launching,
    "neighbours": neighbours,
    "merging": merging,
    "size bias": biases,
    "prefill": prefill,
    "ragged": ragged,
    "models": models,
}
