"""Control of what a transformers model writes: how long it thinks, what its answer may be, how sure it was."""

from .budget import SuppressReflection, ThinkingBudget
from .confidence import Confidence, ConfidenceTracker
from .grammar import after_think
from .rollout import get_budget_rollout
from .stages import StagedOutput, generate_in_stages

__all__ = [
    "Confidence",
    "ConfidenceTracker",
    "StagedOutput",
    "SuppressReflection",
    "ThinkingBudget",
    "after_think",
    "generate_in_stages",
    "get_budget_rollout",
]
