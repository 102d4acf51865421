"""A tiny DVC project of shell commands with the shape of the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.dvc_kit import dvc_repository

PARAMS = """
sweep: {fractions: [1.0, 0.05], seeds: [0], baselines: [vanilla], ratios: [gtl]}
ablation: {fraction: 0.05, method: gtl}
"""

# A cell fails while fail-NAME exists, as `gtl` does: one line on standard error, exit code 2.
PIPELINE = """
stages:
  source:
    cmd: sh train.sh source
    deps: [train.sh]
    outs: [models/source]
  baseline:
    matrix: {method: "${sweep.baselines}", fraction: "${sweep.fractions}", seed: "${sweep.seeds}"}
    cmd: sh train.sh ${item.method}-${item.fraction}-${item.seed}
    deps: [models/source]
    outs: ["models/${item.method}-${item.fraction}-${item.seed}"]
  ratio:
    matrix: {method: "${sweep.ratios}", fraction: "${sweep.fractions}", seed: "${sweep.seeds}"}
    cmd: sh train.sh ${item.method}-${item.fraction}-${item.seed}
    deps: [models/source]
    outs: ["models/${item.method}-${item.fraction}-${item.seed}"]
  evaluate-source:
    matrix: {seed: "${sweep.seeds}"}
    cmd: sh evaluate.sh source-${item.seed}
    deps: [models/source]
    outs: ["cells/source-${item.seed}", "runs/cells/source-${item.seed}"]
  evaluate-baseline:
    matrix: {method: "${sweep.baselines}", fraction: "${sweep.fractions}", seed: "${sweep.seeds}"}
    cmd: sh evaluate.sh ${item.method}-${item.fraction}-${item.seed}
    deps: ["models/${item.method}-${item.fraction}-${item.seed}"]
    outs:
      - "cells/${item.method}-${item.fraction}-${item.seed}"
      - "runs/cells/${item.method}-${item.fraction}-${item.seed}"
  evaluate-ratio:
    matrix: {method: "${sweep.ratios}", fraction: "${sweep.fractions}", seed: "${sweep.seeds}"}
    cmd: sh evaluate.sh ${item.method}-${item.fraction}-${item.seed}
    deps: ["models/${item.method}-${item.fraction}-${item.seed}"]
    outs:
      - "cells/${item.method}-${item.fraction}-${item.seed}"
      - "runs/cells/${item.method}-${item.fraction}-${item.seed}"
  ablation:
    cmd: mkdir -p ablation && echo "[]" > ablation/rows.json
    deps: ["models/${ablation.method}-${ablation.fraction}-${sweep.seeds[0]}"]
    params: [ablation]
    outs: [ablation]
  report:
    cmd: mkdir -p reports && ls cells > reports/report.md
    deps: [cells, ablation]
    outs: [reports/report.md]
"""

TRAIN = """
echo $1 >> attempts.log
if [ -e fail-$1 ]; then echo "error: $1 has too few examples" >&2; exit 2; fi
if [ -e crash-$1 ]; then rm crash-$1; exit 9; fi
if [ -e slow-$1 ]; then echo $$ > pid; trap 'echo stopped > tidy; exit 130' INT; while :; do sleep 0.05; done; fi
while [ -e hold-$1 ]; do sleep 0.05; done
if [ -e full-$1 ]; then cat train.sh > /dev/full || exit 1; fi
echo $1 >> runs.log
mkdir -p models && echo $1 > models/$1
"""
EVALUATE = """
mkdir -p cells/$1 runs/cells/$1
echo '{"nelbo": 3.25, "mauve": 0.5}' > cells/$1/row.json
echo '{"mlflow_run": "run-'$1'"}' > runs/cells/$1/row.json
"""


def make_project(folder: Path, *, git: bool = False) -> None:
    """Write the project's files and make it a DVC repository, in Git if wanted."""
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "train.sh").write_text(TRAIN)
    (folder / "evaluate.sh").write_text(EVALUATE)
    if git:
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
    else:
        dvc_repository(folder)


def runs(project: Path) -> list[str]:
    """Names of what was trained in a project, sorted; a repetition shows."""
    log = project / "runs.log"
    return sorted(log.read_text().split()) if log.exists() else []
