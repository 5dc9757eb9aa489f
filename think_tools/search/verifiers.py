"""Tell good outputs from bad: by a reward, a trained outcome or process model, any chat model, or its confidence."""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..backends import Candidate, ClientBackend, Messages, SamplingParams, ScriptedBackend, TransformersBackend
from ..backends.client import run_sync
from ..parsing import parse, read_completion
from ..rewards.judge import Criteria, describe_criteria, judge_messages, read_scores
from ..steps import split_steps

logger = logging.getLogger(__name__)

# From the messages of one problem and several outputs, whole or cut after a step, to a score for each (outcome), or to
# the scores of the steps of each (process); the higher the better.
Verifier = Callable[[Messages, Sequence[str]], Sequence[float] | Sequence[Sequence[float]]]
Reduce = Literal["last", "min", "prod", "mean"]
# From the messages and the steps up to the one in question to a prompt whose next token is the verdict: messages for
# the chat template, or a text as it stands.
Ask = Callable[[Messages, Sequence[str]], Messages | str]

_REDUCE: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "prod": math.prod,
    "mean": fmean,
}


@runtime_checkable
class CountsTokens(Protocol):
    """A verifier that says what it costs, as all of this module do."""

    num_tokens: int


def verify(
    verifier: Verifier, messages: Messages, texts: Sequence[str], *, reduce: Reduce = "last"
) -> tuple[list[float], int]:
    """
    One score for each output, whatever the verifier, and the tokens that this took: what every search calls.

    Args:
        verifier (`Callable`):
            `verifier(messages, texts)` gives a score for each text, or a list with one score per step. One of this
            module, or any function; an attribute `num_tokens`, if it has one, counts its tokens over all calls.
        messages (`list[dict]`):
            The problem.
        texts (`Sequence[str]`):
            Outputs with their markers, whole or cut after a step.
        reduce (`str`, *optional*, defaults to `"last"`):
            Makes one score of those of the steps. `"last"` is for models that foretell whether the answer will be
            right, such as those trained on labels of [`label_steps`]; `"min"` and `"prod"` are for models that say
            whether a step is right in itself; `"mean"` forgives one bad step.

    Returns:
        `tuple[list[float], int]`: The scores, and the verifier's tokens, read and written; 0 if it does not count.

    Raises:
        `ValueError`: If `reduce` is unknown, or the verifier does not give a finite score for every text.

    Example:

    ```python
    >>> from think_tools.search.verifiers import verify

    >>> def steps(messages, texts):
    ...     return [[0.9, 0.5], [0.8]]
    >>> verify(steps, [{"role": "user", "content": "1+1+1=?"}], ["1+1=2\\n\\n2+1=4", "3"], reduce="min")
    ([0.5, 0.8], 0)
    ```
    """
    if reduce not in _REDUCE:
        raise ValueError(f"`reduce` must be one of {sorted(_REDUCE)}, got {reduce!r}.")
    before = verifier.num_tokens if isinstance(verifier, CountsTokens) else 0
    found = verifier(messages, texts) if texts else []
    spent = verifier.num_tokens - before if isinstance(verifier, CountsTokens) else 0
    if len(found) != len(texts) or any(not isinstance(score, (int, float)) and not len(score) for score in found):
        raise ValueError(f"`verifier` must give a score, or one per step, for each of {len(texts)} texts, got {found}.")
    scores = [float(s) if isinstance(s, (int, float)) else float(_REDUCE[reduce](s)) for s in found]
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"`verifier` must give finite scores, got {scores}.")
    return scores, spent


def steps_of(text: str) -> list[str]:
    """
    The steps of an output that a process verifier scores: those of its reasoning, or of the answer if it has none.

    Example:

    ```python
    >>> from think_tools.search.verifiers import steps_of

    >>> steps_of("<think>2*3=6\\n\\n1+6=7</think>7"), steps_of("<think>2*3=6\\n\\n"), steps_of("7")
    (['2*3=6\\n\\n', '1+6=7'], ['2*3=6'], ['7'])
    ```
    """
    trace = read_completion(text)
    return split_steps(trace.reasoning or trace.answer) or [""]
