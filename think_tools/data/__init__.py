"""Reasoning data: from other people's columns to one row type, and from rows to what a trainer is fed."""

from .convert import to_think
from .distill import distill
from .explain import check_dataset, explain
from .filters import apply_filters, decontaminate, select
from .journeys import journey, stream_of_search
from .preferences import to_preference
from .prepare import prepare_sft
from .rollouts import label_steps, rejection_sample, sample_candidates

__all__ = [
    "apply_filters", "check_dataset", "decontaminate", "distill", "explain", "journey", "label_steps", "prepare_sft",
    "rejection_sample", "sample_candidates", "select", "stream_of_search", "to_preference", "to_think",
]  # fmt: skip
