"""Sample from a model with the reasoning and the answer told apart: one in this process, or one behind a server."""

from .client import ClientBackend
from .local import TransformersBackend
from .sampling import Candidate, Delta, Messages, SamplingParams
from .scripted import ScriptedBackend

__all__ = [
    "Candidate",
    "ClientBackend",
    "Delta",
    "Messages",
    "SamplingParams",
    "ScriptedBackend",
    "TransformersBackend",
]
