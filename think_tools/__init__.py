"""Data, templates, training, decoding and chat pages for models that think before they answer.

The names here are the text layer: they load neither torch nor transformers.
"""

from .answers import extract_answer, same_answer
from .formats import FORMATS, THINK, ThinkFormat, detect_format
from .parsing import ThinkStream, Trace, parse, read_completion, repair
from .steps import split_steps

__all__ = [
    "FORMATS",
    "THINK",
    "ThinkFormat",
    "ThinkStream",
    "Trace",
    "detect_format",
    "extract_answer",
    "parse",
    "read_completion",
    "repair",
    "same_answer",
    "split_steps",
]
