"""A run belongs to one thread, in every kind of attached model."""

from __future__ import annotations

from threading import get_ident
from typing import NoReturn

import torch


class OneThread:
    """Something that the run of a model writes, one thread at a time.

    Attributes:
        thread: The thread that runs; 0: not known.
    """

    thread: int = 0

    def take_thread(self) -> None:
        """A run begins in this thread."""
        if not torch.compiler.is_compiling():
            self.thread = get_ident()

    def check_thread(self) -> None:
        """Raises RuntimeError if a run began in another thread since this one's."""
        if not torch.compiler.is_compiling() and self.thread not in (0, get_ident()):
            raise_two_threads()


def raise_two_threads() -> NoReturn:
    """The error of two threads in one attached model."""
    raise RuntimeError("Expected one thread at a time (got two in one attached model). Give each a deepcopy.")
