"""
What parsing costs, beside transformers' `ResponseParser` (TRL's qwen3 template) and vLLM's class when installed.

```
python -m tests.benchmarks.parsing
```
"""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

from transformers.utils.chat_parsing import ResponseParser
from trl.chat_template_utils import qwen3_template

from think_tools import ThinkStream, parse

WORDS = [" the", " reason", "ing", " therefore", " is", " 42", ",", ".\n", " because", " we", " multiply", " carry"]
SIZES = {"1k": 1024, "4k": 4096, "16k": 16384, "32k": 32768, "64k": 65536}


def deltas_of(size: int) -> list[str]:
    """An output of `size` one-token deltas, four fifths of them reasoning."""
    rng = random.Random(0)
    deltas = rng.choices(WORDS, k=size)
    deltas[0], deltas[size * 4 // 5] = "<think>", "</think>"
    return deltas


def seconds(function: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest of `repeats` runs: the others measure what else the machine did."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.process_time()
        function()
        best = min(best, time.process_time() - begin)
    return best


def ours(deltas: list[str]) -> None:
    feed = ThinkStream().feed
    for delta in deltas:
        feed(delta)


def transformers_parser(deltas: list[str]) -> None:
    parser = ResponseParser(qwen3_template, prefix="")
    for delta in deltas:
        parser.feed(delta)


def vllm_parser(deltas: list[str]) -> None:
    """vLLM's DeepSeek-R1 class, fed as its server does: the text and the ids so far, before and after each delta."""
    from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

    vocabulary = {token: index for index, token in enumerate(["<think>", "</think>", *WORDS])}
    parser = DeepSeekR1ReasoningParser(type("Tokenizer", (), {"get_vocab": lambda self: vocabulary})())
    text, ids = "", []
    for delta in deltas:
        new_text, new_ids = text + delta, [*ids, vocabulary[delta]]
        parser.extract_reasoning_streaming(text, new_text, delta, ids, new_ids, new_ids[-1:])
        text, ids = new_text, new_ids


def find_and_slice(text: str) -> tuple[str, str]:
    """The least that any parser does."""
    end = text.find("</think>")
    return text[len("<think>") : end], text[end + len("</think>") :]


def import_seconds(module: str) -> float:
    """CPU seconds of an import in a fresh interpreter, without those of the interpreter itself."""
    code = f"import time; begin = time.process_time(); import {module}; print(time.process_time() - begin)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


def report_streaming() -> None:
    peers = {"ThinkStream": ours, "ResponseParser": transformers_parser}
    if find_spec("vllm"):
        peers["vLLM deepseek_r1"] = vllm_parser
    print("Streaming, one token per delta, microseconds per delta:")
    print(f"{'deltas':<18}" + "".join(f"{name:>9}" for name in SIZES) + "   64k/4k")
    costs = {}
    for peer, function in peers.items():
        for name, size in SIZES.items():
            deltas = deltas_of(size)
            repeats = 15 if function is ours else 3
            costs[peer, name] = seconds(lambda: function(deltas), repeats) / size * 1e6  # noqa: B023
        row = "".join(f"{costs[peer, name]:>9.3f}" for name in SIZES)
        print(f"{peer:<18}{row}{costs[peer, '64k'] / costs[peer, '4k']:>9.2f}")
    for peer in list(peers)[1:]:
        print(f"{peer} / ThinkStream at 32k: {costs[peer, '32k'] / costs['ThinkStream', '32k']:.1f}")


def report_whole() -> None:
    text = "".join(deltas_of(SIZES["32k"]))
    floor = seconds(lambda: [find_and_slice(text) for _ in range(20)], 30) / 20
    whole = seconds(lambda: [parse(text) for _ in range(20)], 30) / 20
    print(f"\nWhole text of 32k tokens ({len(text)} characters), microseconds:")
    print(f"str.find and slices {floor * 1e6:.1f}, parse {whole * 1e6:.1f}, ratio {whole / floor:.2f}")


if __name__ == "__main__":
    report_streaming()
    report_whole()
    print(f"\nimport think_tools: {import_seconds('think_tools'):.3f} s CPU")
