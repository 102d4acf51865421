"""The stages of dvc.yaml as DVC itself expands them: what they are for, what they need, which of them are stale."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from flows.lockfile import damaged_lockfiles, lockfiles
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import CELLS, ROW, Cell

STUDY = ":"  # in the address of a stage of another dvc.yaml than the root's, whose matrix is a grid of its own
ATTEMPTS, PAUSE_SECONDS = 5, 0.3  # at a dvc.lock that is being written
DATA_SUFFIX = ".dvc"  # of the addresses of data that DVC stores and no stage makes


@dataclass(frozen=True)
class Stage:
    """One stage, a matrix stage's every point being one; or data that DVC stores.

    Attributes:
        address: as DVC names it, `baseline@finetune-0.05-0` or `data.dvc`; a study's, `FOLDER/dvc.yaml:markov-cells@0`.
        cell: the point of the grid that it belongs to; None for what all of them share.
        needs: addresses of the stages whose outputs it reads.
        gathers: those of `needs` whose outputs it only collects, by depending on their folder; it can do without one.
        outs: paths that it writes, relative to the repository.
    """

    address: str
    cell: Cell | None = None
    needs: tuple[str, ...] = ()
    gathers: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()

    @property
    def is_data(self) -> bool:
        """Whether it is stored data, fetched and never computed."""
        return self.address.endswith(DATA_SUFFIX)

    @property
    def label(self) -> str:
        """Name for people: stage, method, fraction, seed."""
        name = self.address.partition("@")[0]
        if self.cell is None:
            return self.address.rpartition(STUDY)[2]
        method = "" if name.endswith(self.cell.method) else self.cell.method
        share = "" if self.cell.fraction is None else f"{100 * self.cell.fraction:g} %"
        return " ".join(part for part in (name, method, share, f"seed {self.cell.seed}") if part)

    @property
    def row(self) -> str | None:
        """The evaluated cell's row.json; None for stages that evaluate no cell."""
        cells = [out for out in self.outs if PurePosixPath(out).parent == PurePosixPath(CELLS)]
        return f"{cells[0]}/{ROW}" if cells else None


class Grid:
    """Stages in an order in which each follows what it needs.

    Args:
        stages: in any order.
        stale: addresses of those whose outputs are missing or whose inputs have changed.
    """

    def __init__(self, stages: Iterable[Stage], stale: Collection[str] = ()) -> None:
        known = {stage.address: stage for stage in stages}
        order = TopologicalSorter({address: stage.needs for address, stage in known.items()}).static_order()
        self.stages: dict[str, Stage] = {address: known[address] for address in order}
        self.stale: frozenset[str] = frozenset(stale)
        dirty: set[str] = set()
        for address, stage in self.stages.items():
            if address in stale or dirty.intersection(stage.needs):
                dirty.add(address)
        self.dirty: frozenset[str] = frozenset(dirty)

    def with_upstream(self, targets: Collection[str]) -> list[Stage]:
        """The targets and all they need, in order.

        Raises:
            UserError: a target that dvc.yaml does not have.
        """
        for target in targets:
            if target not in self.stages:
                raise UserError(f"dvc.yaml has no stage {target}; `dvc stage list` shows those it has")
        wanted = set(targets)
        for address in reversed(self.stages):
            if address in wanted:
                wanted.update(self.stages[address].needs)
        return [stage for address, stage in self.stages.items() if address in wanted]

    def main(self) -> list[str]:
        """Addresses of the stages of the root's dvc.yaml and of stored data: what `dvc repro` runs, no study."""
        return [address for address in self.stages if STUDY not in address]

    def evaluations(
        self,
        *,
        methods: Collection[str] | None = None,
        fractions: Collection[float] | None = None,
        seeds: Collection[int] | None = None,
    ) -> list[str]:
        """Addresses of the stages that evaluate a cell; None takes all. The untouched source is always among them."""

        def chosen(cell: Cell) -> bool:
            of_source = cell.fraction is None
            return (
                (seeds is None or cell.seed in seeds)
                and (of_source or methods is None or cell.method in methods)
                and (of_source or fractions is None or cell.fraction in fractions)
            )

        evaluated = [stage for stage in self.stages.values() if stage.row is not None]
        return [stage.address for stage in evaluated if stage.cell is not None and chosen(stage.cell)]

    def gatherers(self) -> list[str]:
        """Addresses of the stages that collect evaluated cells: report and registry."""
        cells = set(self.evaluations())
        return [address for address, stage in self.stages.items() if cells.intersection(stage.gathers)]


def read_grid(params: Params, root: Path) -> Grid:
    """Ask DVC for the graph of the repository at `root` and for what is stale in it.

    It takes none of DVC's locks and writes nothing, so that it can be asked while stages run: what they are just
    writing counts as stale.

    Raises:
        UserError: no DVC repository there, or a dvc.yaml or dvc.lock that DVC refuses.
    """
    from dvc.exceptions import DvcException

    attempt = 0
    while True:
        attempt += 1
        seen = _stamp(root)
        try:
            stages, stale = _read(params, root)
        except DvcException as error:
            damaged = damaged_lockfiles(root)
            if attempt < ATTEMPTS and (_stamp(root) != seen or damaged):
                time.sleep(PAUSE_SECONDS)
                continue
            if damaged:
                raise UserError(f"{damaged[0]} is half-written; `gtl reconcile` moves it aside") from error
            reason = " ".join(str(error).split())
            raise UserError(f"DVC cannot read the pipeline in {root}: {reason}; `dvc status` shows more") from error
        if attempt == ATTEMPTS or _stamp(root) == seen:
            return Grid(stages, stale)


def _read(params: Params, root: Path) -> tuple[list[Stage], set[str]]:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph: Any = repo.index.graph
        points, left_out = _points(params), _left_out(params)
        wanted = [stage for stage in graph if stage.addressing.partition("@")[2] not in left_out]
        stages = [
            _stage(stage, [near for near in graph.successors(stage) if near in wanted], points) for stage in wanted
        ]
        stale = {stage.addressing for stage in wanted if not stage.is_data_source and _is_stale(stage)}
    # Data that is there is taken as it is, as `dvc repro` does; only missing data has to be fetched.
    stale |= {
        stage.address for stage in stages if stage.is_data and not all((root / out).exists() for out in stage.outs)
    }
    return stages, stale


def _is_stale(stage: Any) -> bool:
    """What `dvc status` says of a stage; DVC's own function notes what it reads, and fails beside a writer."""
    try:
        return (
            (not stage.frozen and any(dep.status() for dep in stage.deps))
            or any(out.status() for out in stage.outs)
            or stage.is_callback
            or stage.always_changed
            or stage.changed_stage()
        )
    except (FileNotFoundError, NotADirectoryError):  # removed while it was read: a stage is about to write it
        return True


def _stamp(root: Path) -> list[tuple[int, int]]:
    """Changes whenever a dvc.lock is written, which DVC does in place: what was read in between may be half of it."""
    found = []
    for path in lockfiles(root):
        with suppress(FileNotFoundError):  # moved aside meanwhile
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size))
    return found


def _stage(stage: Any, needs: list[Any], points: Mapping[str, Cell]) -> Stage:
    def paths(items: Iterable[Any]) -> list[PurePosixPath]:
        return [PurePosixPath(item.def_path) for item in items]

    read = set(paths(stage.deps))
    gathers = [near.addressing for near in needs if not any(_reads(read, out) for out in paths(near.outs))]
    return Stage(
        address=stage.addressing,
        cell=None if STUDY in stage.addressing else points.get(stage.addressing.partition("@")[2]),
        needs=tuple(near.addressing for near in needs),
        gathers=tuple(gathers),
        outs=tuple(str(path) for path in paths(stage.outs)),
    )


def _reads(read: set[PurePosixPath], out: PurePosixPath) -> bool:
    """Whether a dependency is this output or lies in it, and is not merely a folder around it."""
    return any(path == out or out in path.parents for path in read)


def _left_out(params: Params) -> frozenset[str]:
    """DVC's keys of the points that its matrix has and `sweep.repeats` leaves out; `dvc repro` runs them too."""
    sweep = params.sweep
    points = set(product(sweep.fractions, sweep.seeds)).difference(sweep.points)
    names = [Cell(method, *point).name for method in sweep.methods for point in points]
    return frozenset([*names, *(f"{fraction}-{seed}" for fraction, seed in points)])


def _points(params: Params) -> dict[str, Cell]:
    """DVC's key of a matrix point -> the cell. A key joins the values, and so does Cell.name."""
    sweep = params.sweep
    grid = sweep.points
    cells = [Cell(method, *point) for method in sweep.methods for point in grid]
    return (
        {cell.name: cell for cell in cells}
        | {f"{fraction}-{seed}": Cell("classifier", fraction, seed) for fraction, seed in grid}
        | {str(seed): Cell("source", None, seed) for seed in sweep.seeds}
    )
