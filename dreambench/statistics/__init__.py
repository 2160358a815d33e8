"""The uncertainty of a score: standard errors, intervals, paired comparisons, tests and sample sizes.

Scores are one number per question. Questions that share something (an image, a document) are not independent: give their group as
`clusters`. Nothing here reads a clock or a global random generator; the bootstrap takes a seed and repeats itself.

Sources: Miller, "Adding Error Bars to Evals" (2024), for clustered and paired errors and for the sample size; Wilson (1927).
"""

from __future__ import annotations

from dreambench.statistics.comparisons import (
    McNemar,
    PairedDifference,
    SignedRank,
    adjust_p_values,
    mcnemar,
    mcnemar_table,
    paired_difference,
    wilcoxon_signed_rank,
)
from dreambench.statistics.intervals import (
    Bootstrap,
    bootstrap_mean,
    clustered_standard_error,
    mean_estimate,
    normal_interval,
    normal_quantile,
    standard_error,
    wilson_interval,
)
from dreambench.statistics.planning import (
    minimum_detectable_effect,
    power,
    question_means,
    required_questions,
    variance_components,
)

__all__ = [
    "Bootstrap",
    "McNemar",
    "PairedDifference",
    "SignedRank",
    "adjust_p_values",
    "bootstrap_mean",
    "clustered_standard_error",
    "mcnemar",
    "mcnemar_table",
    "mean_estimate",
    "minimum_detectable_effect",
    "normal_interval",
    "normal_quantile",
    "paired_difference",
    "power",
    "question_means",
    "required_questions",
    "standard_error",
    "variance_components",
    "wilcoxon_signed_rank",
    "wilson_interval",
]
