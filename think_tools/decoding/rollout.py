"""Think budgets in TRL's GRPO, which has no place for a logits processor of its own."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from .budget import ThinkingBudget
from .phases import NO_CONTINUOUS_BATCHING
from .stages import pad_left

if TYPE_CHECKING:
    from trl import GRPOTrainer


def get_budget_rollout(
    thinking_token_budget: int | None, **budget_kwargs: Any
) -> Callable[[list[Any], "GRPOTrainer"], dict[str, list[Any]]]:
    """
    Make a `rollout_func` for [`~trl.GRPOTrainer`] that samples under a [`ThinkingBudget`].

    Reasoning that runs to `max_completion_length` has no answer and earns nothing; closed within a budget, it does.
    Tokens that the budget forces are not the policy's choice, so they are left out of the loss (`env_mask`).
    Everything else is sampled as TRL would.

    Args:
        thinking_token_budget (`int`, *optional*):
            Tokens of reasoning, as for [`ThinkingBudget`].
        **budget_kwargs:
            Further arguments of [`ThinkingBudget`], such as `closing_text` or `num_wait`.

    Returns:
        `Callable`: Pass it as `rollout_func`. It raises `ValueError` with vLLM, whose own `thinking_token_budget` goes
        into `generation_kwargs`, with continuous batching, with tools and with images.

    Example:

    ```python
    from trl import GRPOTrainer

    from think_tools.decoding import get_budget_rollout

    trainer = GRPOTrainer(..., rollout_func=get_budget_rollout(1024, closing_text="\\n\\nI must answer now.\\n"))
    ```
    """
    return partial(_rollout, thinking_token_budget=thinking_token_budget, **budget_kwargs)


def _rollout(prompts: list[Any], trainer: "GRPOTrainer", **budget_kwargs: Any) -> dict[str, list[Any]]:
    from trl.models import unwrap_model_for_generation  # loads a second of trainers: only those who train need it

    _check(prompts, trainer)
    args: Any = trainer.args
    tokenizer: Any = trainer.processing_class
    if isinstance(prompts[0], list):
        options = {**cast(Any, trainer).chat_template_kwargs, "chat_template": trainer.chat_template}
        encoded = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True, **options)
    else:
        encoded = tokenizer(text=prompts)
    rows: list[list[int]] = encoded["input_ids"]
    ids, mask = pad_left(rows, tokenizer, trainer.accelerator.device)
    budget = ThinkingBudget(tokenizer, **{"eos_token_ids": trainer.eos_token_ids, **budget_kwargs})
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            generation_kwargs=trainer.generation_kwargs,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        torch.no_grad(),
    ):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=trainer.generation_config,
            logits_processor=[budget],
        )
    width, ends = ids.shape[1], {*trainer.eos_token_ids}
    written: list[list[int]] = output[:, width:].tolist()
    cut = [row[: next((i + 1 for i, token in enumerate(row) if token in ends), None)] for row in written]
    forced = [{position - width for position in positions} for positions in budget.forced]
    return {
        "prompt_ids": rows,
        "completion_ids": cut,
        "logprobs": None,  # type: ignore[dict-item]  # the trainer computes them itself
        "env_mask": [[int(i not in own) for i in range(len(row))] for row, own in zip(cut, forced, strict=True)],
    }


def _check(prompts: list[Any], trainer: "GRPOTrainer") -> None:
    if trainer.use_vllm:
        raise ValueError("`use_vllm=True` needs vLLM's budget: pass `generation_kwargs={'thinking_token_budget': …}`.")
    if trainer.use_transformers_continuous_batching:
        raise ValueError(f"`use_transformers_continuous_batching=True`: {NO_CONTINUOUS_BATCHING}")
    if trainer.tools:
        raise ValueError("`tools` are not supported: TRL would generate the turns after a call without the budget.")
    parts = (message["content"] for prompt in prompts if isinstance(prompt, list) for message in prompt)
    if any(part.get("type") != "text" for content in parts if isinstance(content, list) for part in content):
        raise ValueError("`prompts` must be text: images would be dropped.")
