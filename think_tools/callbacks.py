"""Watch a model learn to think: held-out questions, answered and graded while it trains."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from accelerate.utils import gather_object
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.models.utils import unwrap_model_for_generation

from .backends import Candidate, SamplingParams, TransformersBackend
from .formats import ThinkFormat
from .rewards import accuracy_reward


class ThinkEvalCallback(TrainerCallback):
    r"""
    Answer held-out questions every few steps, and log how often the model thinks, for how long, and to what end.

    It works in every trainer ([`~trl.SFTTrainer`], [`~trl.GRPOTrainer`] …), whose own evaluation measures a loss or a
    training reward and cannot tell reasoning from answer. The numbers go through the trainer's `log`, so that the log
    history, trackio, TensorBoard and Weights & Biases all get them. The questions are answered once before the first
    step, every `every` steps, and after the last step. Training itself is left as it was: the model goes back to its
    mode, and the random numbers that training draws are the same as without the callback.

    Logged, each with the prefix `eval_` (shares and accuracy in `[0.0, 1.0]`):

    - `accuracy`: share of right answers, by `accuracy_reward` on the answer part; rows whose `solution` is `None` or
      cannot be read are not counted, and without any other row there is no accuracy;
    - `closed`: share that closed its reasoning; `truncated`: share cut by `max_tokens` inside the reasoning;
      `no_think`: share without reasoning; `unclosed`: share that ended its turn inside it (they add up to 1);
    - `clipped`: share stopped by `max_tokens`, inside the reasoning or in the answer;
    - `reasoning_tokens`: mean number of reasoning tokens, of those that think; absent if none does;
    - `answer_tokens`: mean number of the other tokens;
    - `num_questions`: how many questions were answered, `n` times each.

    Args:
        dataset ([`~datasets.Dataset`]):
            Held-out rows with a column `prompt` (list of messages, the assistant's turn left out) and a column
            `solution` (gold answer).
        trainer ([`~transformers.Trainer`]):
            The trainer that is watched. Callbacks are not told which trainer calls them, and only a trainer can log
            (TRL's `LogCompletionsCallback` takes it for the same reason).
        every (`int`):
            Number of optimizer steps between two rounds.
        params ([`~think_tools.backends.SamplingParams`], *optional*):
            How to sample. `None` is greedy decoding of one answer of at most 1,024 tokens. Without a `seed` of its own
            it gets the trainer's.
        chat_template_kwargs (`dict`, *optional*):
            Variables of the chat template, such as `{"enable_thinking": False}`.
        batch_size (`int`, *optional*):
            Most sequences to generate at once. `None` is the trainer's `per_device_eval_batch_size`.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning. `None` finds them, see [`~think_tools.backends.TransformersBackend`].

    Raises:
        `ValueError`: If `every` is below 1, or `dataset` is empty or lacks one of the two columns.

    Example:

    ```python
    from think_tools.callbacks import ThinkEvalCallback
    from think_tools.tiny import arithmetic_problems

    trainer.add_callback(ThinkEvalCallback(arithmetic_problems("test", n=100), trainer=trainer, every=20))
    ```
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        trainer: Trainer,
        every: int,
        params: SamplingParams | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        batch_size: int | None = None,
        fmt: ThinkFormat | None = None,
    ):
        if every < 1:
            raise ValueError(f"`every` must be at least 1 step, got {every}.")
        missing = {"prompt", "solution"} - set(dataset.column_names)
        if missing or not len(dataset):
            raise ValueError(
                f"`dataset` must have rows with the columns 'prompt' and 'solution', got {len(dataset)} rows with the "
                f"columns {dataset.column_names}. Convert it with `to_think` first."
            )
        self.rows = dataset.select_columns(["prompt", "solution"]).to_list()
        self.trainer = trainer
        self.every = every
        params = params or SamplingParams(temperature=0.0)
        # With a seed the backend puts torch's generators back, and training draws what it would have drawn.
        self.params = params if params.seed is not None else replace(params, seed=trainer.args.seed)
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.batch_size = batch_size or trainer.args.per_device_eval_batch_size
        self.fmt = fmt
        self._last_step: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._log_evaluation(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.every == 0:
            self._log_evaluation(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step != self._last_step:
            self._log_evaluation(state, control)

    def evaluate(self) -> dict[str, float]:
        """
        Answer and grade the questions now, without logging.

        With several processes each answers a part of the questions, and every one gets the numbers of all.

        Returns:
            `dict[str, float]`: The metrics listed in the class, without prefix.
        """
        trainer, accelerator = self.trainer, self.trainer.accelerator
        part = self.rows[accelerator.process_index :: accelerator.num_processes]
        with unwrap_model_for_generation(trainer.model_wrapped, accelerator) as model:
            tokenizer = cast(PreTrainedTokenizerBase, trainer.processing_class)
            backend = TransformersBackend(model, tokenizer, fmt=self.fmt)
            answered = backend.sample(
                [row["prompt"] for row in part], self.params, batch_size=self.batch_size, **self.chat_template_kwargs
            )
        pairs = [(row["solution"], candidates) for row, candidates in zip(part, answered, strict=True)]
        return _summarize(gather_object(pairs))

    def _log_evaluation(self, state: TrainerState, control: TrainerControl) -> None:
        self._last_step = state.global_step
        metrics = {f"eval_{name}": value for name, value in self.evaluate().items()}
        should_log = control.should_log
        # Not `self.trainer.log`: TRL's trainers override it to average and clear the training metrics gathered so far,
        # and GRPO prints and stores its last completions once more.
        Trainer.log(self.trainer, metrics)
        # Every log takes the request for a log off the list, also the one for this step's training loss.
        control.should_log = should_log


def _summarize(answered: list[tuple[str | None, list[Candidate]]]) -> dict[str, float]:
    """Metrics of questions given as pairs of gold answer and candidates."""
    candidates = [candidate for _, group in answered for candidate in group]
    statuses = Counter(candidate.trace.status for candidate in candidates)
    thinking = [c.num_reasoning_tokens for c in candidates if c.trace.reasoning is not None]
    metrics = {
        "closed": statuses["complete"] / len(candidates),
        "truncated": statuses["truncated"] / len(candidates),
        "no_think": statuses["no_think"] / len(candidates),
        "unclosed": statuses["unclosed"] / len(candidates),
        "clipped": _mean([c.finish_reason == "length" for c in candidates]),
        "answer_tokens": _mean([c.num_tokens - c.num_reasoning_tokens for c in candidates]),
        "num_questions": float(len(answered)),
    }
    if thinking:
        metrics["reasoning_tokens"] = _mean(thinking)
    graded = [(candidate, gold) for gold, group in answered if gold is not None for candidate in group]
    rewards = accuracy_reward(
        completions=[[candidate.trace.message()] for candidate, _ in graded], solution=[gold for _, gold in graded]
    )
    readable = [reward for reward in rewards if reward is not None]
    if readable:
        metrics["accuracy"] = _mean(readable)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
