"""Think markers as tokens: add them to a model that has none, and train their embedding rows with LoRA."""

import logging
from typing import Any, Literal
from weakref import WeakSet

import torch
from peft import LoraConfig, PeftModel
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat, detect_format

logger = logging.getLogger(__name__)


def _original_bias(wrapper: TrainableTokensWrapper) -> Tensor | None:
    return wrapper.original_module._parameters.get("bias")


# TRL reads `lm_head.bias` (https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/utils.py), which peft's wrapper
# around an output layer with trained rows lacks (https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/other.py,
# `TrainableTokensWrapper._hasattr_wrapped`): every trainer stops with an AttributeError. Done at import, because an
# adapter that is loaded, and not configured here, meets the same error.
if "bias" not in vars(TrainableTokensWrapper):
    TrainableTokensWrapper.bias = property(_original_bias)  # type: ignore[attr-defined]

# Models that `add_think_tokens` has grown. The same call makes their new rows again, so they need not be saved.
_GROWN: WeakSet[nn.Module] = WeakSet()
_save_pretrained = PeftModel.save_pretrained


def _save_small(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> None:
    if len(args) < 3 and self.get_base_model() in _GROWN:
        kwargs.setdefault("save_embedding_layers", False)
    _save_pretrained(self, save_directory, *args, **kwargs)


# Beside the adapter of a grown model peft saves both embedding matrices, tied ones twice: gigabytes for two rows
# (https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/save_and_load.py, `save_embedding_layers="auto"`).
# Trainers cannot tell it otherwise. Models grown by anything else are saved as before.
PeftModel.save_pretrained = _save_small


def add_think_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fmt: ThinkFormat = THINK,
    init: Literal["mean", "text"] = "mean",
) -> tuple[int, int]:
    """
    Make the think markers single tokens of a tokenizer, with rows in the model's embeddings.

    Nothing happens where both exist. The tokens are not special, so that `skip_special_tokens=True` leaves them in the
    text. Rows that pad the vocabulary are used first; else the embeddings grow to a multiple of 64, and never shrink.
    New rows, of the output layer too, begin as a mean of existing ones, not at random: a random row is often much
    likelier than all others (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). Tied embeddings stay tied.

    Train the rows, all parameters or with [`think_lora_config`]. An adapter of a grown model holds the two rows only:
    whoever loads it loads its tokenizer and calls this on the base first, which makes the same rows again.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, changed in place; it may be quantised as long as its embeddings are not.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, changed in place.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers. Those of the answer stay text.
        init (`str`, *optional*, defaults to `"mean"`):
            What a new marker begins as: the `"mean"` of all rows, or of the rows of its own `"text"`, such as `<`,
            `think` and `>`, which is closer to how a model wrote the marker before.

    Returns:
        `tuple[int, int]`: The ids of the opening and of the closing marker. What was changed is logged as a warning.

    Raises:
        `ValueError`: If `init` is something else, if a marker is prose or made of tokens that exist, if the embeddings
            are quantised or sharded, or if `model` has an adapter already. Nothing has been changed then.

    Example:

    ```python
    >>> from think_tools import FORMATS
    >>> from think_tools.templates import add_think_tokens
    >>> from think_tools.tiny import load_tiny

    >>> model, tokenizer = load_tiny()
    >>> add_think_tokens(model, tokenizer)  # they exist
    (259, 260)
    >>> add_think_tokens(model, tokenizer, FORMATS["seed_oss"]), model.config.vocab_size
    ((261, 262), 320)
    ```
    """
    if init not in ("mean", "text"):
        raise ValueError(f'`init` must be "mean" or "text", got {init!r}.')
    markers = (fmt.open, fmt.close)
    missing = [marker for marker in markers if _token_id(tokenizer, marker) is None]
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if not missing and max(_ids(tokenizer, fmt)) < rows:
        return _ids(tokenizer, fmt)
    _check_tags(tokenizer, missing)
    if isinstance(model, PeftModel):
        raise ValueError("`model` has an adapter already, under which rows cannot be added: add them to its base.")
    _embeddings(model)
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in missing])
    ids = _ids(tokenizer, fmt)
    said = f"{fmt.open} and {fmt.close} are the tokens {ids[0]} and {ids[1]} of `tokenizer` now."
    if max(ids) >= rows:
        size = max(len(tokenizer), max(ids) + 1)
        model.resize_token_embeddings(size, pad_to_multiple_of=64, mean_resizing=False)
        _GROWN.add(model)
        grown = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        said += (
            f" `model` has {grown} embedding rows instead of {rows}: before you load an adapter of it, call "
            "`add_think_tokens` on its base again."
        )
    known = min(rows, max(ids) - 1)  # the rows before both markers, also when the tokenizer has them already
    new = {marker: id_ for marker, id_ in zip(markers, ids, strict=True) if marker in missing or id_ >= rows}
    sources = {id_: _pieces(tokenizer, marker) if init == "text" else range(known) for marker, id_ in new.items()}
    _initialise(model, rows, known, sources)
    logger.warning(said)
    return ids


def think_lora_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, fmt: ThinkFormat | None = None, **lora_kwargs: Any
) -> LoraConfig:
    """
    Build a LoRA configuration for all linear layers that also trains the rows of the think markers.

    LoRA on the layers alone cannot teach a model a token that it has never written: the row of `</think>` in the
    output layer stays as it was. peft trains single rows (`trainable_token_indices`), but which layers need it depends
    on whether input and output embeddings are tied. This works that out. Only the two rows are added to the adapter.
    It serves SFT, GRPO and the others alike, with the model in 4 bits too.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model to be adapted; it is not changed.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with both markers as single tokens, see [`add_think_tokens`].
        fmt ([`ThinkFormat`], *optional*):
            The markers. `None` detects them from the tokenizer, and takes `THINK` if nothing shows.
        **lora_kwargs:
            Arguments of [`~peft.LoraConfig`]. Defaults that differ from peft's: `r=32`, `lora_alpha` twice `r`,
            `target_modules="all-linear"`, `task_type="CAUSAL_LM"`.

    Returns:
        [`~peft.LoraConfig`]: For `get_peft_model` or the `peft_config` of a trainer.

    Raises:
        `ValueError`: If a marker is not a single token of `tokenizer`, if `model` has no row for it, if its embeddings
            are quantised or sharded, or if its output layer has a bias.

    Example:

    ```python
    >>> from think_tools.templates import think_lora_config
    >>> from think_tools.tiny import load_tiny

    >>> think_lora_config(*load_tiny(), r=8).trainable_token_indices
    {'embed_tokens': [259, 260]}
    ```
    """
    fmt = fmt or detect_format(tokenizer) or THINK
    ids = list(_ids(tokenizer, fmt))
    layers = _embeddings(model)
    rows = len(layers[0].weight)  # type: ignore[arg-type]  # (vocabulary, hidden)
    if max(ids) >= rows:
        raise ValueError(
            f"`model` has {rows} embedding rows, but the ids of {fmt.open} and {fmt.close} are {ids}: call "
            "`add_think_tokens(model, tokenizer)` first."
        )
    outputs = model.get_output_embeddings()
    if outputs is not None and outputs._parameters.get("bias") is not None:
        # https://github.com/huggingface/peft/issues/3649
        raise ValueError(
            "`model` has an output layer with a bias, which peft leaves out once rows of the layer are trained: "
            "leave the markers as text, or train all parameters."
        )
    r = lora_kwargs.pop("r", 32)
    defaults = {"lora_alpha": 2 * r, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    indices = {_layer_name(model, layer): ids for layer in layers}
    return LoraConfig(r=r, trainable_token_indices=indices, **{**defaults, **lora_kwargs})


def _token_id(tokenizer: PreTrainedTokenizerBase, marker: str) -> int | None:
    ids = tokenizer.encode(marker, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def _ids(tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat) -> tuple[int, int]:
    opening, closing = _token_id(tokenizer, fmt.open), _token_id(tokenizer, fmt.close)
    if opening is None or closing is None:
        marker = fmt.close if opening is not None else fmt.open
        raise ValueError(
            f"`tokenizer` has no single token {marker} (it is "
            f"{len(tokenizer.encode(marker, add_special_tokens=False))} tokens of text), so no row to train. Add it, "
            "`add_think_tokens(model, tokenizer)`, or leave the markers as text and use "
            '`LoraConfig(target_modules="all-linear")`.'
        )
    return opening, closing


def _check_tags(tokenizer: PreTrainedTokenizerBase, markers: list[str]) -> None:
    """As one token, such a marker would no longer be what the model has learned to write."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for marker in markers:
        parts = [token for token in special if token in marker]
        if parts or len(marker.split()) > 1:
            why = f"is written with the token {parts[0]}" if parts else "is prose"
            raise ValueError(f"`fmt` has the marker {marker!r}, which {why}: leave it as text, it needs no token.")


def _pieces(tokenizer: PreTrainedTokenizerBase, marker: str) -> list[int]:
    """Ids of a marker's text: cut after its first character, or it would be the new token itself."""
    return [i for part in (marker[0], marker[1:]) for i in tokenizer.encode(part, add_special_tokens=False)]


def _embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """The input embeddings and, if it has weights of its own, the output layer; rows of both can be read and set."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [inputs] if outputs is None or outputs.weight is inputs.weight else [inputs, outputs]
    for layer in layers:
        weight = layer.weight
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_meta or not weight.numel():
            raise ValueError(
                f"`model` has a {_layer_name(model, layer)} that is quantised or sharded, so that rows can be neither "
                'added nor trained: leave it out of the quantisation (`llm_int8_skip_modules=["lm_head"]`), or add '
                "the tokens on one device and save that model first."
            )
    return layers


def _initialise(model: PreTrainedModel, rows: int, known: int, sources: dict[int, list[int] | range]) -> None:
    """Set the rows from `rows` on to the mean of the `known` first ones, and each id to the mean of its sources."""
    for parameter in [p for layer in _embeddings(model) for p in layer.parameters(recurse=False)]:
        with torch.no_grad():
            mean = parameter[:known].mean(0, dtype=torch.float32)
            parameter[rows:] = mean
            for id_, ids in sources.items():
                parameter[id_] = mean if isinstance(ids, range) else parameter[ids].mean(0, dtype=torch.float32)


def _layer_name(model: PreTrainedModel, layer: nn.Module) -> str:
    """Last part of the layer's path, by which peft finds it."""
    return next(name for name, module in model.named_modules() if module is layer).rpartition(".")[2]
