"""What every command does first: read the parameters, and set or refuse what has to be before torch is imported."""

from __future__ import annotations

from gtl_lightning.resources import check_address_space, limit_threads
from gtl_lightning.workspace import params as config
from gtl_lightning.workspace.options import check_point, checked_cell
from gtl_lightning.workspace.params import Params


def open_params(profile: str | None = None, needs_torch: bool = True) -> Params:
    """The parameters of params.yaml or of a profile; threads are limited, and memory for torch is there.

    Raises:
        UserError: the file cannot be read, a value is refused, or the address space is too small for torch.
    """
    params = config.load_params() if profile is None else config.configure(profile)
    limit_threads(params.machine.threads)
    if needs_torch:
        check_address_space()
    return params


def open_point(fraction: float | None, seed: int, method: str | None = None) -> Params:
    """The parameters, whose grid has this point; a method that does not exist is refused before torch is imported.

    Raises:
        UserError: as `open_params`, `check_point` and `checked_cell`.
    """
    params = open_params()
    check_point(params, fraction, seed)
    if method is not None:
        checked_cell(method, fraction, seed)
    return params
