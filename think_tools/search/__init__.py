"""Get more out of a model that can already think, by spending more tokens at test time."""

from .beam_search import beam_search, dvts
from .best_of_n import best_of_n
from .candidates import collect
from .curves import draw_accuracy, draw_training
from .evaluate import evaluate
from .mcts import mcts
from .revise import parallel_sequential, sequential_revision
from .self_consistency import self_consistency
from .session import Options, SearchResult, Usage
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
    votes_missing,
    weighted_vote,
)

__all__ = [
    "ConfidenceVerifier",
    "GenerativeVerifier",
    "JudgeVerifier",
    "Options",
    "OutcomeVerifier",
    "ProcessVerifier",
    "RewardVerifier",
    "SearchResult",
    "Usage",
    "beam_search",
    "best_candidate",
    "best_of_n",
    "canonical_answers",
    "collect",
    "draw_accuracy",
    "draw_training",
    "dvts",
    "evaluate",
    "filter_top",
    "maj_at_k",
    "majority_vote",
    "mcts",
    "mean_over_subsets",
    "parallel_sequential",
    "pass_at_k",
    "self_consistency",
    "sequential_revision",
    "verify",
    "votes_missing",
    "weighted_vote",
]
