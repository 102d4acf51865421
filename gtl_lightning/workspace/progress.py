"""Progress of long work: a bar with an estimate on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gtl_lightning.workspace.paths import log

if TYPE_CHECKING:
    from gtl_lightning.core.trace import Tell

LINE_EVERY_SECONDS = 15.0


@contextmanager
def progress_bar(what: str) -> Iterator[Tell]:
    """Yield a callback (done, total) that shows how far `what` is and how long it will still take."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, what: str) -> None:
        self._what = what
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < LINE_EVERY_SECONDS or not done:
            return
        self._last = now
        remaining = (now - self._start) / done * (total - done)
        log.info("%s: %d of %d, about %.0f s left", self._what, done, total, remaining)
