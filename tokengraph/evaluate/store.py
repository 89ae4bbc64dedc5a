"""Stores predictions on disk, one file a chunk; writes are atomic, so an interruption loses at most one chunk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1


class Store:
    """A folder with the outcome of every setting on every chunk.

    Args:
        folder: The folder, created if necessary.
        facts: The run's model, images and preprocessing. A folder with other facts raises.

    Raises:
        ValueError: If the folder has predictions of another run, or of another version of this format.
    """

    def __init__(self, folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"Expected a folder to write to (got {str(folder)!r}: {error.strerror}).") from error
        ours = {"format": FORMAT, **{k: str(v) for k, v in facts.items()}}
        file = self.folder / "run.json"
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            write_text(file, json.dumps(ours, indent=1))
            return
        except ValueError as error:
            raise ValueError(
                f"Expected {str(file)!r} to be a run's file (got other text). Give a new folder."
            ) from error
        other = [key for key in ours if theirs.get(key) != ours[key]]
        if other:
            told = "; ".join(f"{key}: {theirs.get(key)!r} there, {ours[key]!r} now" for key in other)
            raise ValueError(
                f"Expected a folder of the same run to resume (got {str(folder)!r} of another: {told}). "
                "Give a new folder."
            )

    def _file(self, part: str, setting: str, chunk: int) -> Path:
        return self.folder / "predictions" / part / slug(setting) / f"{chunk:06d}.npz"

    def has(self, part: str, setting: str, chunk: int) -> bool:
        """Returns whether a setting's outcome on a chunk is stored."""
        file = self._file(part, setting, chunk)
        return file.is_file() and file.stat().st_size > 0  # a machine that lost power may leave an empty file

    def save(self, part: str, setting: str, chunk: int, found: Mapping[str, np.ndarray]) -> None:
        """Stores an outcome."""
        file = self._file(part, setting, chunk)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        with open(temporary, "wb") as stream:
            arrays: dict[str, Any] = dict(found)
            np.savez_compressed(stream, **arrays)
        os.replace(temporary, file)

    def load(self, part: str, setting: str, chunk: int) -> dict[str, np.ndarray]:
        """Loads a stored outcome."""
        with np.load(self._file(part, setting, chunk), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    def fail(self, part: str, setting: str, reason: str | None) -> None:
        """Stores the error of a failed setting; ``None`` deletes it for a retry."""
        file = self._file(part, setting, 0).with_name("failed.txt")
        if reason is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, reason)

    def reason(self, part: str, setting: str) -> str:
        """Returns the error of a failed setting; empty if it did not fail."""
        file = self._file(part, setting, 0).with_name("failed.txt")
        try:
            return file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""


def slug(name: str) -> str:
    """Returns a readable file name, different for different settings."""
    plain = re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-")[:60]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_text(file: Path, text: str) -> None:
    """Writes a file atomically."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def fingerprint(stamps: list[str]) -> str:
    """Returns a checksum of the images' stamps, in order."""
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]
