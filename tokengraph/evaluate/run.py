"""Runs every setting on every chunk of a set, and stores the outcome of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tokengraph.evaluate.chunks import Chunk, read_chunk
from tokengraph.evaluate.compare import joined, measures
from tokengraph.evaluate.dense import overlaps, predicted
from tokengraph.evaluate.forms import Forms
from tokengraph.evaluate.images import Images
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.patch_probe import Decode, sums
from tokengraph.evaluate.progress import Progress
from tokengraph.evaluate.ranks import Ranks
from tokengraph.evaluate.read import Outputs, Reader
from tokengraph.evaluate.settings import Setting
from tokengraph.evaluate.store import Store

DENSE = Setting()
Found = dict[str, np.ndarray]


@dataclass
class Runner:
    """Runs an evaluation's settings and stores their outcomes.

    Args:
        forms: The models.
        store: The store for outcomes.
        options: Settings of the run.
        ranks: The division of chunks among processes.
        decode: Maps patch features to pixel logits; ``None`` if the model does it, or there are no masks.
        features: True to store pooled features, for a probe.
        fitting: Number of mask classes, to store the sums for a probe on patches; 0 stores outcomes instead.
        probes: For masks, the fitted probe on patches of each setting.
    """

    forms: Forms
    store: Store
    options: Options
    ranks: Ranks
    decode: Callable[[Tensor], Tensor] | None = None
    features: bool = False
    fitting: int = 0
    probes: dict[str, Decode] = field(default_factory=dict)

    def run(self, part: str, images: Images, settings: Sequence[Setting]) -> None:
        """Runs every chunk without stored outcomes; ``part`` names the set (``"data"`` or ``"train"``).

        Raises:
            Exception: Any error of the dense model. Errors of a setting are stored, and the other settings run.
        """
        size = self.options.chunk
        mine = [c for c in range(-(-len(images) // size)) if self.ranks.mine(c)]
        with Progress(len(mine) * (1 + len(settings)), part, self.options.progress and self.ranks.first) as progress:
            for number in mine:
                self._chunk(part, images, settings, number, progress)

    def _chunk(self, part: str, images: Images, settings: Sequence[Setting], number: int, progress: Progress) -> None:
        todo = [s for s in settings if not self.store.has(part, s.key, number) and not self.store.reason(part, s.key)]
        progress.step(len(settings) - len(todo))
        if not todo and self.store.has(part, DENSE.key, number):
            progress.step()
            return
        start = number * self.options.chunk
        stop = min(start + self.options.chunk, len(images))
        config = self.forms.config()
        chunk = read_chunk(images, start, stop, config, self.options.workers)
        targets = chunk.targets(config) if images.has_masks and chunk.index else None
        with self.forms.open(DENSE) as reader:
            found, dense = self._outcome(reader, chunk, DENSE, targets, None)
        if not self.store.has(part, DENSE.key, number):
            bad = {
                "bad": np.array([i for i, _ in chunk.bad], dtype=np.int64),
                "why": np.array([r for _, r in chunk.bad], dtype=str),
            }
            self.store.save(part, DENSE.key, number, {**found, **bad})
        progress.step(note="dense")
        for setting in todo:
            try:
                with self.forms.open(setting) as reader:
                    self.store.save(part, setting.key, number, self._outcome(reader, chunk, setting, targets, dense)[0])
            except Exception as error:  # a failed setting is a row of the report; the run continues
                lines = [line for line in str(error).splitlines() if line.strip()]
                self.store.fail(part, setting.key, f"{type(error).__name__}: {lines[0] if lines else ''}"[:300])
            progress.step(note=setting.name)

    def _outcome(
        self, reader: Reader, chunk: Chunk, setting: Setting, targets: Tensor | None, dense: list[Outputs] | None
    ) -> tuple[Found, list[Outputs]]:
        """Returns the outcomes of a chunk's images under a setting, and the outputs if it is the dense model."""
        if not chunk.index:
            return {"index": np.zeros(0, dtype=np.int64)}, []
        parts: list[Found] = []
        kept: list[Outputs] = []
        inputs = chunk.inputs(self.forms.config(setting))
        for number, (place, batch) in enumerate(chunk.batches(inputs, self.options.batch_size)):
            outputs = self._read(reader, batch)
            whole = outputs if dense is None else dense[number]
            if dense is None:
                kept.append(outputs)
            if self.fitting and targets is not None:
                parts.append(self._sums(outputs, targets[place]))
                continue
            found = measures(whole, outputs)
            if targets is not None:
                found |= self._overlaps(outputs, targets[place], setting)
            if self.features and outputs.pooled is not None:
                found["pooled"] = outputs.pooled.float().cpu().numpy()
            if outputs.counts is not None:
                found["counts"] = outputs.counts.T.numpy()
            parts.append(found)
        total = {k: v.sum(0, keepdims=True) for k, v in joined(parts).items()} if self.fitting else joined(parts)
        return {**total, "index": np.array(chunk.index, dtype=np.int64)}, kept

    def _read(self, reader: Reader, batch: Tensor) -> Outputs:
        device, amp = self.forms.device, self.options.amp
        cast = nullcontext() if amp is None else torch.autocast(device.type, dtype=getattr(torch, amp))
        with torch.inference_mode(False), torch.no_grad(), cast:
            return reader(batch.to(device))

    def _sums(self, outputs: Outputs, targets: Tensor) -> Found:
        if outputs.patches is None:
            raise ValueError("Expected a model whose patches are known, for a probe on them (got none).")
        return sums(outputs.patches, targets.to(outputs.patches.device), self.fitting)

    def _overlaps(self, outputs: Outputs, targets: Tensor, setting: Setting) -> Found:
        if not self.probes:
            return self._overlap(self._maps(outputs, self.decode), targets)
        if setting.key not in self.probes:
            raise ValueError("Expected a probe that was fitted for this setting (got none: it failed on train images).")
        found: Found = {}
        ours, own = self.probes[DENSE.key], self.probes[setting.key]
        if setting.model is None:  # probes fit the patches of this model only
            found = self._overlap(self._maps(outputs, ours), targets)
        again = self._overlap(self._maps(outputs, own), targets)
        return found | {f"refit_{key}": value for key, value in again.items()}

    def _maps(self, outputs: Outputs, decode: Decode | None) -> Tensor:
        """Returns the logits of each pixel."""
        logits = outputs.logits if outputs.logits is not None and outputs.logits.dim() == 4 else None
        if decode is not None:
            if outputs.patches is None:
                raise ValueError("Expected a model whose patches are known, for decode (got none).")
            with torch.no_grad():
                logits = decode(outputs.patches)
        if logits is None:
            raise ValueError(
                "Expected class maps for images with masks (got a model without). Give decode=, a head on patch maps, "
                "a model that returns [B, K, H, W], or probe='linear' with train images (--probe linear --train PATH)."
            )
        return logits

    def _overlap(self, logits: Tensor, targets: Tensor) -> Found:
        targets = targets.to(logits.device)
        return overlaps(predicted(logits, targets.size(-1)), targets, max(2, logits.size(1)))
