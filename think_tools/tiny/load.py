"""Load the embedded model, alone or with one of the adapters that ship beside it."""

from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

FOLDER = Path(__file__).parent
ADAPTERS = ("cold_start", "thinker")


def load_tiny(
    adapter: str | None = None, *, trainable: bool = False
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """
    Load the embedded byte-level model (one million parameters, context 4,096 tokens) and its tokenizer.

    Nothing is downloaded. Transformers cannot do this by itself only because the weights are inside this package and
    have no Hub name.

    Args:
        adapter (`str`, *optional*):
            `None` is the base, which answers arithmetic directly. `"cold_start"` thinks part of the time, and
            `"thinker"` is what reinforcement made of it in `think-tools demo`. Any folder with an adapter that was
            trained on the embedded model works too.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether the adapter's weights can be trained further.

    Returns:
        `tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]`: The model in float32 on the CPU, and the
        tokenizer with the `chatml_think` template.

    Raises:
        `ValueError`: If `adapter` is neither a shipped name nor a folder with an adapter.

    Example:

    ```python
    >>> from think_tools.tiny import load_tiny

    >>> model, tokenizer = load_tiny("thinker")
    >>> tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    [259, 260]
    ```
    """
    folder = FOLDER / adapter if adapter in ADAPTERS else Path(adapter) if adapter else None
    if folder and not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"`adapter` must be one of {list(ADAPTERS)}, a folder that holds adapter_config.json, or None, got "
            f"{adapter!r}."
        )
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "base")
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "base")
    if folder:
        model = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
        # The shipped adapters name no path; what is trained on from here shall load with stock PEFT on this machine.
        model.peft_config["default"].base_model_name_or_path = str(FOLDER / "base")
    return model, tokenizer
