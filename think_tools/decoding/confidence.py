"""How sure a model was of what it wrote, measured while it writes and without keeping its logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..formats import ThinkFormat
from .phases import ANSWER, Rows, end_tokens, refused


@dataclass(frozen=True)
class Confidence:
    """
    How sure a model was of one output, under its own distribution at temperature 1. Higher is surer.

    The confidence of a token is the mean of -log P over the likeliest tokens of its step, at least 0, and a group is
    `window` tokens in a row, or the whole output if it is shorter
    (DeepConf, https://huggingface.co/papers/2508.15260).

    Args:
        logprob (`float`):
            Mean log-probability of all tokens, end of turn included, at most 0.
        answer_logprob (`float` or `None`):
            That of the tokens after the closing marker; `None` if there is none.
        mean (`float`):
            Mean confidence of the tokens.
        lowest_group (`float`):
            Mean confidence of the least sure group.
        bottom (`float`):
            Mean over the least sure tenth of the groups.
        tail (`float`):
            Mean confidence of the last group.
    """

    logprob: float
    answer_logprob: float | None
    mean: float
    lowest_group: float
    bottom: float
    tail: float


class ConfidenceTracker(LogitsProcessor):
    """
    Measures [`Confidence`] during a generation: two numbers per token are kept, and the logits of one step.

    It changes nothing. Put it first among the processors, so that it sees what the model itself thinks; temperature
    and top-p come after all processors anyway. Not for beam search, which reorders rows.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model's tokenizer.
        k (`int`, *optional*, defaults to `20`):
            How many of the likeliest tokens make the confidence of a step.
        window (`int`, *optional*, defaults to `2048`):
            Tokens of a group.
        eos_token_ids (`list[int]`, *optional*):
            Tokens that end a turn, beside the tokenizer's own and those that the format names.
        fmt ([`ThinkFormat`], *optional*):
            The markers. `None` finds them by [`detect_format`], or else takes `THINK`.

    Example:

    ```python
    >>> from think_tools.decoding import ConfidenceTracker
    >>> from think_tools.tiny import load_tiny

    >>> model, tokenizer = load_tiny("thinker")
    >>> prompt = tokenizer.apply_chat_template(
    ...     [{"role": "user", "content": "12*13=?"}], add_generation_prompt=True, return_tensors="pt"
    ... )
    >>> tracker = ConfidenceTracker(tokenizer)
    >>> output = model.generate(**prompt, logits_processor=[tracker], max_new_tokens=300, do_sample=False)
    >>> [confidence] = tracker.finish(output)
    >>> confidence.answer_logprob > -0.1
    True
    ```
    """

    supports_continuous_batching = refused  # type: ignore[assignment]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        k: int = 20,
        window: int = 2048,
        eos_token_ids: Sequence[int] = (),
        fmt: ThinkFormat | None = None,
    ) -> None:
        self._rows, self._k, self._window = Rows(tokenizer, fmt), k, window
        self._ends = {*end_tokens(tokenizer, self._rows.table.fmt, eos_token_ids)}
        self._steps: list[tuple[torch.Tensor, torch.Tensor]] = []  # log-probability and confidence, (batch,) each
        self._last: torch.Tensor | None = None  # log-probabilities of the last step, (batch, vocabulary)
        self._begin = self._length = -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Measure a step; `scores` of shape `(batch, vocabulary)` come back as they are."""
        if self._last is None or input_ids.shape[1] != self._length + 1 or len(self._last) != len(scores):
            self._steps, self._begin = [], input_ids.shape[1]
        else:
            self._take(input_ids[:, -1])
        self._length, self._last = input_ids.shape[1], scores.float().log_softmax(-1)
        return scores

    def _take(self, tokens: torch.Tensor) -> None:
        assert self._last is not None
        likeliest = self._last.topk(min(self._k, self._last.shape[1])).values
        self._steps.append((self._last.gather(1, tokens[:, None])[:, 0], -likeliest.mean(1)))

    def finish(self, sequences: torch.Tensor) -> list[Confidence]:
        """
        The confidence of each row, once per generation.

        Args:
            sequences (`torch.Tensor` of shape `(batch, sequence)`):
                What `generate` returned.

        Returns:
            `list[Confidence]`: One per row.

        Raises:
            `ValueError`: If it followed no generation, or another one than that of these rows.
        """
        new = sequences.shape[1] - self._begin
        if self._last is None or len(self._last) != len(sequences) or not 0 < new <= len(self._steps) + 1:
            raise ValueError(
                f"`sequences` of shape {tuple(sequences.shape)} are not what this tracker followed: pass the output "
                "of the `generate` call that had it in `logits_processor`, once."
            )
        if new > len(self._steps):
            self._take(sequences[:, -1])
        logprobs, confidences = (torch.stack(values, 1).cpu() for values in zip(*self._steps, strict=True))
        self._rows.update(sequences[:, : self._begin])
        starts, table, results = self._rows.states, self._rows.table, []
        for row, ids in enumerate(sequences[:, self._begin :].tolist()):
            length = next((i + 1 for i, token in enumerate(ids) if token in self._ends), new)
            state, answer = starts[row], []
            for i, token in enumerate(ids[:length]):
                if table.phases[state] == ANSWER:
                    answer.append(i)
                state = table.columns.get(token, table.other)[state]
            sure = confidences[row, :length]
            groups = sure.unfold(0, min(self._window, length), 1).mean(1).sort().values
            results.append(
                Confidence(
                    logprob=logprobs[row, :length].mean().item(),
                    answer_logprob=logprobs[row, answer].mean().item() if answer else None,
                    mean=sure.mean().item(),
                    lowest_group=groups[0].item(),
                    bottom=groups[: max(1, len(groups) // 10)].mean().item(),
                    tail=sure[-self._window :].mean().item(),
                )
            )
        self._last, self._begin = None, -1
        return results
