"""Are a classifier's probabilities right on held-out data? Their calibration error (Guo et al., 2017), and the AUC.

Probabilities are P(target | .). With `balanced`, both domains weigh the same whatever their numbers, so that the logit
of a calibrated one is log q/p itself (docs/method.md section 2.1) and gamma = 1 means what eq. 5 says.
"""

from __future__ import annotations

import numpy as np
import torch

from gtl_lightning.errors import UserError


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
        UserError: lengths differ, one domain is missing, or a value is not finite or outside [0, 1], as a logit is.
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
        UserError: lengths differ, one domain is missing, or a score is not finite.
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
