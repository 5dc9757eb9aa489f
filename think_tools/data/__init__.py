"""Reasoning data: from other people's columns to one row type, and from rows to what a trainer is fed."""

from .convert import to_think
from .distill import distill
from .journeys import journey, stream_of_search
from .prepare import prepare_sft

__all__ = ["distill", "journey", "prepare_sft", "stream_of_search", "to_think"]
