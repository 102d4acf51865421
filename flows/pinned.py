"""A sweep is of one params.yaml: what its files say is read when it starts, and an edit meanwhile ends it Failed.

Any value counts, whether or not the sweep reads it: which keys a stage reads is DVC's to say, and it says so of what it
has recorded. Comments are free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from flows.grid import STUDY, Grid, Stage
from flows.remote import stated
from flows.runner import GOOD, Outcome
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.watched import differing
from gtl_lightning.workspace.yamlfile import read_values

AGAIN = "what has run is kept; start the sweep again"


class Pinned:
    """What the files of a checkout say now, for a sweep that begins.

    Raises:
        UserError: one cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._texts = {path: path.read_bytes() for path in stated(root)}
        self._values = {path: read_values(path) for path in self._texts}
        self._said = ""

    def changed(self, stages: Iterable[Stage]) -> str:
        """What has been edited of the files that these stages are of, in one line; it stays so when it is put back."""
        folders = {self._root / Path(stage.address.partition(STUDY)[0]).parent for stage in stages} | {self._root}
        for path in self._texts:
            if not self._said and path.parent in folders:
                self._said = self._edit(path)
        return self._said

    def _edit(self, path: Path) -> str:
        name = path.relative_to(self._root)
        try:
            if path.read_bytes() == self._texts[path]:
                return ""
            edits = list(differing(self._values[path], read_values(path)))
        except (OSError, UserError):
            return f"{name} cannot be read any more; put it back: {AGAIN}"
        more = f" and {len(edits) - 1} more" if len(edits) > 1 else ""
        return f"{name} was edited while the sweep ran ({edits[0]}{more}); {AGAIN}" if edits else ""


def outdated(outcomes: Mapping[str, Outcome], grid: Grid) -> str:
    """What ended well and is stale all the same, in one line: an edit came between it and what needs it.

    What only gathers is left out: other cells may come at any time.
    """
    good = [address for address, outcome in outcomes.items() if outcome.state in GOOD and address in grid.stale]
    made = [address for address in good if not grid.stages[address].is_data and not grid.stages[address].gathers]
    more = f" and {len(made) - 1} more" if len(made) > 1 else ""
    return f"{made[0]}{more}: what it was made of was edited while the sweep ran; {AGAIN}" if made else ""
