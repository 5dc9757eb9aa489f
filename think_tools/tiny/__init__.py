"""The embedded model: one million parameters that learn to think on a CPU, and the arithmetic they learn it on."""

from .load import load_tiny
from .problems import arithmetic_problems

__all__ = ["arithmetic_problems", "load_tiny"]
