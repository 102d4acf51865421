"""The sweep's own run in MLflow: its grid, its report, Prefect's run id; below it the cells that it evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.grid import Stage
from flows.runner import GOOD, Outcome, count_outcomes
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.addresses import exists, resolve_uri
from gtl_lightning.workspace.pages import comparisons, experiment_place, run_place, shown_at
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import run_of
from gtl_lightning.workspace.tracked import Run
from gtl_lightning.workspace.tracking import Study


class TrackedSweep:
    """One flow run in MLflow. Stages do not depend on it: what the tracker refuses is a warning.

    Args:
        name: of the flow.
        params: of the checkout.
        stages: of this run.
        root: the repository.
        find_study: whose sweep it is.
    """

    def __init__(
        self, name: str, params: Params, stages: list[Stage], root: Path, find_study: Callable[[Params], Study]
    ) -> None:
        self._name = name
        self._params = params
        self._stages = stages
        self._root = root
        self._find_study = find_study
        self._study: Study | None = None
        self._run: Run | None = None

    def begin(self) -> None:
        """Open the run, where data and tracker are there already; a flow that is retried goes on with its own."""
        with suppress(UserError):  # `end` tries again
            self._open()

    def end(self, outcomes: Mapping[str, Outcome], report: str) -> None:
        """Take the cells, log the report, and say where the pages are. A sweep that ran nothing has no run."""
        ran = any(outcome.state == "ran" for outcome in outcomes.values())
        try:
            if ran or self._run is not None:
                self._close(self._run or self._open(), outcomes, report)
            elif exists(resolve_uri(self._params.tracking.uri)):
                self._study = self._find_study(self._params)
        except UserError as error:
            get_run_logger().warning("the sweep has no run of its own in MLflow: %s", error)
        for what, address in self._addresses():
            get_run_logger().info("MLflow, %s: %s", what, address)

    def pages(self) -> str:
        """Markdown that leads to the pages; empty while there are none."""
        links = [f"[{what}]({address})" for what, address in self._addresses()]
        return f"MLflow: {', '.join(links)}" if links else ""

    def _open(self) -> Run:
        self._study = self._find_study(self._params)
        flow, name = str(flow_run.get_id()), str(flow_run.get_name())
        tags = {"profile": self._params.profile, "prefect_flow_run": flow, "mlflow.source.name": f"flow {self._name}"}
        note = f"{name}, flow run {flow} of Prefect: the grid, the report, and the cells below."
        self._run = self._study.begin("sweep", name, f"sweep-{flow}", tags, note)
        self._run.log_params(self._grid())
        return self._run

    def _close(self, run: Run, outcomes: Mapping[str, Outcome], report: str) -> None:
        assert self._study is not None
        rows = [Path(stage.row) for stage in self._stages if stage.row is not None]
        self._study.adopt(run.run_id, [run_of(row, self._root).get("mlflow_run", "") for row in rows])
        run.log_json(self._grid(), "grid.json")
        run.log_text(report, "report.md")
        run.set_tags({"outcome": count_outcomes(outcomes.values())})
        run.end("FINISHED" if all(outcome.state in GOOD for outcome in outcomes.values()) else "FAILED")

    def _addresses(self) -> list[tuple[str, str]]:
        if self._study is None:
            return []
        uri = self._study.uri
        places = [("this sweep", run_place(self._run.run_id))] if self._run else []
        experiment = self._study.experiment_id
        places += [*comparisons(experiment).items(), ("all runs", experiment_place(experiment))]
        return [(what, shown_at(uri, place)) for what, place in places]

    def _grid(self) -> dict[str, object]:
        """What was asked for: the cells' methods, shares and seeds in the order of the grid."""
        cells = [stage.cell for stage in self._stages if stage.row is not None and stage.cell is not None]
        return {
            "methods": list(dict.fromkeys(cell.method for cell in cells)),
            "fractions": list(dict.fromkeys(cell.fraction for cell in cells if cell.fraction is not None)),
            "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
            "stages": len(self._stages),
        }
