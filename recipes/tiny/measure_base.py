# /// script
# dependencies = ["think-tools"]
# ///
"""
Measure the embedded base on held-out products: direct answers, and long-hand when the question asks for it.

```
python recipes/tiny/measure_base.py
```
"""

from think_tools import extract_answer, same_answer
from think_tools.backends import SamplingParams, TransformersBackend
from think_tools.tiny import arithmetic_problems, load_tiny

REQUESTS = {"en": "", "zh": ""}, {"en": " Think step by step.", "zh": " 请一步一步地想。"}
NUM_PROBLEMS = 400


def main() -> None:
    backend = TransformersBackend(*load_tiny())
    rows = arithmetic_problems("test", NUM_PROBLEMS)
    for requests in REQUESTS:
        prompts = [
            [{"role": "user", "content": row["prompt"][0]["content"] + requests[row["language"]]}] for row in rows
        ]
        answered = backend.sample(prompts, SamplingParams(temperature=0.0, max_tokens=256), batch_size=100)
        answers = [extract_answer(candidate.trace.answer) for [candidate] in answered]
        right = sum(same_answer(answer, gold) is True for answer, gold in zip(answers, rows["solution"], strict=True))
        print(f"{'on request' if requests['en'] else 'direct'}: {right} of {NUM_PROBLEMS} right")


if __name__ == "__main__":
    main()
