"""What a benchmark is made of: paired times, counted operations, the machine's own rate, peak memory, growth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gtl_lightning.resources import PeakMemory

Run = Callable[[], object]
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Times:
    """Seconds of several calls of the same function, in the order they were made.

    Attributes:
        seconds: by the clock.
        processor: of this process on all its threads; what others take of the machine is not in it.
    """

    seconds: tuple[float, ...]
    processor: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles over the median: the relative scatter of one call."""
        low, high = quartiles(self.seconds)
        return (high - low) / 2 / self.median

    def over(self, other: Times) -> tuple[float, float, float]:
        """Median and quartiles of the ratios of calls made in the same round."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        return median(ratios), *quartiles(ratios)

    def processor_over(self, other: Times) -> float:
        """Median of the ratios of processor time."""
        return median(mine / theirs for mine, theirs in zip(self.processor, other.processor, strict=True))


def paired(runs: Mapping[str, Run], rounds: int, device: torch.device, budget: float = math.inf) -> dict[str, Times]:
    """Time every function once a round, A B A B, after one call of each that is not timed.

    What disturbs the machine for longer than a call disturbs all of them alike; compare with `Times.over`.

    Args:
        runs: name -> what to call.
        rounds: calls of each.
        device: whose queue is waited for.
        budget: seconds after which there are no more rounds than `FEWEST_ROUNDS`.
    """
    for run in runs.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.perf_counter() - start > budget:
            break
        for name, run in runs.items():
            times[name].append(timed(run, device))
    return {name: Times(*map(tuple, zip(*values, strict=True))) for name, values in times.items()}


def timed(run: Run, device: torch.device) -> tuple[float, float]:
    """Seconds of one call by the clock and of the processor, the device's queue emptied before and after."""
    _wait(device)
    start, busy = time.perf_counter(), time.process_time()
    run()
    _wait(device)
    return time.perf_counter() - start, time.process_time() - busy


def flops(run: Run) -> int:
    """Floating-point operations of the matrix products in one call, as torch counts them (2 per multiply-add)."""
    # On a CPU the counter knows attention only as the two products it is made of.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def matrix_product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], torch.Tensor]:
    """A square matrix product of that size, the yardstick of `share_of_rate`."""
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    return lambda: a @ b


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int, rounds: int) -> float:
    """FLOP/s of `matrix_product`: the median of `rounds`."""
    times = paired({"product": matrix_product(device, dtype, size)}, rounds, device)["product"]
    return 2 * size**3 / times.median


def share_of_rate(counted: float, times: Times, size: int, product: Times) -> float:
    """What calls of `counted` operations reach of the rate of a product of `size` timed in the same rounds."""
    return counted / (2 * size**3) / times.over(product)[0]


def peak_memory(run: Run, device: torch.device) -> int | None:
    """Bytes by which one call raised the memory in use at its peak; None where the system does not tell."""
    peak = PeakMemory(device)
    run()
    return peak.rise()


def growth(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The exponent e of y ~ x^e, by least squares of the logarithms; NaN with fewer than two different x."""
    if len(set(xs)) < 2:
        return math.nan
    return linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile, linear between neighbours; of one value that value."""
    first, third = np.quantile(values, (0.25, 0.75)).tolist()
    return first, third


def hardware(device: torch.device) -> str:
    """The processor, or the GPU, and how many threads torch uses, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else 'CPU'}, {threads} thread{'s' * (threads > 1)}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
