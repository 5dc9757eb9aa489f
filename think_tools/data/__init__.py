"""Reasoning data: from other people's columns to one row type, and from rows to what a trainer is fed."""

from .convert import to_think
from .distill import distill
from .journeys import journey, stream_of_search
from .preferences import to_preference
from .prepare import prepare_sft
from .rollouts import label_steps

__all__ = ["distill", "journey", "label_steps", "prepare_sft", "stream_of_search", "to_preference", "to_think"]
