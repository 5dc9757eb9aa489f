"""A trainer with what every check needs of it, and the check of length limits, which all trainers have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..formats import ThinkFormat
from ..templates import Finding

FEW = 0.05  # a length limit that keeps 95 % of the traces is a choice, one that cuts more is an accident


@dataclass(frozen=True)
class Run:
    """A trainer with what every check needs of it: tokenizer, markers, end of a turn, sampled rows."""

    trainer: Any
    tokenizer: PreTrainedTokenizerBase
    fmt: ThinkFormat
    end: Any
    rows: list[dict[str, Any]]

    def ids(self, chat: list[dict], **kwargs: Any) -> list[int]:
        return self.tokenizer.apply_chat_template(chat, **kwargs)["input_ids"]  # type: ignore[index]

    def asked(self, prompt: list[dict], kwargs: dict[str, Any]) -> list[int]:
        return self.ids(prompt, add_generation_prompt=True, **kwargs)

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode([token for token in ids if token >= 0]))  # without ignored labels


def too_long(lengths: list[int], limit: int | None, name: str) -> list[Finding]:
    """What a limit of tokens cuts off."""
    over = sum(length > limit for length in lengths) if limit else 0
    if not over:
        return []
    most = sorted(lengths)[int((1 - FEW) * (len(lengths) - 1))]
    what = f"`{name}={limit}` cuts {over} of {len(lengths)} traces: 95 % have at most {most} tokens"
    severity = "error" if over > FEW * len(lengths) else "warning"
    return [Finding(severity, what, f"`{name}={max(lengths)}` keeps all; or leave the longer ones out")]
