"""Reasoning data: from other people's columns to one row type, and from rows to what a trainer is fed."""

from .convert import to_think
from .distill import distill
from .prepare import prepare_sft

__all__ = ["distill", "prepare_sft", "to_think"]
