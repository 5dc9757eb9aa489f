"""Chat templates with room for reasoning: set one, read what a template does to a prompt, check what a row trains."""

from .generation import PromptState, end_of_turn, generation_prompt, prompt_state
from .labels import check_labels
from .load import load_template, set_chat_template
from .response import response_template
from .tokens import think_lora_config

__all__ = [
    "PromptState",
    "check_labels",
    "end_of_turn",
    "generation_prompt",
    "load_template",
    "prompt_state",
    "response_template",
    "set_chat_template",
    "think_lora_config",
]
