"""Get more out of a model that can already think, by spending more tokens at test time."""

from .vote import majority_vote

__all__ = ["majority_vote"]
