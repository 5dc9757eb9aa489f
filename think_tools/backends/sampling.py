"""How to sample, and what comes back, whatever the model runs on."""

from dataclasses import dataclass
from typing import Any, Literal

from ..parsing import Part, Trace

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class SamplingParams:
    """
    How to sample, in vLLM's names. These values replace those of the model's generation config; what has no name here,
    such as its repetition penalty, stays in force.

    Args:
        n (`int`, *optional*, defaults to `1`):
            Candidates per prompt.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits. `0` always takes the likeliest token, and then `n` must be 1.
        top_p (`float`, *optional*, defaults to `1.0`):
            Share of the probability to draw from, likeliest tokens first, in `(0, 1]`.
        top_k (`int`, *optional*, defaults to `0`):
            Number of likeliest tokens to draw from. `0` draws from all.
        max_tokens (`int`, *optional*, defaults to `1024`):
            Most tokens that a candidate may have, reasoning and end of turn included.
        seed (`int`, *optional*):
            Seed of the draws; the state of torch's generators is left as it was. With `None` they are drawn from that
            state, so two calls differ. The same seed gives the same texts only with the same batches.

    Raises:
        `ValueError`: If a value is out of its range.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams

    >>> SamplingParams(n=8, temperature=0.6, top_p=0.95)
    SamplingParams(n=8, temperature=0.6, top_p=0.95, top_k=0, max_tokens=1024, seed=None)
    ```
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in {"n": 1, "temperature": 0, "top_k": 0, "max_tokens": 1}.items():
            if not vars(self)[name] >= lowest:  # also refuses NaN
                raise ValueError(f"`{name}` must be at least {lowest}, got {vars(self)[name]}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p}.")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"`n` must be 1 with `temperature=0`, got {self.n}: all candidates would be the same.")


@dataclass(frozen=True)
class Candidate:
    """
    One finished output.

    Args:
        text (`str`):
            What the model wrote, markers included, without the end-of-turn token.
        trace ([`Trace`]):
            The same, parsed.
        finish_reason (`str`):
            `"stop"` when the model ended its turn, `"length"` when `max_tokens` or the model's context did.
        num_tokens (`int`):
            Generated tokens, end of turn included.
        num_reasoning_tokens (`int`):
            Those of them that belong to the reasoning, markers included; 0 when the model did not think.
        num_prompt_tokens (`int`, *optional*, defaults to `0`):
            Tokens of the prompt, as a server counts them; 0 where nobody did.
    """

    text: str
    trace: Trace
    finish_reason: Literal["stop", "length"]
    num_tokens: int
    num_reasoning_tokens: int
    num_prompt_tokens: int = 0


@dataclass(frozen=True)
class Delta:
    """New text of one `part` (`"reasoning"` or `"answer"`), and the tokens generated so far in all."""

    part: Part
    text: str
    num_tokens: int
