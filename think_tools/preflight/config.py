"""Build the trainer that a YAML file for TRL's commands describes, to check it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from unittest import mock

import yaml
from torch import cuda
from transformers import Trainer

from .trainer import SupportedTrainer


def trainer_from_config(config: str | Path, flags: Sequence[str] = ()) -> SupportedTrainer:
    """
    Build the trainer of `trl sft|dpo|grpo|rloo --config config`, and neither train, push nor report anything.

    Args:
        config (`str` or `Path`):
            A YAML file with the keys of one of these commands and no others. The first of the four that knows all of
            them is taken: keys that all know mean SFT, keys of RLOO that GRPO knows as well mean GRPO.
        flags (`Sequence[str]`, *optional*):
            Flags of the command line, which win over the file.

    Returns:
        [`~trl.SFTTrainer`], [`~trl.DPOTrainer`], [`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`]: The trainer as TRL's
        own script builds it, but without vLLM, and on the CPU in full precision if there is no GPU.

    Raises:
        `ValueError`: If no command knows all keys of the file.

    Example:

    ```python
    from think_tools.preflight import preflight, trainer_from_config

    preflight(trainer_from_config("grpo.yaml", ["--reward_funcs", "think_tools.rewards.accuracy_reward"]))
    ```
    """
    keys = set(yaml.safe_load(Path(config).read_text(encoding="utf-8")) or ()) - {"env"}
    strange = {}
    for method in ("sft", "dpo", "grpo", "rloo"):
        script = import_module(f"trl.scripts.{method}")
        parser = script.make_parser()
        strange[method] = keys - {field.name for kind in parser.dataclass_types for field in fields(kind)}
        if not strange[method]:
            break
    else:
        method = min(strange, key=lambda method: len(strange[method]))
        raise ValueError(
            f"`config` has keys that `trl {method}` does not know: {sorted(strange[method])}. Check a script that has "
            "flags of its own by a line before its `trainer.train()`: `preflight(trainer)`."
        )
    safe = ["--push_to_hub", "false", "--report_to", "none"]
    safe += ["--use_vllm", "false"] if method in ("grpo", "rloo") else []
    safe += [] if cuda.is_available() else ["--use_cpu", "true", "--bf16", "false"]
    arguments = parser.parse_args_and_config(["--config", str(config), *flags, *safe])
    # TRL's scripts build and train in one function; here the training is left out of it.
    with mock.patch.object(Trainer, "train", side_effect=_Built, autospec=True) as train, suppress(_Built):
        script.main(*arguments)
    return train.call_args.args[0]


class _Built(Exception):
    """The trainer is built, and would now train."""
