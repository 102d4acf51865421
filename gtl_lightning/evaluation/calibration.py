"""Are a classifier's probabilities right? Calibration on held-out data (Guo et al., 2017), its error, and the AUC.

Logits are those of P(target | .). With `balanced`, both domains weigh the same whatever their numbers, so that a
calibrated logit is log q/p itself (docs/method.md section 2.1) and gamma = 1 means what eq. 5 says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gtl_lightning.errors import UserError

RIDGE = 1e-4  # keeps the scale finite where held-out domains separate perfectly; far below the noise of 1,000 examples


@dataclass(frozen=True)
class Calibration:
    """logit -> scale * logit + shift; scale = 1 / temperature."""

    scale: float
    shift: float

    def __call__(self, logit: torch.Tensor) -> torch.Tensor:
        """Calibrated logits, of any shape."""
        return self.scale * logit + self.shift


def fit_calibration(
    logits: np.ndarray | torch.Tensor,
    is_target: np.ndarray | torch.Tensor,
    *,
    affine: bool = True,
    balanced: bool = True,
) -> Calibration:
    """Minimise the held-out binary cross-entropy over scale and shift (or scale alone: temperature scaling), by LBFGS.

    Args:
        logits: Float[n] on examples that the classifier was not trained on.
        is_target: Bool[n].
        affine: fit the shift as well.
        balanced: give both domains the same total weight.

    Raises:
        UserError: lengths differ, one domain is missing, or a logit or the fit is not finite.
    """
    z, y = _pairs(logits, is_target)
    x, label = torch.from_numpy(z), torch.from_numpy(y).double()
    weight = torch.from_numpy(balanced_weights(y)) if balanced else torch.full_like(x, 1 / len(x))
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    free = torch.tensor([1.0, float(affine)], dtype=torch.float64)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        scale, shift = parameters * free
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(scale * x + shift, label, reduction="none")
        value = (weight * entropy).sum() + RIDGE * (scale - 1) ** 2
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    scale, shift = (parameters * free).tolist()
    if not np.isfinite([scale, shift]).all():
        raise UserError(f"calibration diverged to scale {scale}, shift {shift}; look at the classifier's logits")
    return Calibration(scale, shift)


def expected_calibration_error(
    probabilities: np.ndarray | torch.Tensor,
    is_target: np.ndarray | torch.Tensor,
    *,
    bins: int = 15,
    balanced: bool = False,
) -> float:
    """Mean over adaptive bins of |mean probability - share of the target|, in [0, 1].

    The bins hold about equally many examples (Nixon et al., 2019): with fixed edges the confident ends would hide the
    rest.

    Args:
        probabilities: Float[n] P(target | .).
        is_target: Bool[n].
        bins: at most; never fewer than 10 examples a bin.
        balanced: weigh the domains equally, for probabilities that presume equal shares.

    Raises:
        UserError: as `fit_calibration`; or a value outside [0, 1], as a logit is.
    """
    p, y = _pairs(probabilities, is_target)
    if p.min() < 0 or p.max() > 1:
        raise UserError(
            f"probabilities reach from {p.min():g} to {p.max():g}; give sigmoid(logit), which lies in [0, 1]"
        )
    weight = balanced_weights(y) if balanced else np.full(len(p), 1 / len(p))
    count = max(1, min(bins, len(p) // 10))
    values, first = np.unique(np.sort(p), return_index=True)
    # Equal probabilities share the bin of their first: else their order in the data would decide the error.
    bin_of = (np.arange(len(p)) * count // len(p))[first][np.searchsorted(values, p)]
    return float(np.abs(np.bincount(bin_of, weights=weight * (p - y))).sum())


def roc_auc(scores: np.ndarray | torch.Tensor, is_target: np.ndarray | torch.Tensor) -> float:
    """P(score of a target example > score of a source example), ties half.

    Raises:
        UserError: as `fit_calibration`.
    """
    from sklearn.metrics import roc_auc_score

    z, y = _pairs(scores, is_target)
    return float(roc_auc_score(y, z))


def balanced_weights(is_target: np.ndarray) -> np.ndarray:
    """Float[n], sum 1, each domain 1/2."""
    return np.where(is_target, 0.5 / is_target.sum(), 0.5 / (~is_target).sum())


def _pairs(values: np.ndarray | torch.Tensor, is_target: np.ndarray | torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    z, y = np.asarray(values, dtype=np.float64), np.asarray(is_target, dtype=bool)
    if z.ndim != 1 or z.shape != y.shape:
        raise UserError(f"classifier outputs {z.shape} and labels {y.shape} do not match; give one of each an example")
    if y.all() or not y.any():
        raise UserError("held-out data for calibration hold one domain only; give source and target examples")
    if not np.isfinite(z).all():
        raise UserError("a classifier output is not finite; its training diverged: lower the learning rate")
    return z, y
