"""A LoRA configuration that also trains the embedding rows of the think markers."""

from typing import Any

from peft import LoraConfig
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..formats import THINK, ThinkFormat


def _original_bias(wrapper: TrainableTokensWrapper) -> Tensor | None:
    return wrapper.original_module._parameters.get("bias")


# TRL reads `lm_head.bias` (https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/utils.py), which peft's wrapper
# around an output layer with trained rows lacks (https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/other.py,
# `TrainableTokensWrapper._hasattr_wrapped`): every trainer stops with an AttributeError. Done at import, because an
# adapter that is loaded, and not configured here, meets the same error.
if "bias" not in vars(TrainableTokensWrapper):
    TrainableTokensWrapper.bias = property(_original_bias)  # type: ignore[attr-defined]


def think_lora_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, fmt: ThinkFormat = THINK, **lora_kwargs: Any
) -> LoraConfig:
    """
    Build a LoRA configuration for all linear layers that also trains the rows of the think markers.

    LoRA on the layers alone cannot teach a model a token that it has never written: the row of `</think>` in the
    output layer stays as it was. peft trains single rows (`trainable_token_indices`), but which layers need it depends
    on whether input and output embeddings are tied. This works that out. Only the two rows are added to the adapter.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model to be adapted; it is not changed.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with both markers as single tokens.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            The markers.
        **lora_kwargs:
            Arguments of [`~peft.LoraConfig`]. Defaults that differ from peft's: `r=32`, `lora_alpha` twice `r`,
            `target_modules="all-linear"`, `task_type="CAUSAL_LM"`.

    Returns:
        [`~peft.LoraConfig`]: For `get_peft_model` or the `peft_config` of a trainer.

    Raises:
        `ValueError`: If a marker is not a single token of `tokenizer`, or if `model` has no row for it.

    Example:

    ```python
    >>> from think_tools.templates import think_lora_config
    >>> from think_tools.tiny import load_tiny

    >>> think_lora_config(*load_tiny(), r=8).trainable_token_indices
    {'embed_tokens': [259, 260]}
    ```
    """
    ids = [_single_id(tokenizer, marker) for marker in (fmt.open, fmt.close)]
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    rows = len(inputs.weight)  # type: ignore[arg-type]  # (vocabulary, hidden)
    if max(ids) >= rows:
        raise ValueError(
            f"`model` has {rows} embedding rows, but the ids of {fmt.open} and {fmt.close} are {ids}: call "
            "`model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)` first."
        )
    layers = [inputs]
    if outputs is not None and outputs.weight is not inputs.weight:
        layers.append(outputs)  # tied ones follow the input by themselves
    r = lora_kwargs.pop("r", 32)
    defaults = {"lora_alpha": 2 * r, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    indices = {_layer_name(model, layer): ids for layer in layers}
    return LoraConfig(r=r, trainable_token_indices=indices, **{**defaults, **lora_kwargs})


def _single_id(tokenizer: PreTrainedTokenizerBase, marker: str) -> int:
    ids = tokenizer.encode(marker, add_special_tokens=False)
    if len(ids) != 1 or ids == [tokenizer.unk_token_id]:
        raise ValueError(
            f"`tokenizer` has no single token {marker} (it is {len(ids)} tokens of text), so no row to train. "
            f'Add it, `tokenizer.add_tokens(["{marker}"])`, and resize the model if it has fewer rows than the '
            'tokenizer has tokens, or leave the markers as text and use `LoraConfig(target_modules="all-linear")`.'
        )
    return ids[0]


def _layer_name(model: PreTrainedModel, layer: nn.Module) -> str:
    """Last part of the layer's path, by which peft finds it."""
    return next(name for name, module in model.named_modules() if module is layer).rpartition(".")[2]
