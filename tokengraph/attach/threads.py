"""Checks that only one thread runs an attached model."""

from __future__ import annotations

from threading import get_ident
from typing import NoReturn

import torch


class OneThread:
    """Base of records that only one thread at a time may write.

    Attributes:
        thread: The running thread; 0 if unknown.
    """

    thread: int = 0

    def take_thread(self) -> None:
        """Notes that a run begins in this thread."""
        if not torch.compiler.is_compiling():
            self.thread = get_ident()

    def check_thread(self) -> None:
        """Raises RuntimeError if another thread has begun a run since."""
        if not torch.compiler.is_compiling() and self.thread not in (0, get_ident()):
            raise_two_threads()


def raise_two_threads() -> NoReturn:
    """Raises the error for two threads in one attached model."""
    raise RuntimeError("Expected one thread at a time (got two in one attached model). Give each a deepcopy.")
