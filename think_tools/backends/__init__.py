"""Sample from a model with the reasoning and the answer told apart: one in this process, or one behind a server."""

from .local import TransformersBackend
from .sampling import Candidate, Delta, Messages, SamplingParams

__all__ = ["Candidate", "Delta", "Messages", "SamplingParams", "TransformersBackend"]
