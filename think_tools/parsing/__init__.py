"""Split a model's output into reasoning and answer: whole, while it streams, from a message, or badly separated."""

from .completion import read_completion
from .stored import repair
from .stream import ThinkStream, parse
from .trace import Part, Status, Trace

__all__ = ["Part", "Status", "ThinkStream", "Trace", "parse", "read_completion", "repair"]
