"""Reward functions for GRPO and RLOO; each plugs into TRL as it is, and none loads torch."""

from .accuracy import accuracy_reward, get_accuracy_reward
from .format import format_reward, get_format_reward
from .monitor import get_think_monitor, think_monitor

__all__ = [
    "accuracy_reward",
    "format_reward",
    "get_accuracy_reward",
    "get_format_reward",
    "get_think_monitor",
    "think_monitor",
]
