"""Where the reasoning is in a batch, and an SFT trainer that weighs it and can hide the question from the answer."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from .formats import THINK, ThinkFormat, detect_format, spellings

IGNORED = -100
# A constant, or a function of the share of the training that is done, from 0.0 to 1.0.
Weight = float | Callable[[float], float]


def think_mask(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    fmt: ThinkFormat | None = None,
    *,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Mark the trained tokens of the reasoning, both markers included.

    Reasoning goes from an opening marker to the next closing one, or to the end of its turn if it is never closed. The
    markers are looked for in `input_ids`, so an opening marker that the prompt wrote, and that is not trained, counts;
    and they are read as text, so they may be one token or several, and may have merged with their neighbours.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, sequence)`):
            Token ids.
        labels (`torch.Tensor` of shape `(batch, sequence)`):
            Token ids, `-100` where no loss is computed.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that made the ids. Its `eos_token` ends a turn.
        fmt ([`ThinkFormat`], *optional*):
            The markers. `None` finds them by [`detect_format`], and is `THINK` if it shows none.
        position_ids (`torch.Tensor` of shape `(batch, sequence)`, *optional*):
            Positions, for packed rows: each 0 begins a sequence, and reasoning that the one before left open ends
            there. `None` means one sequence per row.

    Returns:
        `torch.Tensor` of shape `(batch, sequence)` and dtype `bool`.

    Example:

    ```python
    >>> import torch
    >>> from think_tools.losses import think_mask
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> ids = torch.tensor([tokenizer.encode("2+2?<think>2 and 2</think>4")])
    >>> tokenizer.decode(ids[think_mask(ids, ids, tokenizer)])
    '<think>2 and 2</think>'
    ```
    """
    pattern = _pattern(tokenizer, fmt)
    mask = torch.zeros_like(labels, dtype=torch.bool)
    for row, ids in enumerate(input_ids.tolist()):
        starts = () if position_ids is None else (position_ids[row] == 0).nonzero().flatten().tolist()
        for start, _, _, end in _blocks(ids, pattern, tokenizer, starts):
            mask[row, start:end] = True
    return mask & (labels != IGNORED)


_TURN = "\0"  # between turns; in no vocabulary, where control characters are all written otherwise


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[int, str]:
    """The tokenizer's `size` tokens as text; `convert_ids_to_tokens` takes five times as long."""
    ending = tokenizer.eos_token_id
    return {i: piece + _TURN if i == ending else piece for piece, i in tokenizer.get_vocab().items()}


def _pattern(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat | None) -> re.Pattern[str]:
    """One block of reasoning in the tokenizer's own alphabet, where a space may be `Ġ` or `▁`."""
    fmt = fmt or detect_format(tokenizer) or THINK

    def written(marker: str) -> str:
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in spellings(fmt, marker)]
        texts = ["".join(tokenizer.convert_ids_to_tokens(row)).removeprefix("▁") for row in ids]
        return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))

    return re.compile(f"(?P<open>{written(fmt.open)})[^{_TURN}]*?(?P<close>{written(fmt.close)}|(?={_TURN})|\\Z)")


def _blocks(
    ids: list[int], pattern: re.Pattern[str], tokenizer: PreTrainedTokenizerBase, starts: Sequence[int] = ()
) -> Iterator[tuple[int, int, int, int]]:
    """Token indices of each block of reasoning: its opening marker, what it encloses, its closing marker, its end."""
    vocabulary = _vocabulary(tokenizer, len(tokenizer))
    pieces = [vocabulary.get(i, "") for i in ids]
    for i in starts:
        pieces[i] = _TURN + pieces[i]
    ends = list(accumulate(map(len, pieces)))  # of each token, in characters
    for found in pattern.finditer("".join(pieces)):
        opened, closed = bisect_right(ends, found.end("open") - 1) + 1, bisect_right(ends, found.start("close"))
        yield bisect_right(ends, found.start()), opened, closed, bisect_right(ends, found.end() - 1) + 1


class ThinkSFTTrainer(SFTTrainer):
    """
    TRL's [`~trl.SFTTrainer`] with a weight for the reasoning and one for the answer, whose losses it logs apart.

    The loss is the mean of the tokens' cross-entropies, each weighed: `sum(w * nll) / sum(w)` over all sequences of an
    optimisation step, whatever the accumulation, the packing and the number of processes. So weights (1, 1) are TRL's
    own loss, (2, 2) as well, and (0, 1) is the loss on the answers alone. Markers count as reasoning, end of turn and
    rows without reasoning as answer. There is no second forward pass.

    `think_loss` and `answer_loss`, unweighed means over the batch, are logged beside TRL's metrics, with `eval_` in
    front in evaluation; a batch without such tokens adds nothing.

    With `staged_attention` the answer sees the question only through the reasoning: from the closing marker on, a
    token attends to the reasoning after the opening marker, and to the answer so far, but to nothing before. The
    reasoning sees the question, so its hidden states may carry more of it than its words say. Rows without reasoning,
    or with an empty block, keep their ordinary attention. Such a model answers through
    `think_tools.decoding.generate_in_stages`: ordinary generation shows it the question again.

    Args:
        *args, **kwargs:
            Arguments of [`~trl.SFTTrainer`].
        think_weight (`float` or `Callable[[float], float]`, *optional*, defaults to `1.0`):
            Weight of the reasoning tokens, at least 0. A function gets the share of the training that is done, from
            0.0 to 1.0: `lambda done: 1 - 0.9 * done` lets the reasoning fade out. Evaluation uses the present weight.
        answer_weight (`float` or `Callable[[float], float]`, *optional*, defaults to `1.0`):
            Weight of all other trained tokens, likewise. One of the two must be above 0.
        fmt ([`ThinkFormat`], *optional*):
            The markers. `None` finds them by [`detect_format`], and is `THINK` if it shows none.
        staged_attention (`bool`, *optional*, defaults to `False`):
            Whether to hide the question from the answer. Needs one trained turn per row (`prepare_sft` makes such
            rows), and memory for a mask of `batch * sequence**2`.

    Raises:
        `ValueError`: If a weight is negative or both are 0; with `loss_type="dft"`, label smoothing, a
            `compute_loss_func`, or context or sequence parallelism, which compute another loss. With
            `staged_attention`: with packing or padding-free batches, with an attention that takes no mask of our own
            (flash, flex), with layers that attend otherwise (sliding windows, recurrent layers), and for a row that
            trains more than one turn.

    Example:

    ```python
    from trl import SFTConfig

    from think_tools.data import prepare_sft, to_think
    from think_tools.losses import ThinkSFTTrainer

    trainer = ThinkSFTTrainer(
        model=model,
        args=SFTConfig(max_length=4096, packing=True),
        processing_class=tokenizer,
        train_dataset=prepare_sft(to_think(rows), tokenizer, max_length=4096),
        think_weight=lambda done: 1 - 0.9 * done,
    )
    trainer.train()
    ```
    """

    args: SFTConfig
    model: Any

    def __init__(
        self,
        *args: Any,
        think_weight: Weight = 1.0,
        answer_weight: Weight = 1.0,
        fmt: ThinkFormat | None = None,
        staged_attention: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.think_weight, self.answer_weight = think_weight, answer_weight
        self._refuse(staged_attention)
        self._mean_one(torch.ones(2))  # wrong weights stop here
        # In the collator, because columns of ours would not survive TRL's packing.
        self.data_collator = partial(_collate, self.data_collator, self._tokenizer, fmt, staged_attention)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if num_items is not None:
            # As `num_items` is counted: over all batches of the step and, if it is, over all processes.
            counts = torch.stack([_count(batch["labels"], batch["think_mask"]) for batch in batches]).sum(0)
            if self.args.average_tokens_across_devices:
                counts = cast(torch.Tensor, self.accelerator.gather(counts[None].to(device))).sum(0)
            self._step_weights = self._mean_one(counts)
        return batches, num_items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        mask, hidden = inputs.pop("think_mask"), inputs.pop("hidden", None)
        counts = _count(inputs["labels"], mask)
        think, answer = self._mean_one(counts) if num_items_in_batch is None else self._step_weights
        mask = mask[..., 1:]  # a position predicts the token after it

        def weighed(**kwargs: Any) -> Any:
            """What TRL takes for the model: its own loss then is the weighed one, its other metrics are as ever."""
            if hidden is not None:
                kwargs["attention_mask"] = self._staged(kwargs["attention_mask"], hidden)
            outputs = model(**kwargs)
            if "fused_lm_head" in kwargs:
                self._log_parts(-outputs.log_probs.detach(), mask, counts)
                outputs.log_probs = outputs.log_probs * torch.where(mask, think, answer)
            return outputs

        return super().compute_loss(weighed, inputs, return_outputs, num_items_in_batch)  # type: ignore[arg-type]

    def _mean_one(self, counts: torch.Tensor) -> torch.Tensor:
        """The weights of now, scaled to a mean of 1 over the counted tokens, by whose number TRL divides."""
        done = self.state.global_step / max(self.state.max_steps, 1)
        given = [float(w(done) if callable(w) else w) for w in (self.think_weight, self.answer_weight)]
        if not (min(given) >= 0 < sum(given)):
            raise ValueError(f"`think_weight` and `answer_weight` must be at least 0 and not both 0, got {given}.")
        weights = counts.new_tensor(given)
        return weights * counts.sum() / (weights * counts).sum().clamp(min=1e-12)

    def _log_parts(self, nll: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor) -> None:
        sums = torch.stack([nll[mask].sum(), nll[~mask].sum()])  # zero where nothing is trained
        sums, counts = self.accelerator.gather_for_metrics(torch.stack([sums, counts])[None]).sum(0)  # type: ignore
        for part, total, count in zip(("think", "answer"), sums.tolist(), counts.tolist(), strict=True):
            if count:
                self._metrics["train" if self.model.training else "eval"][f"{part}_loss"].append(total / count)

    def _staged(self, attention_mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """
        The causal mask (batch, 1, sequence, sequence) without what the answers may not see.

        `attention_mask` is (batch, sequence); `hidden` (batch, 2) holds how many tokens of a row are hidden, and from
        which token on.
        """
        at = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        blind = (at < hidden[:, 0, None, None]) & (at[:, None] >= hidden[:, 1, None, None])
        seen = ((at <= at[:, None]) & attention_mask.bool()[:, None] & ~blind)[:, None]
        if self.model.config.get_text_config()._attn_implementation == "sdpa":
            return seen
        lowest = torch.finfo(self.model.dtype).min  # the eager attention adds its mask
        return torch.zeros_like(seen, dtype=self.model.dtype).masked_fill(~seen, lowest)

    def _refuse(self, staged: bool) -> None:
        args, parallel = self.args, self.accelerator.parallelism_config
        config = self.model.config.get_text_config()
        layers = set(config.to_dict().get("layer_types") or ()) - {"full_attention"}
        sliding = config.to_dict().get("sliding_window")
        kind, splits = config._attn_implementation, parallel and (parallel.cp_enabled or parallel.sp_enabled)
        other = args.loss_type != "nll" or args.label_smoothing_factor > 0 or self.compute_loss_func is not None
        several = self.padding_free or args.packing or args.eval_packing
        refused = {
            "`loss_type='dft'`, `label_smoothing_factor` and `compute_loss_func` compute another loss": other,
            "`parallelism_config` splits sequences, whose parts have no weights": splits,
            "`staged_attention` needs one sequence per row: no `packing`, no `padding_free`": staged and several,
            f"`staged_attention` needs full attention, {sorted(layers) or 'sliding windows'} see past its mask": (
                staged and (layers or sliding)
            ),
            f"`staged_attention` needs `attn_implementation` 'sdpa' or 'eager', {kind!r} ignores its mask": (
                staged and kind not in ("sdpa", "eager")
            ),
        }
        for cause, given in refused.items():
            if given:
                raise ValueError(f"`ThinkSFTTrainer` refuses these arguments. {cause}.")


def _collate(
    collate: Any, tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat | None, staged: bool, rows: list
) -> dict[str, torch.Tensor]:
    """TRL's batch, and where the reasoning is and, for staged attention, what is hidden from the answers."""
    batch = collate(rows)
    ids, labels = batch["input_ids"], batch["labels"]
    batch["think_mask"] = think_mask(ids, labels, tokenizer, fmt, position_ids=batch.get("position_ids"))
    if staged:
        both = zip(ids.tolist(), (labels != IGNORED).tolist(), strict=True)
        batch["hidden"] = torch.tensor([_hidden(*row, tokenizer, _pattern(tokenizer, fmt)) for row in both])
    return batch


def _hidden(
    ids: list[int], trained: list[bool], tokenizer: PreTrainedTokenizerBase, pattern: re.Pattern[str]
) -> tuple[int, int]:
    """How many tokens of a row its answer may not see, and where that begins; zeros without reasoning."""
    eos = tokenizer.eos_token_id
    for start, opened, closed, _ in _blocks(ids, pattern, tokenizer):
        end = ids.index(eos, closed) + 1 if eos in ids[closed:] else len(ids)
        if any(trained[closed:end]) and str(tokenizer.decode(ids[opened:closed])).strip():
            # The line break after the end of turn, which TRL's own preparation trains, is no other turn.
            if any(trained[:start]) or any(trained[end + 1 :]):
                raise ValueError(
                    "`staged_attention=True` needs one trained turn per row, as `prepare_sft` makes them, got a row "
                    f"that also trains tokens outside {tokenizer.decode(ids[start:end])!r}."
                )
            return opened, closed
    return 0, 0


def _count(labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How many reasoning and other tokens are predicted, as floats (2,)."""
    thinks = mask[..., 1:].sum()
    return torch.stack([thinks, (labels[..., 1:] != IGNORED).sum() - thinks]).float()
