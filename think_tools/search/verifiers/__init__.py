"""Tell good outputs from bad: by a reward, a trained outcome or process model, any chat model, or its confidence."""

from .prompted import (
    ConfidenceVerifier,
    GenerativeVerifier,
    JudgeVerifier,
    ask_for_verdict,
    ask_math_shepherd,
    ask_rlhflow,
)
from .scores import Reduce, RewardVerifier, Verifier, problem_text, steps_of, verify
from .trained import OutcomeVerifier, ProcessVerifier, encode_output, encode_steps

__all__ = [
    "ConfidenceVerifier",
    "GenerativeVerifier",
    "JudgeVerifier",
    "OutcomeVerifier",
    "ProcessVerifier",
    "Reduce",
    "RewardVerifier",
    "Verifier",
    "ask_for_verdict",
    "ask_math_shepherd",
    "ask_rlhflow",
    "encode_output",
    "encode_steps",
    "problem_text",
    "steps_of",
    "verify",
]
