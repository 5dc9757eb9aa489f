"""
What batches and kept caches save when a transformers model samples: `TransformersBackend` beside stock `generate`.

```
python -m tests.benchmarks.sampling
```

A random Llama of 3 million parameters, one thread, the best of several runs in CPU time:

* equal: 16 samples of one prompt, 128 tokens each, beside `num_return_sequences=16`;
* ragged: 48 prompts whose outputs have log-normal lengths, 16 at once, beside batches that wait for their longest;
* beam: 4 beams times 4 over 8 steps of 16 tokens behind a prompt of 1,024, with kept caches, with none
  (`keep_bytes=0`, where siblings still share what is read), and with stock `generate`, which reads every row again.
"""

import random
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, StoppingCriteria

from think_tools.backends import SamplingParams, TransformersBackend
from think_tools.backends.batching import Ending, Row, generate_rows
from think_tools.tiny.load import FOLDER


def make_backend(keep_bytes: int = 2**30) -> TransformersBackend:
    """A random model that never ends its turn."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "base")
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.suppress_tokens = [tokenizer.eos_token_id]  # type: ignore[union-attr]
    return TransformersBackend(model, tokenizer, keep_bytes=keep_bytes)


def prompt_of(backend: TransformersBackend, length: int) -> list[dict]:
    """Messages that are `length` tokens long."""
    frame = len(backend._encode([{"role": "user", "content": ""}], {}))
    return [{"role": "user", "content": "7" * (length - frame)}]


def best(*ways: Callable[[], int], repeats: int = 3) -> list[float]:
    """Tokens per CPU-second of each way, in turn; each gives its number of tokens."""
    speeds = [0.0] * len(ways)
    for _ in range(repeats):
        for i, way in enumerate(ways):
            start = time.process_time()
            tokens = way()
            speeds[i] = max(speeds[i], tokens / (time.process_time() - start))
    return speeds


def equal(length: int) -> None:
    backend = make_backend()
    prompt, params = prompt_of(backend, length), SamplingParams(n=16, max_tokens=128, seed=0)

    def stock() -> int:
        ids = torch.tensor([backend._encode(prompt, {})])
        options: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 128, "num_return_sequences": 16}
        output = backend.model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
        return output[:, length:].numel()

    def ours() -> int:
        return sum(candidate.num_tokens for [*group] in backend.sample([prompt], params) for candidate in group)

    theirs, own = best(stock, ours, repeats=8)  # close enough that three runs did not settle it
    print(f"n=16, prompt {length}: stock {theirs:.0f} tokens/CPU-s, ours {own:.0f}, ratio {own / theirs:.2f} (>= 1)")


class _Lengths(StoppingCriteria):
    """Ends each row at its own length."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        return input_ids.shape[1] >= self.lengths


def ragged() -> None:
    backend, draw = make_backend(), random.Random(0)
    wanted = [min(512, round(draw.lognormvariate(4.1, 0.8))) for _ in range(48)]
    prompt = backend._encode(prompt_of(backend, 32), {})
    prompts = [[*prompt[:-1], 64 + i] for i in range(48)]
    config = backend._generation_config(SamplingParams(), "neither")

    def static() -> int:
        for start in range(0, 48, 16):
            ids = torch.tensor(prompts[start : start + 16])
            ends = [len(prompt) + length for length in wanted[start : start + 16]]
            config.max_new_tokens = max(wanted)
            arguments: dict[str, Any] = {"generation_config": config, "stopping_criteria": [_Lengths(ends)]}
            backend.model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)  # type: ignore[operator]
        return sum(wanted)

    def ours() -> int:
        rows = [Row(list(ids), len(ids) + length) for ids, length in zip(prompts, wanted, strict=True)]
        with torch.no_grad():
            generate_rows(backend.model, rows, config, Ending(), batch_size=16)
        return sum(len(row.ids) - row.start for row in rows)

    theirs, own = best(static, ours)
    print(
        f"48 ragged outputs of {min(wanted)} to {max(wanted)} tokens ({sum(wanted)} in all), 16 at once: static "
        f"batches {theirs:.0f} tokens/CPU-s, ours {own:.0f}, ratio {own / theirs:.2f} (>= 1.4)"
    )


Step = Callable[[list[dict], list[tuple[int, ...]], SamplingParams], list[tuple[int, ...]]]


def with_backend(backend: TransformersBackend) -> Step:
    def step(prompt: list[dict], beams: list[tuple[int, ...]], params: SamplingParams) -> list[tuple[int, ...]]:
        groups = backend.extend([prompt] * len(beams), beams, params)
        return [(*ids, *c.token_ids) for ids, group in zip(beams, groups, strict=True) for c in group]

    return step


def with_generate(backend: TransformersBackend) -> Step:
    def step(prompt: list[dict], beams: list[tuple[int, ...]], params: SamplingParams) -> list[tuple[int, ...]]:
        begin, config = backend._encode(prompt, {}), backend._generation_config(params, "neither")
        ids = torch.tensor([[*begin, *beam] for beam in beams])
        config.update(max_new_tokens=params.max_tokens, num_return_sequences=params.n)
        torch.manual_seed(params.seed)  # type: ignore[arg-type]
        arguments: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "generation_config": config}
        output = backend.model.generate(ids, **arguments)  # type: ignore[operator]
        return [tuple(row) for row in output[:, len(begin) :].tolist()]

    return step


def search(step: Step, prompt: list[dict]) -> list[tuple[int, ...]]:
    """Token ids of 4 beams; each of 8 steps continues them 4 times each, and keeps every fourth."""
    beams: list[tuple[int, ...]] = [()]
    for seed in range(8):
        beams = step(prompt, beams, SamplingParams(n=16 // len(beams), max_tokens=16, seed=seed))[::4]
    return beams


def beams(length: int) -> None:
    kept, bare = make_backend(), make_backend(keep_bytes=0)
    ways = {"kept caches": with_backend(kept), "shared prefills": with_backend(bare), "generate": with_generate(kept)}
    seconds, found = dict.fromkeys(ways, float("inf")), {}
    for _ in range(3):
        for name, step in ways.items():
            start = time.process_time()
            found[name] = search(step, prompt_of(kept, length))
            seconds[name] = min(seconds[name], time.process_time() - start)
    same = "same tokens" if len({tuple(tokens) for tokens in found.values()}) == 1 else "OTHER TOKENS"
    print(f"beam search, prompt {length}: {same}; CPU-s " + ", ".join(f"{n} {s:.2f}" for n, s in seconds.items()))
    own, reading, stock = seconds.values()
    print(f"  kept / generate {own / stock:.2f} (<= 0.45 at 1024), kept / shared prefills {own / reading:.2f}")


def main() -> None:
    torch.set_num_threads(1)
    equal(128)
    equal(1024)
    ragged()
    beams(128)
    beams(1024)


if __name__ == "__main__":
    main()
