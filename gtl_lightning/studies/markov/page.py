"""The Markov study's last stage: rows, page and figures of what the others have left (docs/markov.md)."""

from __future__ import annotations

from gtl_lightning.files import write_json
from gtl_lightning.records import AMOUNT, COUNT, NUMBER, Each, Row, Shape, read_record, read_records
from gtl_lightning.studies.markov.domains import chains
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.studies.markov.study import OVERLAP, REPEATS, cells_file, study
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import REPORTS, log, with_times

TEXTS = frozenset({"made_with", "mlflow_run"})
MEASURED: Shape = {"method": str, "n": COUNT, "seed": COUNT}
TRANSITION = Each(Each(AMOUNT))
CELLS: Shape = {
    "rows": Each(Row({**MEASURED, "transition": TRANSITION, "row_kl": NUMBER, "diagonal": NUMBER}, TEXTS)),
    "calibration": Each(Row({**MEASURED, "level": NUMBER}, TEXTS)),
}
ADVISED = dict.fromkeys(("verdict", "verdict_reweighting", "sentence"), str)
REPEATED = Row(
    {**MEASURED, "row_kl": NUMBER, "kl": NUMBER, "gamma": NUMBER, "steps": COUNT}, TEXTS, frozenset({"transition"})
)
MOVED = Row({**MEASURED, **ADVISED, "diagonal_target": NUMBER}, TEXTS, frozenset({"transition"}))


def markov_report(settings: Markov, params: Params) -> None:
    """reports/markov.json, markov_calibration.json, markov_overlap.json, markov_repeats.json, markov.md and figures.

    Figures lie in reports/markov; `params` say where it is tracked.

    Raises:
        UserError: a repetition, the repeats or the overlap study is missing.
    """
    from gtl_lightning.studies.markov.document import write_markov_report
    from gtl_lightning.studies.markov.panels import means

    cells = [read_record(cells_file(seed), CELLS) for seed in settings.seeds]
    timed = [with_times(cells_file(seed), cell["rows"]) for seed, cell in zip(settings.seeds, cells, strict=True)]
    rows = [row for cell in timed for row in cell]
    calibration = [row for cell in cells for row in cell["calibration"]]
    overlap = read_records(OVERLAP, MOVED)
    repeats = read_records(REPEATS, REPEATED)
    write_json(REPORTS / "markov.json", rows)
    write_json(REPORTS / "markov_calibration.json", calibration)
    write_json(REPORTS / "markov_overlap.json", overlap)
    write_json(REPORTS / "markov_repeats.json", repeats)
    target = chains(settings)[1].transition.tolist()
    written = write_markov_report(
        REPORTS, rows, calibration, overlap, repeats, target, settings.model_dump(mode="json")
    )
    summary = {
        f"{method}.{n}.{metric}": means(rows, metric, method=method, n=n)[0]
        for method in dict.fromkeys(row["method"] for row in rows)
        for n in settings.sizes
        for metric in ("row_kl", "diagonal", "kl")
    }
    with study(params).parent() as run:
        run.log_metrics(summary)
        for path in written:
            run.log_file(path, "report")
    log.info("markov report: %s", written[0])
