"""Get more out of a model that can already think, by spending more tokens at test time."""

from .candidates import collect
from .curves import draw_accuracy, draw_training
from .evaluate import evaluate
from .verifiers import (
    ConfidenceVerifier,
    GenerativeVerifier,
    JudgeVerifier,
    OutcomeVerifier,
    ProcessVerifier,
    RewardVerifier,
    verify,
)
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
    "ConfidenceVerifier",
    "GenerativeVerifier",
    "JudgeVerifier",
    "OutcomeVerifier",
    "ProcessVerifier",
    "RewardVerifier",
    "best_candidate",
    "canonical_answers",
    "collect",
    "draw_accuracy",
    "draw_training",
    "evaluate",
    "filter_top",
    "maj_at_k",
    "majority_vote",
    "mean_over_subsets",
    "pass_at_k",
    "verify",
    "weighted_vote",
]
