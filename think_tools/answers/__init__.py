"""The final answer of a completion: find it, and grade it where nothing can hang, crash or run the model's text."""

from .audit import UngradableSolution, audit_solutions
from .extract import extract_answer
from .grader import Grader, Verdict, same_answer, shared_grader

__all__ = [
    "Grader",
    "UngradableSolution",
    "Verdict",
    "audit_solutions",
    "extract_answer",
    "same_answer",
    "shared_grader",
]
