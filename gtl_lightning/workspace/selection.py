"""What samples are drawn with: temperature and gamma, chosen on held-out target texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.fields import STRONGEST
from gtl_lightning.methods import guides
from gtl_lightning.records import Within, read_record
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import CELLS, ROW, Cell, changed_since, log
from gtl_lightning.workspace.progress import progress_bar
from gtl_lightning.workspace.sampler import Sampler, at_gamma, draw_lengths
from gtl_lightning.workspace.text import decode_all

if TYPE_CHECKING:
    from pathlib import Path

    from gtl_lightning.data.dataset import TokenDataset


TRIAL_SEED = 1 << 20  # added to the cell's seed: what is tried is not what is measured


@dataclass(frozen=True)
class Setting:
    """A temperature and a guidance strength; gamma is None for a cell without a ratio."""

    temperature: float
    gamma: float | None

    def applied(self, params: Params) -> Params:
        """Params that sample at this temperature."""
        sampling = params.sampling.model_copy(update={"temperature": self.temperature})
        return params.model_copy(update={"sampling": sampling})


@dataclass(frozen=True)
class Trial:
    """A setting and the energy distance of its samples from the held-out texts."""

    setting: Setting
    energy: float


def choose_setting(
    params: Params, sampler: Sampler, val: TokenDataset, gamma: float | None, seed: int
) -> tuple[Setting, list[Trial]]:
    """The setting whose samples have the least energy distance from VALIDATION texts, and all that were tried.

    First the temperature, at the strength nearest to 1, then the strength at that temperature; on a tie what was tried
    first. The likelihood's gamma is chosen by one token at a time, given true context; a sample adds up what every
    step leaves of the source, so that it may need another. Where only one setting is allowed none is tried.

    Args:
        params: sampling.temperature and sampling.also_temperatures; sampling.sample_gammas.
        sampler: the cell.
        val: held-out target texts.
        gamma: strength that stands where sampling.sample_gammas is empty: the likelihood's; None without a ratio.
        seed: of the samples tried.
    """
    temperatures = (params.sampling.temperature, *params.sampling.also_temperatures)
    gammas = (gamma,) if gamma is None else params.sampling.sample_gammas or (gamma,)
    first = min(gammas, key=lambda value: abs(value - 1) if value is not None else 0.0)
    if len(temperatures) * len(gammas) == 1:
        return Setting(temperatures[0], first), []
    energy_of = _Energies(params, sampler, val, seed)
    trials = [energy_of(Setting(temperature, first)) for temperature in temperatures]
    temperature = _least(trials).temperature
    trials += [energy_of(Setting(temperature, value)) for value in gammas if value != first]
    return _least(trials), trials


def chosen_setting(params: Params, cell: Cell, root: Path) -> Setting:
    """What validation chose, where the cell has been evaluated; else params' temperature and 1, exact by eq. 6."""
    path = root / CELLS / cell.name / ROW
    temperature = params.sampling.temperature
    if not path.exists():
        return Setting(temperature, 1.0 if guides(cell.method) else None)
    if root == Path() and (other := changed_since(cell)) is not None:
        log.warning(
            "%s is another network than the one that gamma and temperature of %s were chosen for; evaluate it again "
            "(`dvc repro`)",
            *(other, cell.name),
        )
    row = read_record(path, {"temperature": Within(0, STRONGEST), "sample_gamma": Within(0, STRONGEST, null=True)})
    return Setting(row["temperature"] if params.sampling.also_temperatures else temperature, row["sample_gamma"])


class _Energies:
    """Energy distances of settings' samples from the held-out texts; all see the same lengths and seed."""

    def __init__(self, params: Params, sampler: Sampler, val: TokenDataset, seed: int) -> None:
        from gtl_lightning.evaluation.features import load_featurizer

        self._params, self._sampler, self._seed = params, sampler, seed + TRIAL_SEED
        self._featurizer = load_featurizer(params.evaluation.featurizer)
        self._held_out = self._featurizer(decode_all(val.subset(min(len(val), params.evaluation.val_examples))))
        self._lengths = draw_lengths(val.lengths, params.evaluation.trial_samples, self._seed)

    def __call__(self, setting: Setting) -> Trial:
        from gtl_lightning.evaluation.energy import energy_distance

        guidance = at_gamma(self._params, self._sampler.guidance, setting.gamma)
        with progress_bar(f"samples at temperature {setting.temperature:g}, gamma {setting.gamma}") as progress:
            sampled = self._sampler.draw(
                setting.applied(self._params), self._lengths, guidance=guidance, seed=self._seed, progress=progress
            )
        trial = Trial(setting, energy_distance(self._featurizer(decode_all(sampled)), self._held_out))
        log.info("temperature %g, gamma %s: energy distance %.4f", setting.temperature, setting.gamma, trial.energy)
        return trial


def _least(trials: list[Trial]) -> Setting:
    return min(trials, key=lambda trial: trial.energy).setting


def trial_rows(trials: list[Trial]) -> list[dict[str, Any]]:
    """Flat rows: temperature, gamma, energy."""
    return [{**asdict(trial.setting), "energy": trial.energy} for trial in trials]
