"""Generation in two stages: first the reasoning, then an answer, each with its own sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat, detect_format, spellings
from ..parsing import Trace, parse


@dataclass(frozen=True)
class StagedOutput:
    """
    One output that was generated in two stages.

    Args:
        trace ([`Trace`]):
            What the model wrote. `finished` is whether it ended its answer itself, or `max_new_tokens` did.
        completion_ids (`list[int]`):
            Its tokens after the opening marker: reasoning, closing marker, answer, end of turn.
        closed (`bool`):
            Whether the model closed its reasoning itself. `False`: the length limit or the end of the turn cut it, or
            it was given, and the closing marker was put behind it.
    """

    trace: Trace
    completion_ids: list[int]
    closed: bool


@torch.no_grad()
def generate_in_stages(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict[str, Any]]],
    *,
    fmt: ThinkFormat | None = None,
    reasoning: Sequence[str] | None = None,
    staged_attention: bool = False,
    reasoning_kwargs: dict[str, Any] | None = None,
    answer_kwargs: dict[str, Any] | None = None,
) -> list[StagedOutput]:
    r"""
    Generate the reasoning, then the answer, each with its own sampling; the answer need not see the question.

    A long and hot reasoning, then a short and greedy answer, or a [`ThinkingBudget`] for the first and a grammar for
    the second: each stage takes its own arguments. A row whose reasoning is cut is closed and answers too.

    With `staged_attention`, the keys and values of the question, opening marker included, are masked once the
    reasoning ends, and all tokens keep their positions. That is what a model trained by
    `ThinkSFTTrainer(..., staged_attention=True)` expects; any other model answers a question that it has never seen
    without. The reasoning itself sees the question in both cases.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A model with a key-value cache. Its `generation_config` holds where the arguments below say nothing.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`list[str]` or `list[list[dict]]`):
            Messages, or rendered prompts: `tokenizer.apply_chat_template(..., tokenize=False,
            add_generation_prompt=True)`. The opening marker is added where a prompt does not end in it. They are one
            batch.
        fmt ([`ThinkFormat`], *optional*):
            The markers. `None` finds them by [`detect_format`], and is `THINK` if it shows none.
        reasoning (`list[str]`, *optional*):
            One per prompt, literally what is to stand between the markers, line breaks included: the model answers
            from it and does not think itself. `None` lets it think.
        staged_attention (`bool`, *optional*, defaults to `False`):
            Whether to hide the question from the answer.
        reasoning_kwargs, answer_kwargs (`dict`, *optional*):
            Arguments of `model.generate` for either stage, such as `{"do_sample": True, "temperature": 0.6,
            "max_new_tokens": 4096}`. Either stage has at most 1,024 new tokens if they do not say otherwise.

    Returns:
        `list[StagedOutput]`: One per prompt, in their order.

    Raises:
        `ValueError`: If there is no prompt, or one has closed the thinking (`enable_thinking=False`); if `reasoning`
            is not as long as `prompts`; for several return sequences; with `staged_attention`, for a model with
            recurrent layers, whose state no mask hides.

    Example:

    ```python
    >>> from think_tools.decoding import generate_in_stages
    >>> from think_tools.tiny import load_tiny

    >>> model, tokenizer = load_tiny("thinker")
    >>> prompt = tokenizer.apply_chat_template(
    ...     [{"role": "user", "content": "12*13=?"}], tokenize=False, add_generation_prompt=True
    ... )
    >>> [output] = generate_in_stages(
    ...     model,
    ...     tokenizer,
    ...     [prompt],
    ...     reasoning_kwargs={"max_new_tokens": 300},
    ...     answer_kwargs={"max_new_tokens": 8},
    ... )
    >>> output.trace.answer
    '156'
    ```
    """
    fmt = fmt or detect_format(tokenizer) or THINK
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    rendered = [prompt if isinstance(prompt, str) else str(render(prompt)) for prompt in prompts]
    _check(model, rendered, fmt, reasoning, staged_attention)
    questions = [prompt if prompt.rstrip().endswith(fmt.open) else prompt + fmt.open for prompt in rendered]
    texts = questions if reasoning is None else list(map("".join, zip(questions, reasoning, strict=True)))
    encoded: Any = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    rows: list[list[int]] = encoded["input_ids"]
    # Tokens of the question, opening marker included; a line break after it belongs to the reasoning already.
    spans = zip(questions, encoded["offset_mapping"], strict=True)
    lengths = [sum(start < len(question.rstrip()) for start, _ in offsets) for question, offsets in spans]
    closings: list[list[int]] = [[] for _ in rows]
    if reasoning is None:
        stop = {"stop_strings": list(spellings(fmt, fmt.close)), "tokenizer": tokenizer, **(reasoning_kwargs or {})}
        thoughts = _generate(model, tokenizer, pad_left(rows, tokenizer, model.device), stop)
        rows = [row + thought for row, (thought, _) in zip(rows, thoughts, strict=True)]
        closings = [_closing(thought, tokenizer, fmt) for thought, _ in thoughts]
        rows = [row[: len(row) - len(closing)] for row, closing in zip(rows, closings, strict=True)]
    forced = tokenizer.encode(fmt.close if reasoning else f"\n{fmt.close}", add_special_tokens=False)
    tails = [closing or forced for closing in closings]

    # The closing markers belong to the second stage, blind to the question like the answer. They may differ in length:
    # a gap before a shorter one is masked, and all positions are given.
    (ids, mask), (tail_ids, tail_mask) = (
        pad_left(rows, tokenizer, model.device),
        pad_left(tails, tokenizer, model.device),
    )
    before, after = mask.cumsum(1) - 1, mask.sum(1, keepdim=True) + tail_mask.cumsum(1) - 1
    at = torch.cat([before, after], 1).clamp(min=0)
    first = model(
        input_ids=ids, attention_mask=mask, position_ids=at[:, : ids.shape[1]], use_cache=True, logits_to_keep=1
    )
    if staged_attention:
        mask = mask.masked_fill(before < torch.tensor(lengths, device=mask.device)[:, None], 0)
    both = torch.cat([ids, tail_ids], 1), torch.cat([mask, tail_mask], 1)
    second = {"past_key_values": first.past_key_values, "position_ids": at, **(answer_kwargs or {})}
    outputs = []
    answers = _generate(model, tokenizer, both, second)
    for row, length, tail, closing, (answer, end) in zip(rows, lengths, tails, closings, answers, strict=True):
        written = [*row[length:], *tail, *answer]
        trace = parse(str(tokenizer.decode(written)), opened=True, fmt=fmt, finished=bool(end))
        outputs.append(StagedOutput(trace, written + end, bool(closing)))
    return outputs


def _check(
    model: PreTrainedModel, prompts: Sequence[str], fmt: ThinkFormat, reasoning: Sequence[str] | None, staged: bool
) -> None:
    if not prompts or (reasoning is not None and len(reasoning) != len(prompts)):
        given = "None" if reasoning is None else len(reasoning)
        raise ValueError(f"`prompts` needs at least one, and `reasoning` as many, got {len(prompts)} and {given}.")
    if any(prompt.rstrip().endswith(fmt.close) for prompt in prompts):
        raise ValueError(f"`prompts` must not end in {fmt.close}: render them without `enable_thinking=False`.")
    layers = set(model.config.get_text_config().to_dict().get("layer_types") or ())
    if staged and (blind := layers - {"full_attention", "sliding_attention", "chunked_attention"}):
        raise ValueError(f"`staged_attention=True` cannot hide the question from layers with {sorted(blind)}.")


def pad_left(
    rows: list[list[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (rows, longest). The mask hides padding from the model, not from a repetition penalty."""
    width, pad = max(map(len, rows)), cast(Any, tokenizer).pad_token_id or 0
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: tuple[torch.Tensor, ...], kwargs: dict
) -> list[tuple[list[int], list[int]]]:
    """New tokens of each row, and its end of turn, `[]` if there was none."""
    own = cast(Any, model.generation_config).eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), cast(Any, tokenizer).eos_token_id} - {None}
    options = {"max_new_tokens": 1024, "eos_token_id": sorted(ends) or None, "pad_token_id": max(ends, default=0)}
    ids, mask = inputs
    output: Any = model.generate(input_ids=ids, attention_mask=mask, **options | kwargs)  # type: ignore[operator]
    if len(output) != len(ids):
        raise ValueError(f"{len(output)} outputs for {len(ids)} prompts: repeat `prompts`, not return sequences.")
    rows = output[:, ids.shape[1] :].tolist()
    stops = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [(row[:stop], row[stop : stop + 1]) for row, stop in zip(rows, stops, strict=True)]


def _closing(ids: list[int], tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat) -> list[int]:
    """The tokens at the end of `ids` that hold the closing marker, `[]` if they do not."""
    tails = (ids[-n:] for n in range(1, min(len(ids), 4 * len(fmt.close)) + 1))
    return next((tail for tail in tails if any(m in tokenizer.decode(tail) for m in spellings(fmt, fmt.close))), [])
