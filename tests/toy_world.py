"""A world of steps without a model: some steps, each right with some probability, none of which is repaired."""

import math
import random

from think_tools.backends import ScriptedBackend

DEPTH = 5
GOLD = "0"


def problem(name: str) -> dict:
    return {"prompt": [{"role": "user", "content": name}], "solution": GOLD, "id": name}


def problems(number: int) -> list[dict]:
    return [problem(f"question {i}") for i in range(number)]


def toy_backend(right: float = 0.8, depth: int = DEPTH) -> ScriptedBackend:
    """Writes `right. ` or `wrong. ` steps; the answer is 0 after right steps alone, else one of 1 to 5."""

    def script(messages, prefix, number):
        rng = random.Random(f"{messages[-1]['content']}/{prefix}/{number}")
        steps = prefix.removeprefix("<think>").split("\n\n")[:-1]
        while len(steps) < depth:
            steps.append(f"{'right' if rng.random() < right else 'wrong'} {rng.randrange(10**6)}")
        wrong = any(step.startswith("wrong") for step in steps)
        text = "<think>" + "\n\n".join(steps) + f"</think>{rng.randint(1, 5) if wrong else GOLD}"
        assert text.startswith(prefix), "a step was changed"
        return text[len(prefix) :]

    return ScriptedBackend(script)


def noisy_oracle(noise: float):
    """Scores a text by whether all its steps so far are right, through noise; the same text gets the same score."""

    def verify(messages, texts):
        draws = [random.Random(f"noise {text}").gauss(0, noise) for text in texts]
        truths = [-2.2 if "wrong" in text else 2.2 for text in texts]
        return [1 / (1 + math.exp(-truth - draw)) for truth, draw in zip(truths, draws, strict=True)]

    return verify


def accuracy(results) -> float:
    return sum(result.answer == GOLD for result in results) / len(results)
