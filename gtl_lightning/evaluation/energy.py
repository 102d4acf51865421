"""Energy distance between two samples of texts: what the samples' temperature and gamma are chosen by.

MAUVE quantises both samples, so that on the few held-out texts of a small target it is mostly noise. The energy
distance uses every pair of texts, and its noise from the held-out side is shared by all settings that are compared.
"""

from __future__ import annotations

import numpy as np

from gtl_lightning.evaluation.features import check_pair


def energy_distance(features_p: np.ndarray, features_q: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| with Euclidean distances (Szekely and Rizzo, 2013), estimated without bias.

    0 in expectation if and only if the laws are equal, else positive; an estimate may fall below 0.

    Args:
        features_p: Float[n, d], n >= 2.
        features_q: Float[m, d], m >= 2.

    Raises:
        UserError: wrong shapes, fewer than two rows a side, or values that are not finite.
    """
    from scipy.spatial.distance import cdist, pdist

    check_pair(features_p, features_q, score="the energy distance", least=2)
    between = float(cdist(features_p, features_q).mean())
    return 2 * between - float(pdist(features_p).mean()) - float(pdist(features_q).mean())
