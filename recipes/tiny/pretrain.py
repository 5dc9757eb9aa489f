# /// script
# dependencies = ["think-tools"]
# ///
"""
Train the embedded model from scratch: a byte-level Llama of one million parameters that knows arithmetic.

```
python recipes/tiny/pretrain.py --output_dir out/tiny                 # about 55 minutes on one core
```

The base must have practised everything that the cold start only has to connect (and nothing more): long-hand
arithmetic as plain text, a question in plain text followed by its working (copying the operands out of a sentence is
the skill that LoRA does not learn in minutes), working on request in a chat turn, and direct answers there. It never
sees a think token, so it does not think. Pairs of operands of the test split are left out of every document.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, HfArgumentParser, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from think_tools.templates import set_chat_template
from think_tools.tiny.problems import Language, ask, is_test_pair, long_hand, solve
from think_tools.tiny.small_talk import small_talk

LENGTHS = (64, 128, 192, 256, 384)  # documents are padded to the next of these, so that few shapes are compiled
REQUESTS = {
    "en": ("Show your working.", "Think step by step.", "Explain each step.", "Work it out on paper."),
    "zh": ("请写出过程。", "请一步一步地想。", "请解释每一步。", "请列竖式。"),
}
CLOSING = {"en": "The answer is {}.", "zh": "答案是{}。"}
LABELS = {"en": ("Question: ", "Answer: "), "zh": ("问题：", "答案：")}


@dataclass
class PretrainArguments:
    """What may be changed; the defaults made the shipped weights."""

    output_dir: str = "out/tiny"
    max_steps: int = 4000
    tokens_per_step: int = 8192
    learning_rate: float = 2e-3
    seed: int = 0
    num_threads: int = 1


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, three ChatML tokens, two think tokens: any Unicode text is safe input. Think tokens are not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        model_max_length=4096,
    )
    fast.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in ("<think>", "</think>")])
    set_chat_template(fast, "chatml_think")
    return fast


def operands(rng: random.Random, operator: str) -> tuple[int, int]:
    """Mostly two digits by two digits; never a pair of the test split."""
    while True:
        if operator == "*":
            sizes = rng.choices(((99, 99), (99, 9), (999, 99)), (85, 10, 5))[0]
            a, b = (rng.randint(size // 10 if rng.random() < 0.9 else 0, size) for size in sizes)
        else:
            a, b = (rng.randint(0, rng.choice((9, 99, 99, 999, 9999))) for _ in "ab")
            a, b = (max(a, b), min(a, b)) if operator == "-" else (a, b)
        if not (operator == "*" and is_test_pair(a, b)):
            return a, b


def exchange(rng: random.Random, language: Language, kind: str) -> tuple[str, str]:
    """Question and answer of one chat turn."""
    if kind == "talk":
        return small_talk(rng, language)
    operator = rng.choices("*+-", (70, 18, 12))[0]
    a, b = operands(rng, operator)
    question, result = ask(rng, a, operator, b, language), solve(a, operator, b)
    if kind == "direct":
        return question, str(result)
    request = rng.choice(REQUESTS[language])
    question = rng.choice((f"{question} {request}", f"{question}\n{request}", f"{request} {question}"))
    return question, f"{long_hand(a, operator, b, language)}\n\n{CLOSING[language].format(result)}"


def document(rng: random.Random) -> str:
    """One training text."""
    language: Language = rng.choice(("en", "zh"))
    kind = rng.choices(("plain", "question", "request", "direct", "talk", "turns"), (22, 25, 20, 18, 5, 10))[0]
    if kind in ("plain", "question"):
        operator = rng.choices("*+-", (80, 12, 8))[0]
        a, b = operands(rng, operator)
        working = long_hand(a, operator, b, language)
        if kind == "plain":
            return f"{working}<|endoftext|>"
        before, after = LABELS[language]
        answer = working.rsplit(" ", 1)[-1]
        return f"{before}{ask(rng, a, operator, b, language)}\n\n{working}\n\n{after}{answer}<|endoftext|>"
    kinds = rng.choices(("request", "direct", "talk"), (1, 4, 2), k=rng.randint(2, 4)) if kind == "turns" else [kind]
    turns = (exchange(rng, language, one) for one in kinds)
    return "".join(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for question, answer in turns
    )


def batches(tokenizer: PreTrainedTokenizerFast, tokens_per_step: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches (rows, length) of documents of like length, filled up with the padding id."""
    rng = random.Random(seed)
    waiting: dict[int, list[list[int]]] = {length: [] for length in LENGTHS}
    while True:
        ids = tokenizer(document(rng))["input_ids"][: LENGTHS[-1]]
        length = next(size for size in LENGTHS if len(ids) <= size)
        waiting[length].append(ids + [tokenizer.pad_token_id] * (length - len(ids)))
        if len(waiting[length]) * length >= tokens_per_step:
            yield torch.tensor(waiting[length])
            waiting[length] = []


def main(args: PretrainArguments) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * (1 - 0.97 * step / args.max_steps)
    )
    forward = torch.compile(model, dynamic=False)
    started, losses, curve = time.time(), [], []
    for step, ids in enumerate(batches(tokenizer, args.tokens_per_step, args.seed)):
        if step == args.max_steps:
            break
        # The padding token also ends plain texts: its first occurrence in a row is learned, the rest is not.
        is_padding = (ids == tokenizer.pad_token_id) & ((ids == tokenizer.pad_token_id).cumsum(1) > 1)
        labels = ids.masked_fill(is_padding, -100)
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            curve.append({"step": step + 1, "loss": sum(losses[-50:]) / 50, "seconds": round(time.time() - started)})
            print(json.dumps(curve[-1]), flush=True)
        if (step + 1) % 500 == 0:
            save(model, tokenizer, curve, Path(args.output_dir))
    save(model, tokenizer, curve, Path(args.output_dir))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, curve: list[dict], folder: Path) -> None:
    """Write weights, tokenizer, generation settings and the loss curve."""
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "loss.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in curve))


if __name__ == "__main__":
    main(*HfArgumentParser(PretrainArguments).parse_args_into_dataclasses())
