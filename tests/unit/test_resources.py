"""What a process takes of the machine, asked of glibc and of torch."""

from __future__ import annotations

import ast
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gtl_lightning import cli, resources

BLOCK = 16 << 20
HOLD = f"""
import ctypes
from gtl_lightning.resources import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if {{keep}}:
    keep_freed_memory()
before = libc.mallinfo2().arena
libc.free(libc.malloc({BLOCK}))
print(libc.mallinfo2().arena - before)
"""


@pytest.mark.parametrize("keep", [True, False])
def test_a_freed_block_stays_in_the_heap_only_where_that_was_asked_for(keep: bool) -> None:
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("glibc alone is told, and only since 2.33 does it say what it holds")
    told = subprocess.run([sys.executable, "-c", HOLD.format(keep=keep)], capture_output=True, text=True, check=True)
    # What lay free at the heap's top before serves the first part of the block, so that the heap grows by less than it.
    assert (int(told.stdout) >= BLOCK // 2) == keep


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("fpu avx2 fma", False),
        ("fpu avx2 avx512f avx512_bf16", True),
        ("amx_bf16 avx2", True),
        ("avx512_bf16_emulated", False),
        (None, False),
    ],
)
def test_a_processor_has_bf16_if_its_flags_say_so(
    flags: str | None, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that says nothing of its processor has none, nor has a device that is neither processor nor CUDA's."""
    said = tmp_path / "cpuinfo"
    if flags is not None:
        said.write_text(f"model name : one\nflags\t\t: {flags}\nbugs : none\n")
    monkeypatch.setattr(resources, "_CPUINFO", said)
    assert resources.has_bf16("cpu") is has
    assert not resources.has_bf16("mps")


@pytest.mark.parametrize("has", [True, False])
def test_of_a_gpu_torch_is_asked_and_emulation_does_not_count(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has or including_emulation)
    assert resources.has_bf16("cuda") is has


@pytest.mark.parametrize(("asked", "environment", "threads"), [(1, None, 1), (2, "1", 1), (None, "1", 1)])
def test_torch_takes_as_many_threads_as_are_asked_for_unless_the_environment_says(
    asked: int | None, environment: str | None, threads: int
) -> None:
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    code = (
        f"from gtl_lightning.resources import limit_threads; limit_threads({asked}); "
        "import torch; print(torch.get_num_threads())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=own | ({} if environment is None else {"OMP_NUM_THREADS": environment}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) == threads


def test_the_number_of_threads_is_set_before_torch_is_loaded() -> None:
    """Afterwards it would be ignored without a word: what a command imports before it reads params.yaml is light."""
    code = (
        "import sys\nimport flows.cli\nimport gtl_lightning.workspace.options, gtl_lightning.workspace.params\n"
        "import gtl_lightning.studies.markov.params\n"
        "print(sorted({'torch', 'pytorch_lightning', 'mlflow', 'mauve', 'transformers'} & sys.modules.keys()))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_a_command_reads_the_parameters_before_it_imports_its_stage() -> None:
    checked = 0
    package = Path(cli.__file__).parent
    files = (*package.glob("commands/*.py"), *package.glob("studies/*/commands.py"))
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        lines = ast.unparse(node).splitlines()
        read = [n for n, line in enumerate(lines) if re.search(r"\b(open_params|open_point|_open)\(", line)]
        stage = [n for n, line in enumerate(lines) if "import" in line and (".stages" in line or ".studies" in line)]
        if read and stage:
            assert min(read) < min(stage), node.name
            checked += 1
    assert checked > 15
