"""What a process takes of the machine: threads, memory that it keeps, and the most that it held."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gtl_lightning.errors import UserError

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names for what `mallopt` sets."""
_LARGEST = 32 << 20
"""Bytes, the most that glibc says it takes: larger tensors still come from the system and go back to it."""
_KEPT = 1 << 30
"""Bytes of freed memory that a process keeps."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CPUINFO = Path("/proc/cpuinfo")
_RESET_PEAK = "5"  # what the kernel takes as: set the peak of the resident memory to its present value

LEAST_ADDRESS_SPACE = 3 << 29
"""Bytes. Training the smallest networks, tracker included, took 1.3 GB (Linux, one thread); without room for threads
and for growth it dies anywhere."""


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step. Other C libraries are left alone.

    Measured on a training step of a 1.3M denoiser (64 texts of 48 tokens, one thread of an AMD EPYC, two rounds):
    0.293 s without, 0.235 s with. The gain depends on what is allocated; page faults of single tensors do not show it.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _KEPT)


def has_bf16(kind: str) -> bool:
    """Whether devices of a kind multiply in bf16 themselves; what emulates it takes up to a hundred times as long.

    Measured: a product of 256 rows of 768 by 768 in bf16, 110 times fp32's time on a Zen 3, which has AVX2 alone.
    """
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not _CPUINFO.exists():
        return False
    flags = next((line for line in _CPUINFO.read_text().splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


class PeakMemory:
    """By how much the memory in use rose at its peak since this was made.

    On a GPU torch's own counter; else the resident memory of the process, whose peak Linux lets a process reset.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._before: int | None = None
        if self._device is not None:
            import torch

            self._before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with suppress(OSError, AttributeError):
            # What earlier work freed and the allocator kept would hide what this takes.
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            _RESET.write_text(_RESET_PEAK)
            self._before = _resident("VmRSS")

    def rise(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._device is not None:
            import torch

            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _resident("VmHWM")
        return None if self._before is None or peak is None else max(0, peak - self._before)


def peak_resident() -> int:
    """Bytes of memory that this process had resident at most; 0 where the system does not tell."""
    return _resident("VmHWM") or 0


def _resident(field: str) -> int | None:
    """Bytes."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def limit_threads(count: int | None) -> None:
    """Give numerical libraries that are not loaded yet so many threads; OMP_NUM_THREADS wins, None leaves it to them.

    The number of threads decides in which order sums are taken: equal results want equal numbers.
    """
    if count is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(count))


def check_address_space() -> None:
    """Refuse a process in which torch, Lightning and MLflow do not fit, before any of them is loaded.

    Where an import or a thread finds no room, each library has its own end: an exception, an abort, a crash, or a wait
    for nothing.

    Raises:
        UserError: the limit on the process's address space (`ulimit -v`) is too low.
    """
    if sys.platform == "win32":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise UserError(
            f"this process may use {limit >> 20} MiB of address space, and torch, Lightning and MLflow need "
            f"{LEAST_ADDRESS_SPACE >> 20} MiB; raise the limit (`ulimit -v unlimited`)"
        )
