"""Find what would go wrong without an error in a training run, before it starts."""

from .config import trainer_from_config
from .trainer import inspect_trainer, preflight

__all__ = ["inspect_trainer", "preflight", "trainer_from_config"]
