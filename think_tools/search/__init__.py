"""Get more out of a model that can already think, by spending more tokens at test time."""

from .vote import (
    best_candidate,
    canonical_answers,
    filter_top,
    maj_at_k,
    majority_vote,
    mean_over_subsets,
    pass_at_k,
    weighted_vote,
)

__all__ = [
    "best_candidate",
    "canonical_answers",
    "filter_top",
    "maj_at_k",
    "majority_vote",
    "mean_over_subsets",
    "pass_at_k",
    "weighted_vote",
]
