"""Chat templates with room for reasoning: set one, read what a template does to a prompt, check what a row trains."""

from ..formats import detect_format
from .check import check_template
from .generation import PromptState, end_of_turn, generation_prompt, prompt_state
from .labels import check_labels
from .load import load_template, set_chat_template
from .probe import Finding, TemplateReport
from .response import response_template, serving_errors, set_response_template
from .tokens import add_think_tokens, think_lora_config

__all__ = [
    "Finding",
    "PromptState",
    "TemplateReport",
    "add_think_tokens",
    "check_labels",
    "check_template",
    "detect_format",
    "end_of_turn",
    "generation_prompt",
    "load_template",
    "prompt_state",
    "response_template",
    "serving_errors",
    "set_chat_template",
    "set_response_template",
    "think_lora_config",
]
