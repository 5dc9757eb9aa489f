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
        stop (`tuple[str]`, *optional*, defaults to `()`):
            Texts that end a candidate when the new text has one of them; it stays in the text. A think budget and
            end-of-turn tokens need none.
        logprobs (`bool`, *optional*, defaults to `False`):
            Whether to compute `logprob` and `answer_logprob` of each candidate.
        thinking_token_budget (`int`, *optional*):
            Most tokens of reasoning; then it is closed and the answer begins. `None` is no limit but `max_tokens`.
        num_wait (`int`, *optional*, defaults to `0`):
            Times to put a "Wait" where the model would close its reasoning, so that it thinks on.
        seed (`int`, *optional*):
            Seed of the draws; the state of torch's generators is left as it was. With `None` they are drawn from that
            state, so two calls differ. The same seed gives the same texts only with the same batches.

    Raises:
        `ValueError`: If a value is out of its range.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams

    >>> params = SamplingParams(n=8, temperature=0.6, top_p=0.95, stop=("</step>",))
    >>> params.max_tokens
    1024
    ```
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    thinking_token_budget: int | None = None
    num_wait: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        lowest_of = {"n": 1, "temperature": 0, "top_k": 0, "max_tokens": 1, "num_wait": 0}
        if self.thinking_token_budget is not None:
            lowest_of["thinking_token_budget"] = 0
        for name, lowest in lowest_of.items():
            if not vars(self)[name] >= lowest:  # also refuses NaN
                raise ValueError(f"`{name}` must be at least {lowest}, got {vars(self)[name]}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p}.")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"`n` must be 1 with `temperature=0`, got {self.n}: all candidates would be the same.")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"`stop` must be a tuple of texts, none of them empty, got {self.stop!r}.")


@dataclass(frozen=True)
class Candidate:
    """
    One output, or, from `extend`, the continuation of one.

    Args:
        text (`str`):
            What the model wrote, markers and stop text included, without the end-of-turn token. From `extend` only
            what is new.
        trace ([`Trace`]):
            The output, parsed; from `extend` the whole of it, prefix included.
        finish_reason (`str`):
            `"stop"` when the model ended its turn or wrote a stop text, `"length"` when `max_tokens` or the model's
            context cut it off.
        num_tokens (`int`):
            Generated tokens, end of turn included; from `extend` only the new ones.
        num_reasoning_tokens (`int`):
            Those of them that belong to the reasoning, markers included; 0 when the model did not think.
        num_prompt_tokens (`int`, *optional*, defaults to `0`):
            Tokens of the prompt, a prefix included; 0 where nobody counted them.
        stop_reason (`str`, *optional*):
            The stop text that ended it. `None` with `finish_reason="stop"`: the model ended its turn, and there is
            nothing to extend.
        token_ids (`tuple[int]`, *optional*, defaults to `()`):
            The generated tokens, end of turn included. Empty from a server: `extend` takes the text there, so
            `candidate.token_ids or candidate.text` is right everywhere.
        logprob (`float`, *optional*):
            Mean log-probability of the generated tokens before temperature, top-p and top-k, at most 0. `None`
            without `SamplingParams(logprobs=True)`.
        answer_logprob (`float`, *optional*):
            The same of the tokens behind the reasoning alone; `None` also where there are none.
    """

    text: str
    trace: Trace
    finish_reason: Literal["stop", "length"]
    num_tokens: int
    num_reasoning_tokens: int
    num_prompt_tokens: int = 0
    stop_reason: str | None = None
    token_ids: tuple[int, ...] = ()
    logprob: float | None = None
    answer_logprob: float | None = None


@dataclass(frozen=True)
class Delta:
    """New text of one `part` (`"reasoning"` or `"answer"`), and the tokens generated so far in all."""

    part: Part
    text: str
    num_tokens: int
