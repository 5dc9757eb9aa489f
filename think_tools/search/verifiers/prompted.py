"""Verifiers of any language model: a verdict as its next token, a judge's scores, its confidence in the text."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import cast

import torch

from ...backends import ClientBackend, Messages, SamplingParams, ScriptedBackend, TransformersBackend
from ...parsing import read_completion
from ...rewards.judge import Criteria, describe_criteria, judge_messages, read_scores
from ...templates import prompt_state
from .scores import problem_text, steps_of
from .trained import encode_output, forward, prompt_ids

logger = logging.getLogger(__name__)

# From the messages and the steps up to the one in question to a prompt whose next token is the verdict: messages for
# the chat template, or a text as it stands.
Ask = Callable[[Messages, Sequence[str]], Messages | str]

_JUDGE = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=8192)


def ask_for_verdict(messages: Messages, steps: Sequence[str]) -> Messages:
    """
    Ask any chat model in words whether the steps are correct so far; the reply is to begin with `Yes` or `No`.

    With a whole output as the only step it is P(True), https://huggingface.co/papers/2207.05221.
    """
    problem = problem_text(messages)
    solution = "\n\n".join(step.strip() for step in steps)
    question = "Is this solution correct so far? Reply with Yes or No and nothing else."
    return [{"role": "user", "content": f"{problem}\n\nA solution:\n\n{solution}\n\n{question}"}]


def ask_math_shepherd(messages: Messages, steps: Sequence[str]) -> str:
    """Math-Shepherd's form, `ки` after each step (https://huggingface.co/papers/2312.08935): `yes="+"`, `no="-"`."""
    problem = problem_text(messages)
    return problem + "".join(f" {step.strip()} ки" for step in steps)


def ask_rlhflow(messages: Messages, steps: Sequence[str]) -> Messages:
    """RLHFlow's form, a chat whose turns are the steps, each answered by `+`: `yes="+"`, `no="-"`."""
    problem = problem_text(messages)
    chat = [{"role": "user", "content": f"{problem} {steps[0].strip()}"}]
    for step in steps[1:]:
        chat += [{"role": "assistant", "content": "+"}, {"role": "user", "content": step.strip()}]
    return chat


@dataclass
class GenerativeVerifier:
    """
    Verifier of any language model: the probability that its next token is `yes` and not `no`.

    Sources: Math-Shepherd, RLHFlow's process models, P(True); verdicts after a thought, GenRM,
    https://huggingface.co/papers/2408.15240.

    Args:
        backend ([`TransformersBackend`]):
            The model. The one that answers will do: then it is self-evaluation.
        ask (`Callable`, *optional*, defaults to [`ask_for_verdict`]):
            `ask(messages, steps)` gives the prompt for the last of `steps`, as messages for the chat template or as a
            text that is taken as it stands. [`ask_math_shepherd`] and [`ask_rlhflow`] are for models of these kinds.
        yes, no (`str`, *optional*, defaults to `"Yes"` and `"No"`):
            The verdicts, one token each.
        by_step (`bool`, *optional*, defaults to `True`):
            Whether each step is asked for, one prompt each. Otherwise the whole output is one step.
        thinking ([`SamplingParams`], *optional*):
            How the verifier samples a thought of its own before each verdict; `n` must be 1. `None`: none, and the
            chat template gets `enable_thinking=False`.
        batch_size (`int`, *optional*, defaults to `8`):
            Most prompts to read at once.

    Raises:
        `ValueError`: If a verdict is not one token, or `thinking.n` is not 1; when it runs, if a prompt is longer than
        the context, or a text was asked for with `thinking`.

    Example:

    ```python
    from think_tools.backends import TransformersBackend
    from think_tools.search import GenerativeVerifier
    from think_tools.search.verifiers import ask_rlhflow

    backend = TransformersBackend(model, tokenizer)  # RLHFlow/Llama3.1-8B-PRM-Deepseek-Data
    verifier = GenerativeVerifier(backend, ask_rlhflow, yes="+", no="-")
    print(verifier([{"role": "user", "content": "1+1+1=?"}], ["1+1=2\n\n2+1=4"]))
    ```
    """

    backend: TransformersBackend
    ask: Ask = ask_for_verdict
    yes: str = "Yes"
    no: str = "No"
    by_step: bool = True
    thinking: SamplingParams | None = None
    batch_size: int = 8
    num_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        verdicts = [
            self.backend.tokenizer.encode(verdict, add_special_tokens=False) for verdict in (self.yes, self.no)
        ]
        if [len(ids) for ids in verdicts] != [1, 1]:
            raise ValueError(f"`yes` and `no` must be one token each, got {self.yes!r} and {self.no!r}: {verdicts}.")
        if self.thinking and self.thinking.n != 1:
            raise ValueError(f"`thinking.n` must be 1, got {self.thinking.n}: one thought before each verdict.")
        self._verdict_ids = [verdict_id for [verdict_id] in verdicts]

    def __call__(self, messages: Messages, texts: Sequence[str]) -> list[list[float]]:
        outputs = [steps_of(text, self.backend.fmt) if self.by_step else [text] for text in texts]
        asked = [self.ask(messages, steps[: i + 1]) for steps in outputs for i in range(len(steps))]
        rows = self._encode(asked)
        self.num_tokens += sum(map(len, rows))
        scores = iter(
            [
                logits[end, self._verdict_ids].softmax(-1)[0].item()
                for output, ends in forward(self.backend.model, rows, self.batch_size, last_only=True)
                for logits, end in zip(output.double(), ends, strict=True)
            ]
        )
        return [[next(scores) for _ in steps] for steps in outputs]

    def _encode(self, asked: list[Messages | str]) -> list[list[int]]:
        """Ids of each prompt, and of the thought after it."""
        tokenizer = self.backend.tokenizer
        rows = [
            tokenizer.encode(prompt)
            if isinstance(prompt, str)
            else prompt_ids(tokenizer, prompt, enable_thinking=bool(self.thinking))
            for prompt in asked
        ]
        close = self.backend.fmt.close + "\n\n"
        if not self.thinking:
            # A template that always opens the reasoning: the verdict comes after it.
            opened = prompt_state(tokenizer, fmt=self.backend.fmt, enable_thinking=False) == "open"
            thoughts = [close if opened and not isinstance(prompt, str) else "" for prompt in asked]
        elif any(isinstance(prompt, str) for prompt in asked):
            raise ValueError("`thinking` needs an `ask` that gives messages: a text has no place for a thought.")
        else:
            sampled = self.backend.sample(cast(list[Messages], asked), self.thinking, enable_thinking=True)
            self.num_tokens += sum(candidate.num_prompt_tokens + candidate.num_tokens for [candidate] in sampled)
            thoughts = [
                ""
                if candidate.trace.reasoning is None
                else candidate.text.partition(self.backend.fmt.close)[0] + close
                for [candidate] in sampled
            ]
        return [
            ids + tokenizer.encode(thought, add_special_tokens=False)
            for ids, thought in zip(rows, thoughts, strict=True)
        ]


@dataclass
class ConfidenceVerifier:
    """
    Outcome verifier of a model's own confidence: the geometric mean of the probabilities of the output's tokens.

    Candidates sampled with `SamplingParams(logprobs=True)` have it already, as `logprob`; this reads any text.

    Args:
        backend ([`TransformersBackend`]):
            The model, the one that answered or another.
        batch_size (`int`, *optional*, defaults to `8`):
            Most outputs to read at once.

    Raises:
        `ValueError`: When it runs, if an output is longer than the context.

    Example:

    ```python
    >>> from think_tools.backends import TransformersBackend
    >>> from think_tools.search import ConfidenceVerifier
    >>> from think_tools.tiny import load_tiny

    >>> verifier = ConfidenceVerifier(TransformersBackend(*load_tiny()))
    >>> right, wrong = verifier([{"role": "user", "content": "12*10=?"}], ["120", "977"])
    >>> right > wrong
    True
    ```
    """

    backend: TransformersBackend
    batch_size: int = 8
    num_tokens: int = field(default=0, init=False)

    def __call__(self, messages: Messages, texts: Sequence[str]) -> list[float]:
        begin = len(prompt_ids(self.backend.tokenizer, messages))
        rows = [encode_output(self.backend.tokenizer, messages, text) for text in texts]
        self.num_tokens += sum(map(len, rows))
        scores = []
        for logits, ends in forward(self.backend.model, rows, self.batch_size):
            for i, end in enumerate(ends):
                said = torch.tensor(rows[len(scores)][begin:], device=logits.device)
                logprobs = logits[i, begin - 1 : end].float().log_softmax(-1).gather(-1, said[:, None])
                scores.append(float(logprobs.mean().exp()))
        return scores


@dataclass
class JudgeVerifier:
    """
    Outcome verifier of a chat model that gives scores from 0 to 10, with the prompt of [`get_judge_reward`].

    It sees the output quoted as data, and only the lines that it was asked for are read. It is asked a second time if
    its reply has no score; an output without one even then gets 0.0, and the log says so.

    Args:
        backend ([`ClientBackend`], [`TransformersBackend`] or [`ScriptedBackend`]):
            The judge.
        criteria (`str`, `Sequence[str]` or `dict[str, str]`, *optional*, defaults to `"correctness"`):
            Names, or your own with what each asks for; the score is their mean, in `[0, 1]`.
        params ([`SamplingParams`], *optional*):
            How it samples; `n` must be 1. Greedy, an unreadable reply would come back as it was.

    Raises:
        `ValueError`: If a criterion is unknown.

    Example:

    ```python
    >>> from think_tools.backends import ScriptedBackend
    >>> from think_tools.search import JudgeVerifier

    >>> judge = ScriptedBackend(lambda messages, prefix, number: "The sum is right.\\ncorrectness: 9")
    >>> JudgeVerifier(judge)([{"role": "user", "content": "1+1=?"}], ["<think>1+1</think>2"])
    [0.9]
    ```
    """

    backend: ClientBackend | TransformersBackend | ScriptedBackend
    criteria: Criteria = "correctness"
    params: SamplingParams = _JUDGE
    num_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._criteria = describe_criteria(self.criteria)

    def __call__(self, messages: Messages, texts: Sequence[str]) -> list[float]:
        question = problem_text(messages)
        found: dict[int, float] = {}
        for _ in range(2):
            left = [i for i in range(len(texts)) if i not in found]
            prompts = [judge_messages(self._criteria, question, read_completion(texts[i])) for i in left]
            for i, [reply] in zip(left, self.backend.sample(prompts, self.params) if left else [], strict=True):
                self.num_tokens += reply.num_prompt_tokens + reply.num_tokens
                if scores := read_scores(reply.trace.answer, self._criteria):
                    found[i] = fmean(scores.values()) / 10
        if len(found) < len(texts):
            logger.warning("The judge gave no score for %d of %d outputs: 0.0.", len(texts) - len(found), len(texts))
        return [found.get(i, 0.0) for i in range(len(texts))]
