"""A backend without a model, which says what a function of yours says: for tests, and to try a search out."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..parsing import parse
from .sampling import Candidate, Messages, SamplingParams

# Messages, the assistant's text so far, and how often it was continued from there -> all that is still to come.
Script = Callable[[Messages, str, int], str]


class ScriptedBackend:
    """
    Answers by a script, with the methods of [`TransformersBackend`]. Each character is one token, whose id is its code
    point; the end of a turn is token `0`.

    Args:
        script (`Callable`):
            `script(messages, prefix, number)` gives the rest of the assistant's turn after the text `prefix`, which
            is empty for a new one. `number` counts the samples of the same messages and prefix from 0, over all
            calls, so that 4 + 4 samples are those of 8. Stop texts and `max_tokens` cut what it gives.
        logprob (`Callable`, *optional*):
            The `logprob` and `answer_logprob` of a candidate by its text. `None` gives none, and
            `SamplingParams(logprobs=True)` is refused.

    Attributes:
        calls (`list`): `(messages, prefix, number)` of each sample.

    Example:

    ```python
    >>> from think_tools.backends import SamplingParams, ScriptedBackend

    >>> backend = ScriptedBackend(lambda messages, prefix, number: "<think>6+6</think>" + "12 13".split()[number % 2])
    >>> [candidates] = backend.sample([[{"role": "user", "content": "6+6=?"}]], SamplingParams(n=3))
    >>> [candidate.trace.answer for candidate in candidates]
    ['12', '13', '12']
    ```
    """

    supports_extend = True
    supports_thinking_budget = False

    def __init__(self, script: Script, *, logprob: Callable[[str], float] | None = None) -> None:
        self.script = script
        self.logprob = logprob
        self.supports_logprobs = logprob is not None
        self.calls: list[tuple[Messages, str, int]] = []
        self._numbers: Counter[tuple[str, str]] = Counter()

    def sample(
        self, prompts: Sequence[Messages], params: SamplingParams, **chat_template_kwargs: Any
    ) -> list[list[Candidate]]:
        """`params.n` candidates for each prompt, as [`TransformersBackend.sample`] gives them."""
        return self.extend(prompts, [""] * len(prompts), params, **chat_template_kwargs)

    def extend(
        self,
        prompts: Sequence[Messages],
        prefixes: Sequence[Sequence[int] | str],
        params: SamplingParams,
        **chat_template_kwargs: Any,
    ) -> list[list[Candidate]]:
        """`params.n` continuations of each prefix, as [`TransformersBackend.extend`] gives them."""
        if params.thinking_token_budget is not None or params.num_wait or (params.logprobs and not self.logprob):
            raise ValueError("`params` asks for a think budget, waits or log-probabilities, which no script has.")
        texts = [prefix if isinstance(prefix, str) else "".join(map(chr, prefix)) for prefix in prefixes]
        pairs = list(zip(prompts, texts, strict=True))
        return [[self._continue(messages, prefix, params) for _ in range(params.n)] for messages, prefix in pairs]

    def _continue(self, messages: Messages, prefix: str, params: SamplingParams) -> Candidate:
        key = (repr(messages), prefix)
        number = self._numbers[key]
        self._numbers[key] += 1
        self.calls.append((messages, prefix, number))
        text = self.script(messages, prefix, number)
        ends = [(text.index(stop) + len(stop), stop) for stop in params.stop if stop in text]
        end, stop_reason = min(ends, default=(len(text), None))
        text, ids = text[:end], [*map(ord, text[:end]), *([] if stop_reason else [0])]
        if cut := len(ids) > params.max_tokens:
            ids, stop_reason = ids[: params.max_tokens], None
            text = text[: len(ids)]
        finished = False if cut else None if stop_reason else True
        trace = parse(prefix + text, finished=finished)
        thought, closed, _ = (prefix + text).partition("</think>")
        reasoning = 0 if trace.reasoning is None else len(thought + closed)
        mean = self.logprob(text) if params.logprobs and self.logprob else None
        return Candidate(
            text=text,
            trace=trace,
            finish_reason="length" if cut else "stop",
            num_tokens=len(ids),
            num_reasoning_tokens=max(0, reasoning - len(prefix)),
            num_prompt_tokens=sum(len(str(turn["content"])) for turn in messages) + len(prefix),
            stop_reason=stop_reason,
            token_ids=tuple(ids),
            logprob=mean,
            answer_logprob=mean,
        )
