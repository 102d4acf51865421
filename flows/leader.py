"""Head of a stage's process group: runs a command and stops the whole group when its standard input ends.

The input is a pipe that the flow's process holds. It ends when the flow asks for a stop, and also when the flow's
process is killed: no training run outlives its flow. A script on the standard library alone, to start in milliseconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(arguments: list[str]) -> int:
    """Run `GRACE_SECONDS COMMAND...`; return the exit code, 128 + its number for a signal."""
    grace, command = float(arguments[0]), arguments[1:]
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler, not SIG_IGN: that would be inherited by the command.
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_at_end_of_input, args=(child, grace), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _stop_at_end_of_input(child: subprocess.Popen[bytes], grace: float) -> None:
    while os.read(0, 1):
        pass
    # SIGINT is what DVC and the training loop answer in an orderly way: checkpoint, MLflow status, locks.
    os.killpg(0, signal.SIGINT)
    try:
        child.wait(grace)
    finally:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
