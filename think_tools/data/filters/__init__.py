"""Filters for reasoning data: each annotates rows with a value and a verdict, `select` drops later."""

from .apply import Filter, apply_filters, filter_report, filter_section, select
from .overlap import contamination, decontaminate, dedup
from .rules import code_block, complete, language, legible, length, repetition
from .verdicts import judge_exam, judge_quality, pass_rate, verified

__all__ = [
    "Filter", "apply_filters", "code_block", "complete", "contamination", "decontaminate", "dedup", "filter_report",
    "filter_section", "judge_exam", "judge_quality", "language", "legible", "length", "pass_rate", "repetition",
    "select", "verified",
]  # fmt: skip
