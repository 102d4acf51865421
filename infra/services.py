"""The children of `make serve`: started, watched, started again, stopped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from gtl_lightning.workspace.addresses import hide_credentials

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 90.0
FLOW_GRACE_SECONDS = 7.0  # a flow interrupts its stages, which save a checkpoint
SERVICE_GRACE_SECONDS = 1.0
RESTARTS = 5  # of one service in quick succession, before serve gives up
STABLE_SECONDS = 60.0  # a service that was up for so long starts with a clean slate
WORKER = "worker-"  # how the names of workers begin
LOGS = Path(".prefect/logs")

log = logging.getLogger("serve")


class ServeError(Exception):
    """Something the user can mend: one line."""


@dataclass
class Service:
    """A running child.

    Attributes:
        name: for people, and of its log file.
        command: what it runs.
        environment: the whole of it.
        process: head of its own process group.
        restarts: how often it was started again in quick succession.
        since: when it was started last, time.monotonic().
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    restarts: int = 0
    since: float = field(default_factory=time.monotonic)


class Lab:
    """The services, in the order in which they were started; they are stopped in the opposite order.

    Args:
        environment: of every service; what one of them has besides is given where it is started.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._services: list[Service] = []
        self._flows: set[psutil.Process] = set()  # they outlive a worker that is killed

    def run(self, *command: str, **extra: str) -> None:
        """Run a command to its end.

        Raises:
            ServeError: it failed.
        """
        own = {**self.environment, **extra}
        done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise ServeError(hide_credentials(f"{' '.join(command)} failed: {last}"))

    def start(self, name: str, *command: str, **extra: str) -> None:
        """Start a service; its output goes to .prefect/logs/NAME.log."""
        own = {**self.environment, **extra}
        self._services.append(Service(name, command, own, _spawn(name, command, own)))

    def wait_for(self, name: str, url: str) -> None:
        """Wait until a service answers.

        Raises:
            ServeError: it died, or did not answer in time.
        """
        log.info("waiting for %s (its log: %s.log)", name, LOGS / name)
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            self.check()
            if time.monotonic() > deadline:
                raise ServeError(f"{name} did not answer within {START_SECONDS:.0f} s; see {LOGS / name}.log")
            time.sleep(0.2)

    def check(self) -> None:
        """Raise ServeError when a service has died."""
        for service in self._services:
            if (code := service.process.poll()) is not None:
                raise ServeError(f"{service.name} ended with exit code {code}; see {LOGS / service.name}.log")

    def keep_up(self) -> None:
        """Start a service that has died again, a few times; remember the flow runs of the workers.

        Raises:
            ServeError: it dies again and again.
        """
        for service in self._services:
            if service.name.startswith(WORKER) and service.process.poll() is None:
                with suppress(psutil.NoSuchProcess):
                    self._flows.update(psutil.Process(service.process.pid).children())
        self._flows = {flow for flow in self._flows if flow.is_running()}
        for service in self._services:
            if (code := service.process.poll()) is not None:
                if time.monotonic() - service.since > STABLE_SECONDS:
                    service.restarts = 0
                if service.restarts >= RESTARTS:
                    self.check()
                hint = "; `gtl reconcile` retries its flow run" if service.name.startswith(WORKER) else ""
                log.info("%s ended with exit code %s and is started again%s", service.name, code, hint)
                service.process = _spawn(service.name, service.command, service.environment)
                service.restarts += 1
                service.since = time.monotonic()

    def stop(self) -> None:
        """Stop everything, workers before the server that they report to."""
        workers = [service for service in self._services if service.name.startswith(WORKER)]
        _stop_flows(self._flows)
        _stop(workers)
        _stop([service for service in reversed(self._services) if service not in workers])
        self._services.clear()


def until_stopped(run: Callable[[], None]) -> int:
    """Run until a signal or a failure, told in one line; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        log.info("stopped")
    except ServeError as error:
        log.info("error: %s", error)
        return 2
    return 0


def _spawn(name: str, command: tuple[str, ...], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    folder = ROOT / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.log", "ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop_flows(flows: set[psutil.Process]) -> None:
    """Ask the flow runs themselves, which then stop their stages and report to the server; a worker would kill them."""
    for flow in flows:
        with suppress(psutil.NoSuchProcess):
            flow.terminate()
    psutil.wait_procs(list(flows), timeout=FLOW_GRACE_SECONDS)


def _stop(services: list[Service]) -> None:
    _signal(services, signal.SIGTERM)
    deadline = time.monotonic() + SERVICE_GRACE_SECONDS
    for service in services:
        with suppress(subprocess.TimeoutExpired):
            service.process.wait(max(0, deadline - time.monotonic()))
    _signal(services, signal.SIGKILL)  # also what a service left behind
    for service in services:
        service.process.wait()


def _signal(services: list[Service], number: signal.Signals) -> None:
    for service in services:
        with suppress(ProcessLookupError):
            os.killpg(service.process.pid, number)


def answers(url: str) -> bool:
    """Whether an HTTP request to `url` succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
