"""The flows. Each reads the one grid, takes typed parameters, and runs what is not up to date: DVC is the cache.

With a server: `prefect deployment run scarcity-sweep/local --watch`. Without one: `gtl sweep`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.grid import Grid, Stage, read_grid
from flows.group import GRACE_SECONDS, is_stopped, stop_all
from flows.lockfile import BUSY, damaged_lockfiles, mend_lockfile, mend_rwlock, wait_until_free
from flows.parameters import (
    POOL_DEPLOYMENTS,
    Fraction,
    Fractions,
    Methods,
    Minutes,
    Parallel,
    Seeds,
    Wanted,
    Where,
    grid_of,
    run_name,
    settle,
    shows,
)
from flows.pinned import Pinned, outdated
from flows.reconcile import note_process
from flows.remote import (
    check_pool,
    check_remote,
    check_server,
    logged_in,
    server_url,
    start_own_server,
    stop_own_server,
)
from flows.remote import version as checkout_version
from flows.runner import Limits, Outcome, count_outcomes, run_stage, run_stages, unmade
from flows.stage import StageError, push, stage_environment
from flows.tables import Board
from flows.tracked import TrackedSweep
from flows.warm import standing_by
from gtl_lightning.errors import UserError
from gtl_lightning.studies.markov.params import PARAMS as STUDY_PARAMS
from gtl_lightning.workspace.addresses import resolve_uri
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import study
from gtl_lightning.workspace.settings import RatioMethod
from gtl_lightning.workspace.tracking import Study

INTERRUPTED = 130
MARKOV_REPORT = f"{STUDY_PARAMS.with_name('dvc.yaml').as_posix()}:markov-report"
# Threads that wait for stages, as many as `parallel` may allow; `parallel` says how many stages run.
THREADS: Any = ThreadPoolTaskRunner(max_workers=64)  # Any: the decorator is typed for one class of futures only


def _name() -> str:
    return run_name(str(flow_run.get_flow_name()), flow_run.get_parameters())


def _ablation_of(params: Params) -> dict[str, Any]:
    of = params.ablation
    return {"method": of.method, "fraction": of.fraction, "gammas": of.gammas, "n_ratios": of.n_ratios}


@flow(name="pipeline", flow_run_name=_name, task_runner=THREADS)
@shows(grid_of)
def pipeline(
    profile: str | None = None,
    overrides: list[str] | None = None,
    write_params: bool = False,
    parallel: Parallel = 2,
    time_limit_minutes: Minutes | None = None,
    where: Where = "here",
    share: bool = False,
) -> State[Any]:
    """Everything in dvc.yaml, like `dvc repro`, with independent stages in parallel.

    Args:
        profile: default, or a file in profiles/; none keeps params.yaml's.
        overrides: key=value, as for `gtl configure --set`; on top of the profile if one is given, else of params.yaml.
        write_params: allow this run to write params.yaml when profile or overrides differ from it.
        parallel: most stages at once.
        time_limit_minutes: stop a stage after this time; it goes on from its last checkpoint when it is run again.
        where: here: as processes of this run; gpu: each stage as a run on the pool gpu, one per GPU.
        share: several checkouts or machines: take from the DVC remote what others have made, push what is made here.
    """
    wanted = Wanted(profile, tuple(overrides or ()), write_params=write_params)
    limits = Limits(parallel, time_limit_minutes, POOL_DEPLOYMENTS[where], share)
    return _run("pipeline", wanted, limits, lambda _, grid: grid.main())


@flow(name="scarcity-sweep", flow_run_name=_name, task_runner=THREADS)
@shows(grid_of)
def scarcity_sweep(
    fractions: Fractions | None = None,
    seeds: Seeds | None = None,
    methods: Methods | None = None,
    profile: str | None = None,
    overrides: list[str] | None = None,
    write_params: bool = False,
    parallel: Parallel = 2,
    time_limit_minutes: Minutes | None = None,
    where: Where = "here",
    share: bool = False,
) -> State[Any]:
    """Every method of the sweep on every share of the target data; the report when the whole grid was asked for.

    Args:
        fractions: shares of the target training data; none takes the grid's. Others are added to params.yaml.
        seeds: repetitions; none takes the grid's. Others are added to params.yaml.
        methods: none takes the grid's. Others are added to params.yaml.
        profile: default, or a file in profiles/; none keeps params.yaml's.
        overrides: key=value, as for `gtl configure --set`; on top of the profile if one is given, else of params.yaml.
        write_params: allow this run to write params.yaml when what is asked for differs from it.
        parallel: most stages at once.
        time_limit_minutes: stop a stage after this time; it goes on from its last checkpoint when it is run again.
        where: here: as processes of this run; gpu: each stage as a run on the pool gpu, one per GPU.
        share: several checkouts or machines: take from the DVC remote what others have made, push what is made here.
    """
    wanted = Wanted(
        profile,
        tuple(overrides or ()),
        fractions=tuple(fractions) if fractions else None,
        seeds=tuple(seeds) if seeds else None,
        methods=tuple(methods) if methods else None,
        write_params=write_params,
    )

    def targets(params: Params, grid: Grid) -> list[str]:
        cells = grid.evaluations(methods=wanted.methods, fractions=wanted.fractions, seeds=wanted.seeds)
        # The report covers the whole grid: after a part of it, it would show holes that nobody asked for.
        return cells if wanted.narrows(params) else [*cells, *grid.gatherers()]

    return _run("scarcity-sweep", wanted, Limits(parallel, time_limit_minutes, POOL_DEPLOYMENTS[where], share), targets)


@flow(name="ablation", flow_run_name=_name, task_runner=THREADS)
@shows(_ablation_of)
def ablation(
    method: RatioMethod | None = None,
    fraction: Fraction | None = None,
    gammas: list[float] | None = None,
    n_ratios: list[int] | None = None,
    write_params: bool = False,
    parallel: Parallel = 2,
    time_limit_minutes: Minutes | None = None,
    where: Where = "here",
    share: bool = False,
) -> State[Any]:
    """gamma and n_ratio, resampled from one trained ratio; trains that ratio first if it is missing.

    Args:
        method: the ratio that is resampled; none keeps params.yaml's.
        fraction: the share of the target data that it was trained on; none keeps params.yaml's.
        gammas: guidance strengths; none keeps params.yaml's.
        n_ratios: numbers of tokens that the ratio scores; none keeps params.yaml's.
        write_params: allow this run to write params.yaml when what is asked for differs from it.
        parallel: most stages at once.
        time_limit_minutes: stop a stage after this time; it goes on from its last checkpoint when it is run again.
        where: here: as processes of this run; gpu: each stage as a run on the pool gpu, one per GPU.
        share: several checkouts or machines: take from the DVC remote what others have made, push what is made here.
    """
    asked = {"method": method, "fraction": fraction, "gammas": gammas, "n_ratios": n_ratios}
    overrides = tuple(f"ablation.{key}={value}" for key, value in asked.items() if value is not None)
    limits = Limits(parallel, time_limit_minutes, POOL_DEPLOYMENTS[where], share)
    return _run("ablation", Wanted(overrides=overrides, write_params=write_params), limits, lambda *_: ["ablation"])


@flow(name="markov-study", flow_run_name=_name, task_runner=THREADS)
def markov_study(
    overrides: list[str] | None = None,
    write_params: bool = False,
    parallel: Parallel = 2,
    time_limit_minutes: Minutes | None = None,
    where: Where = "here",
    share: bool = False,
) -> State[Any]:
    """The study on Markov chains: every method at every size and repetition, overlap, report.

    Args:
        overrides: key=value, as for `gtl markov configure --set`, for example seeds=[0, 1]; laid over the study's file.
        write_params: allow this run to write the study's params.yaml when overrides differ from it.
        parallel: most stages at once.
        time_limit_minutes: stop a stage after this time; it goes on from its last checkpoint when it is run again.
        where: here: as processes of this run; gpu: each stage as a run on the pool gpu, one per GPU.
        share: several checkouts or machines: take from the DVC remote what others have made, push what is made here.
    """
    wanted = Wanted(study=tuple(overrides or ()), write_params=write_params)
    limits = Limits(parallel, time_limit_minutes, POOL_DEPLOYMENTS[where], share)
    return _run("markov-study", wanted, limits, lambda *_: [MARKOV_REPORT], _markov)


@flow(name="stage", flow_run_name=_name)
def stage(
    stage: str, time_limit_minutes: Minutes | None = None, share: bool = False, version: str | None = None
) -> State[Any]:
    """One DVC stage: what a worker of the GPU pool runs for a sweep.

    Args:
        stage: address, as in `dvc stage list`.
        time_limit_minutes: stop it after this time.
        share: this checkout is not the sweep's: take what the stage needs from the DVC remote, push what it makes.
        version: of the sweep's checkout (commit, dvc.yaml, params.yaml); another one here is refused.
    """
    note_process()
    root = Path.cwd()
    if version is not None and version != checkout_version(root):
        return Failed(
            message=f"{root} on {socket.gethostname()} is another version than the sweep's; bring both to the same "
            "commit and params.yaml"
        )
    ended = run_stage(stage, stage, str(root), time_limit_minutes, share=share, upstream=share, return_state=True)
    if ended.is_completed():
        return Completed(message=ended.result())
    failure = ended.result(raise_on_failure=False)
    return Failed(message=str(getattr(failure, "reason", "") or ended.message))


def _run(
    key: str,
    wanted: Wanted,
    limits: Limits,
    targets: Callable[[Params, Grid], list[str]],
    find_study: Callable[[Params], Study] = study,
) -> State[Any]:
    log = get_run_logger()
    root = Path.cwd()
    note_process()
    try:
        if limits.deployment and (warning := check_pool(limits.deployment)):
            log.warning("%s", warning)
        params = settle(wanted, root)
        pinned = Pinned(root)
        grid = _grid_when_free(params, root)
        stages = grid.with_upstream(targets(params, grid))
        if limits.share:
            check_remote(root)
            if made := [stage.address for stage in stages if stage.address not in grid.dirty]:
                push(made, root, owner=str(flow_run.get_id()))
    except (UserError, StageError) as error:
        log.error("%s", error)
        return Failed(message=str(error))
    sweep = TrackedSweep(key, params, stages, root, find_study)
    if not grid.dirty.isdisjoint(stage.address for stage in stages):
        sweep.begin()
    board = Board(key, stages, root, resolve_uri(params.tracking.uri), sweep.pages)
    with nullcontext() if limits.deployment else standing_by(root, stage_environment()):
        outcomes = run_stages(grid, stages, root, limits, board.show, lambda: pinned.changed(stages))
    sweep.end(outcomes, board.report(outcomes))
    board.finish(outcomes)
    summary = count_outcomes(outcomes.values())
    edited = _edited(pinned, outcomes, stages, params, root)
    holes = unmade(outcomes)
    for hole in holes:
        log.error("%s", hole)
    if edited:
        log.error("%s", edited)
    if edited or holes:
        return Failed(message=f"{summary}. {edited or '; '.join(holes)}")
    return Completed(message=summary if "ran" in summary else f"{summary}: everything was up to date, nothing was run")


def _markov(params: Params) -> Study:
    from gtl_lightning.studies.markov.study import study  # with torch

    return study(params)


def _edited(pinned: Pinned, outcomes: Mapping[str, Outcome], stages: list[Stage], params: Params, root: Path) -> str:
    """What was edited while the sweep ran, in one line; nothing when its results are of one state of the checkout."""
    edited = pinned.changed(stages)
    if edited or not any(outcome.state == "ran" for outcome in outcomes.values()):
        return edited
    try:
        return outdated(outcomes, _grid_when_free(params, root))
    except UserError as error:
        return str(error)


def _grid_when_free(params: Params, root: Path) -> Grid:
    """The grid; what another process of this checkout has locked for the moment is waited for."""
    owner = str(flow_run.get_id())
    while True:
        mend_lockfile(root)
        mend_rwlock(root)
        try:
            return read_grid(params, root)
        except UserError as error:
            busy = BUSY.search(str(error))
            if busy and wait_until_free(root, busy["path"], get_run_logger().info, lambda: is_stopped(owner)):
                continue
            if not damaged_lockfiles(root):  # else a stage of a killed flow was killed, or is slow, at its writing
                raise


def run_sweep(database: Path | None = None) -> int:
    """The scarcity sweep without a deployment; the exit code.

    Args:
        database: of the flow's own server, where that is this checkout's.

    Raises:
        UserError: the configured server does not answer, or the database cannot be written.
    """
    with logged_in():
        check_server()
        if server_url() is None:
            signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=_end_at_once, daemon=True).start())
        if database is not None:
            start_own_server(database)
        return 0 if scarcity_sweep(return_state=True).is_completed() else 1


def _end_at_once() -> None:
    """Ctrl-C ends the server that the flow brought along too: a flow that reports to it would try for minutes."""
    stop_all(GRACE_SECONDS + 2)
    stop_own_server()
    sys.stderr.write("stopped; the same command goes on from what it has kept\n")
    os._exit(INTERRUPTED)
