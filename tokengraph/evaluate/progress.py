"""Shows the progress of a long run: a bar with tqdm, plain lines without it."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from types import TracebackType
from typing import Any

EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts steps of a long run, on standard error.

    Args:
        total: Total number of steps.
        what: A word or two for the work.
        show: False shows nothing.
    """

    def __init__(self, total: int, what: str, show: bool = True) -> None:
        self.total, self.what, self.done, self._last = total, what, 0, time.monotonic()
        self.show, self._bar = show, None
        if show and sys.stderr.isatty() and find_spec("tqdm") is not None:
            from tokengraph.optional import optional

            self._bar = optional("tqdm").tqdm(total=total, desc=what, unit="run", dynamic_ncols=True, leave=False)

    def step(self, count: int = 1, note: str = "") -> None:
        """Counts ``count`` finished steps; ``note`` names the current one."""
        self.done += count
        bar: Any = self._bar
        if bar is not None:
            bar.set_postfix_str(note, refresh=False)
            bar.update(count)
        elif self.show and (time.monotonic() - self._last > EVERY or self.done == self.total):
            self._last = time.monotonic()
            print(
                f"{self.what}: {self.done} of {self.total}{f' ({note})' if note else ''}", file=sys.stderr, flush=True
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()  # type: ignore[attr-defined]
