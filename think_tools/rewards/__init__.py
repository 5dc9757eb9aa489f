"""
Reward functions for GRPO and RLOO; each plugs into TRL as it is, and none loads torch.

A reward of `None` says that it does not apply to a completion. TRL leaves a completion out only where every reward is
`None`; else it takes `None` for 0 in the sum (`multi_objective_aggregation="sum_then_normalize"`, the default), so
that beside a 1.0 in the same group it is a punishment. `guard(reward, fill_none=True)` gives such a completion the
mean of its group instead. The rewards here that can be `None` while they apply to others of the group are those of
language, consistency and judge; the others are `None` for a whole group, by its gold answer or its missing tests,
which changes no advantage.
"""

from .accuracy import accuracy_reward, get_accuracy_reward
from .code import get_code_reward
from .consistency import consistency_reward, get_consistency_reward
from .format import format_reward, get_format_reward, get_tag_count_reward, tag_count_reward
from .guard import guard
from .judge import get_judge_reward
from .language import get_language_consistency_reward
from .length import LENGTH_PRESETS, get_group_length_reward, get_think_length_reward
from .monitor import get_think_monitor, think_monitor

__all__ = [
    "LENGTH_PRESETS",
    "accuracy_reward",
    "consistency_reward",
    "format_reward",
    "get_accuracy_reward",
    "get_code_reward",
    "get_consistency_reward",
    "get_format_reward",
    "get_group_length_reward",
    "get_judge_reward",
    "get_language_consistency_reward",
    "get_tag_count_reward",
    "get_think_length_reward",
    "get_think_monitor",
    "guard",
    "tag_count_reward",
    "think_monitor",
]
