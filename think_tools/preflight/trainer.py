"""Check a built trainer, and refuse one that would not learn what is meant."""

import itertools
import logging
import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from datasets import IterableDataset
from transformers import ProcessorMixin
from trl import DPOTrainer, GRPOTrainer, RLOOTrainer, SFTTrainer

from ..formats import THINK, ThinkFormat, detect_format
from ..templates import Finding, end_of_turn
from .rewards import check_rollouts
from .rows import check_rows
from .run import Run

logger = logging.getLogger(__name__)

SupportedTrainer = SFTTrainer | DPOTrainer | GRPOTrainer | RLOOTrainer
NEAR = 0.1  # of the size of an ordinary row: new rows are the mean of the others, unused ones are nearly zero
# Settings that decide what is learned or cut, and whose defaults nobody sees.
SETTINGS = ("beta", "epsilon", "max_length", "max_completion_length", "mask_truncated_completions")


def preflight(
    trainer: SupportedTrainer, *, num_rows: int = 64, seed: int = 0, fmt: ThinkFormat | None = None
) -> list[Finding]:
    """
    Refuse a trainer that would run without an error and learn something else than what is meant.

    One line before `trainer.train()`. Nothing is trained or generated. [`inspect_trainer`] tells what is checked.

    Args:
        trainer ([`~trl.SFTTrainer`], [`~trl.DPOTrainer`], [`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]):
            The trainer, as built.
        num_rows (`int`, *optional*, defaults to `64`):
            Most rows of the training data to look at; of a stream, the first ones.
        seed (`int`, *optional*, defaults to `0`):
            Seed of their choice.
        fmt ([`ThinkFormat`], *optional*):
            The markers of the reasoning. `None`: those that `detect_format` finds, else `THINK`.

    Returns:
        `list[Finding]`: Warnings and notes, which are logged as well.

    Raises:
        `TypeError`: If `trainer` is none of the four.
        `ValueError`: If there is an error; its text lists all findings. Also if `num_rows` is below 1.

    Example:

    ```python
    from think_tools.preflight import preflight

    preflight(trainer)
    trainer.train()
    ```
    """
    findings = inspect_trainer(trainer, num_rows=num_rows, seed=seed, fmt=fmt)
    listed = "".join(f"\n- {each.severity}: {each.what}. Remedy: {each.remedy}." for each in findings)
    if findings[0].severity == "error":
        raise ValueError(f"`trainer` would run, but not learn what is meant:{listed}")
    logger.log(logging.WARNING if findings[0].severity == "warning" else logging.INFO, "Before training:%s", listed)
    return findings


def inspect_trainer(
    trainer: SupportedTrainer, *, num_rows: int = 64, seed: int = 0, fmt: ThinkFormat | None = None
) -> list[Finding]:
    """
    List what would go wrong in a training run without an error, errors first.

    - SFT and DPO: reasoning, `</think>`, answer or end of turn that are not in the loss, dropped by the template, cut
      by `max_length` or masked; empty think blocks in the loss; rows that do not begin with the prompt of inference;
      trained prompts; text without a chat template; pairs without a difference.
    - GRPO and RLOO: traces longer than `max_completion_length`; prompts with the thinking closed, or with
      `chat_template_kwargs` that TRL ignores; gold answers that cannot be graded; rewards that raise, that give the
      same to all completions, or no more to a right answer than to a wrong one. Each reward is called with about 40
      scripted completions in the form in which this trainer passes its own, some twice. A judge is asked as often.
    - All: a stop token at which generation does not stop; a model without rows for all tokens; markers whose rows are
      new and not trained; settings left at silent defaults.

    Args:
        trainer ([`~trl.SFTTrainer`], [`~trl.DPOTrainer`], [`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]):
            The trainer, as built.
        num_rows (`int`, *optional*, defaults to `64`):
            Most rows of the training data to look at; of a stream, the first ones.
        seed (`int`, *optional*, defaults to `0`):
            Seed of their choice.
        fmt ([`ThinkFormat`], *optional*):
            The markers of the reasoning. `None`: those that `detect_format` finds, else `THINK`.

    Returns:
        `list[Finding]`: An `"error"` spoils the run, a `"warning"` may be meant, a `"note"` is good to know. A length
        limit that keeps 95 % of the traces whole is a warning, any other an error.

    Raises:
        `TypeError`: If `trainer` is none of the four.
        `ValueError`: If `num_rows` is below 1.

    Example:

    ```python
    from think_tools.preflight import inspect_trainer

    for finding in inspect_trainer(trainer):
        print(finding.severity, finding.what)
    ```
    """
    if not isinstance(trainer, SupportedTrainer):
        allowed = "a built SFTTrainer, DPOTrainer, GRPOTrainer or RLOOTrainer"
        raise TypeError(f"`trainer` must be {allowed}, got {type(trainer).__name__}.")
    if num_rows < 1:
        raise ValueError(f"`num_rows` must be at least 1, got {num_rows}.")
    processor: Any = trainer.processing_class
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    dataset: Any = trainer.train_dataset
    if not isinstance(dataset, IterableDataset):
        dataset = dataset.select(random.Random(seed).sample(range(len(dataset)), min(num_rows, len(dataset))))
    rows = list(itertools.islice(dataset, num_rows))
    if not rows:
        return [Finding("error", "no row is left: every prompt alone fills `max_length`", "raise `max_length`")]
    turns = tokenizer.chat_template and not isinstance(rows[0].get("prompt", rows[0].get("text")), str)
    end: Any = end_of_turn(tokenizer) if turns else tokenizer.eos_token_id
    run = Run(trainer, tokenizer, fmt or detect_format(tokenizer) or THINK, end, rows)
    check = check_rows if isinstance(trainer, SFTTrainer | DPOTrainer) else check_rollouts
    findings = [*check(run), *_check_model(run)]
    defaults = {field.name: field.default for field in fields(trainer.args)}
    left = [name for name in SETTINGS if name in defaults and vars(trainer.args)[name] == defaults[name]]
    said = ", ".join(f"`{name}={defaults[name]}`" for name in left) or "none that matters here"
    what = f"{len(rows)} rows were read; left at TRL's defaults: {said}"
    findings.append(Finding("note", what, "set them to what you mean"))
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))


def _check_model(run: Run) -> Iterator[Finding]:
    """Whether generation ends where a turn does, and whether the model has, and learns, a row for every marker."""
    model, tokenizer = run.trainer.model, run.tokenizer
    own = model.generation_config.eos_token_id
    ends = [None, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]  # trainers add the tokenizer's
    if run.end not in ends:
        token = tokenizer.convert_ids_to_tokens(run.end)
        what = f"a turn ends in {token}, but generation stops only at {tokenizer.eos_token}, so no answer would end"
        yield Finding("error", what, f'`tokenizer.eos_token = "{token}"` before the trainer is built')
    count, vocabulary = model.config.get_text_config().vocab_size, tokenizer.get_vocab()
    remedy = "`add_think_tokens` and `think_lora_config` from think_tools.templates, before the trainer is built"
    if len(tokenizer) > count:
        yield Finding("error", f"the tokenizer has {len(tokenizer)} tokens, and the model rows for {count}", remedy)
        return
    markers = [vocabulary[marker] for marker in (run.fmt.open, run.fmt.close) if marker in vocabulary]
    for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        rows = layer.weight.detach()  # (vocabulary, hidden); empty where DeepSpeed has parted it
        if markers and len(rows) and not any(parameter.requires_grad for parameter in layer.parameters()):
            sizes, distances = rows.norm(dim=1), (rows[markers] - rows.mean(0)).norm(dim=1)
            if min(*sizes[markers], *distances) < NEAR * sizes.median():
                what = f"the rows of {run.fmt.open} and {run.fmt.close} are new, and not trained in every layer"
                yield Finding("error", what, remedy)
                return
