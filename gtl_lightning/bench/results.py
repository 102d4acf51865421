"""What was timed, kept as rows: reports/bench.json, and the page that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gtl_lightning.bench.page import benchmark_page, benchmark_panels, quality_panels
from gtl_lightning.files import write_text
from gtl_lightning.records import Row, read_records
from gtl_lightning.report.figures import save_figure
from gtl_lightning.workspace.paths import REPORTS

ROWS = REPORTS / "bench.json"
PAGE = Path("docs/benchmarks.md")
TEXTS = frozenset(
    (
        "hardware", "date", "torch", "command", "sampling_precision", "guidance", "planner", "axis", "module",
        "precision", "method",
    )
)  # fmt: skip
EARLIER = {"sampling_precision": "32-true"}
"""What held of a machine's row from before it was noted."""


def measured() -> list[dict[str, Any]]:
    """The rows of reports/bench.json."""
    rows = read_records(ROWS, Row({"profile": str, "part": str, "group": str}, TEXTS)) if ROWS.exists() else []
    return [EARLIER | row if row["part"] == "machine" else row for row in rows]


def write_page() -> None:
    """docs/benchmarks.md and its figures from the rows."""
    rows, figures = measured(), []
    for name, panels in (("benchmarks", benchmark_panels(rows)), ("speed-quality", quality_panels(rows))):
        if panels:
            save_figure(PAGE.parent / "figures", name, panels)
            figures.append(name)
    write_text(PAGE, benchmark_page(rows, figures))
