"""Target concrete score matching (TCSM, arXiv 2504.16431): one objective to pre-train, to post-train and to distil.

The *concrete score* of a one-token change of clean text is c(y, i) = p([y, x_0^{-i}] | z_t) / p(x_0 | z_t): a quotient,
so that whatever knows a law of clean text up to a constant (data, an autoregressive teacher, a reward) can say it. A
denoiser p_theta(. | z_t) is trained so that its quotients match. One file an idea, in the paper's symbols, each with
what would go wrong in another form; docs/method.md section 3 has the equations and the tests that prove them by
enumeration:

- `objective`     eqs. 11 and 12: the losses themselves, for both noises;
- `conditionals`  what a teacher says of one position given all the others, from both sides;
- `ratio`         post-training by the ratio of the wanted law to a frozen denoiser's;
- `reward`        post-training and guidance by exp(R / beta);
- `preference`    post-training by pairs, of which one is preferred.

Tokens are Long[b,l], log-probabilities Float[b,l,v] in nats, positions Bool[b,l]. Losses return one term a position, or
one an example where the docstring says so; take the mean.
"""

from gtl_lightning.papers.tcsm.conditionals import (
    Conditional,
    Proposed,
    Teacher,
    TopK,
    conditional,
    exact,
    first_order,
    given_noise,
)
from gtl_lightning.papers.tcsm.objective import (
    distillation_loss,
    generalised_kl,
    mean_log_prob,
    score_loss,
    score_terms,
    weighted,
)
from gtl_lightning.papers.tcsm.preference import noised_pairs, pair_elbo, preference_loss
from gtl_lightning.papers.tcsm.ratio import (
    bce_pair_loss,
    conditional_bce_loss,
    conditional_gkl_loss,
    conditional_lsif_loss,
    gkl_pair_loss,
    implicit_log_ratio,
    lsif_pair_loss,
)
from gtl_lightning.papers.tcsm.reward import Reward, effective_sample_size, rao_blackwell, reward_weights

__all__ = [
    "Conditional",
    "Proposed",
    "Reward",
    "Teacher",
    "TopK",
    "bce_pair_loss",
    "conditional",
    "conditional_bce_loss",
    "conditional_gkl_loss",
    "conditional_lsif_loss",
    "distillation_loss",
    "effective_sample_size",
    "exact",
    "first_order",
    "generalised_kl",
    "given_noise",
    "gkl_pair_loss",
    "implicit_log_ratio",
    "lsif_pair_loss",
    "mean_log_prob",
    "noised_pairs",
    "pair_elbo",
    "preference_loss",
    "rao_blackwell",
    "reward_weights",
    "score_loss",
    "score_terms",
    "weighted",
]
