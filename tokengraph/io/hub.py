"""Whether weights can be fetched: what lies in the hub's cache, and whether a server answers in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch

PATIENCE = 4.0  # seconds that a hub has to answer in; hub clients themselves try for most of a minute


def cached(config: Any) -> str | None:
    """The weights' file on this machine for a pretrained config of timm, if there is one."""
    if config is None:
        return None
    repository = getattr(config, "hf_hub_id", None)
    if repository:
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        for file in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(repository, file)
            if isinstance(found, str):
                return found
    url = getattr(config, "url", None)
    if url:
        file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        return str(file) if file.is_file() else None
    return None


def address(config: Any) -> str | None:
    """Where the weights of a pretrained config of timm would be asked for."""
    if getattr(config, "hf_hub_id", None):
        try:
            from huggingface_hub import constants
        except ImportError:
            return None
        return constants.ENDPOINT
    return getattr(config, "url", None) or None


def reachable(address: str, patience: float = PATIENCE) -> bool:
    """True if a server answers in time, also with an error. Uses proxies; the limit includes the DNS lookup."""
    answers: list[bool] = []

    def ask() -> None:
        """Notes an answer; no answer leaves the list empty."""
        try:
            urlopen(Request(address, method="HEAD"), timeout=patience).close()
            answers.append(True)
        except HTTPError:
            answers.append(True)
        except (OSError, ValueError):
            pass

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(answers)


_ANSWERED: dict[str, bool] = {}  # by address: asked once a process


@contextmanager
def patient_hub() -> Iterator[None]:
    """Lets hub clients look only into their cache where the hub does not answer; they would retry for a minute."""
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    if not before and constants.ENDPOINT not in _ANSWERED:
        _ANSWERED[constants.ENDPOINT] = reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = before or not _ANSWERED[constants.ENDPOINT]
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
