"""
What search and control of decoding cost.

```
python -m tests.benchmarks.search
```

* steps: the processors of `think_tools.decoding`, with Qwen3's vocabulary of 151,936;
* samples, ragged batches, beams: see `sampling.py`, which runs alone too;
* votes: samples that an early stop saves, on 1,000 simulated problems and on stored samples of MATH
  (`THINK_TOOLS_DATA`), and the time of 1,000 votes over 64 candidates each.
"""

import itertools
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from think_tools.decoding import ConfidenceTracker, SuppressReflection, ThinkingBudget, after_think

from .. import test_search_vote as vote
from . import sampling

VOCABULARY = 151_936
TOKENS = 151_643  # of Qwen3's tokenizer, which the model's vocabulary is padded beyond
STEPS = 300


def large_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, words of letters up to Qwen3's size, and its added tokens; the words are made up, not learned."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (
        "Ġ" * space + "".join(letters)
        for n in (2, 3, 4)
        for letters in itertools.product("etaoinshrdlucwmfyp<>", repeat=n)
        for space in (0, 1)
    )
    tokens += itertools.islice(words, TOKENS - len(tokens))
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return fast


def microseconds(processor: Callable, rows: int, prompt: list[int], words: list[int], num_steps: int) -> float:
    """
    CPU time of a step in the reasoning: median of `num_steps`, least of five runs (the others measure the machine).

    The sequence grows as in `generate`; only the processor is timed.
    """
    scores, best = torch.randn(rows, VOCABULARY), float("inf")
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids, times = torch.tensor([prompt] * rows), []
        for _ in range(num_steps):
            begin = time.process_time_ns()
            processor(ids, scores)
            times.append(time.process_time_ns() - begin)
            drawn = torch.randint(len(words), (rows, 1), generator=generator)
            ids = torch.cat([ids, torch.tensor(words)[drawn]], 1)
        best = min(best, sorted(times)[num_steps // 2] / 1000)
    return best


def draw(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """What generation does anyway."""
    return torch.multinomial(scores.softmax(-1), 1)


def steps() -> None:
    tokenizer = large_tokenizer()
    prompt = tokenizer.encode("<|im_end|>ten<think>")
    words = tokenizer.encode("e t a o i n s h r d l u")
    begin = time.process_time()
    budget = partial(ThinkingBudget, tokenizer)
    budget(10**6)
    print(f"vocabulary {VOCABULARY:,}; reading it once per tokenizer takes {time.process_time() - begin:.2f} CPU-s")
    print("CPU microseconds per step in the reasoning                 batch 1   batch 16")
    cases = {
        "softmax and draw, without any processor": (draw, 30),
        "ThinkingBudget, num_wait=0": (budget(10**6), STEPS),
        "ThinkingBudget, min_thinking_tokens": (budget(10**6, min_thinking_tokens=10**5), STEPS),
        "ThinkingBudget, num_wait=1, until the wait is spent": (budget(10**6, num_wait=1), 60),
        "SuppressReflection": (SuppressReflection(tokenizer, ["to", "it"]), STEPS),
        "after_think, before the closing marker": (after_think(lambda: draw, tokenizer), STEPS),
        "ConfidenceTracker": (ConfidenceTracker(tokenizer), 30),
    }
    for name, (processor, num_steps) in cases.items():
        costs = [microseconds(processor, rows, prompt, words, num_steps) for rows in (1, 16)]
        print(f"{name:55} {costs[0]:10,.1f} {costs[1]:10,.1f}")


def votes() -> None:
    vote.test_early_stop_takes_half_the_samples_on_1000_problems_of_all_difficulties()
    if folder := os.environ.get("THINK_TOOLS_DATA"):
        vote.test_early_stop_takes_half_the_samples_on_stored_math_samples(Path(folder))
    vote.test_1000_problems_of_64_candidates_vote_and_score_in_30_seconds()


def main() -> None:
    torch.set_num_threads(1)
    steps()
    sampling.main()
    votes()


if __name__ == "__main__":
    main()
