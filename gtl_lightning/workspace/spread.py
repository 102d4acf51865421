"""Many small jobs side by side: one process for each core, for networks too small to use two."""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any, TypeVar

from gtl_lightning.resources import keep_freed_memory
from gtl_lightning.workspace.progress import progress_bar
from gtl_lightning.workspace.watched import Inputs, noted_inputs, take_over

Result = TypeVar("Result")


def spread(
    what: str,
    job: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    done: Callable[[Result], None] | None = None,
) -> list[Result]:
    """The job's result for every tuple of arguments, in their order; put the longest jobs first.

    `done` is called here with each result as it comes, while other jobs go on.

    Processes have one thread each, so that results do not depend on the number of cores. They end with the one that
    started them, even when that is killed. The job and what it takes and gives must be picklable.

    Raises:
        Exception: the first failure, as it was raised in its process; jobs that have not begun are given up.
        KeyboardInterrupt: Ctrl-C.
    """
    workers = min(len(arguments), _cores())
    context = mp.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(noted_inputs(),))
    futures = [pool.submit(job, *some) for some in arguments]
    try:
        with progress_bar(what) as progress:
            for count, future in enumerate(as_completed(futures), start=1):
                result = future.result()
                if done is not None:
                    done(result)
                progress(count, len(futures))
    finally:
        # After a failure or Ctrl-C nobody waits for the jobs under way: their fits go on from their last check.
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
    return [future.result() for future in futures]


def _cores() -> int:
    """Those this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(inputs: Inputs | None) -> None:
    import torch

    take_over(inputs)
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parent = mp.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A killed parent cannot say so; its children would hold the locks of their fits."""
    wait([sentinel])
    os._exit(1)
