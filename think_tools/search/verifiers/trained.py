"""Verifiers of models that were trained for it: an outcome model and a process model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...backends import Messages
from ...formats import THINK, ThinkFormat
from .scores import problem_text, steps_of


def encode_steps(
    tokenizer: PreTrainedTokenizerBase, prompt: str, steps: Sequence[str], separator: str = "\n"
) -> tuple[list[int], list[int]]:
    r"""
    Token ids of a prompt and its steps, as TRL's trainer of process models wrote them, and where the verdicts are.

    Each step is encoded alone, without the white space around it, and a separator is put after it: a tokenizer that
    gets all in one piece may join the separator with the text before.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The process model's.
        prompt (`str`):
            The texts of the messages, as in the column `prompt` of [`label_steps`].
        steps (`Sequence[str]`):
            Steps of one output.
        separator (`str`, *optional*, defaults to `"\n"`):
            Text after each step; the model's verdict is at its last token.

    Returns:
        `tuple[list[int], list[int]]`: The ids, and the position of the last token of each step's separator.

    Example:

    ```python
    >>> from think_tools.search.verifiers import encode_steps
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> ids, ends = encode_steps(tokenizer, "1+1+1=?", ["1+1=2\n\n", "2+1=3"])
    >>> [tokenizer.decode(ids[: end + 1]) for end in ends]
    ['1+1+1=?1+1=2\n', '1+1+1=?1+1=2\n2+1=3\n']
    ```
    """
    bos: list[Any] = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids = bos + tokenizer.encode(prompt, add_special_tokens=False)
    ends = []
    for step in steps:
        ids += tokenizer.encode(step.strip(), add_special_tokens=False)
        ids += tokenizer.encode(separator, add_special_tokens=False)
        ends.append(len(ids) - 1)
    return ids, ends


def encode_output(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> list[int]:
    """
    Token ids that an outcome model reads: the prompt as the chat template writes it, the output, the end of turn.

    Example:

    ```python
    >>> from think_tools.search.verifiers import encode_output
    >>> from think_tools.tiny import load_tiny

    >>> _, tokenizer = load_tiny()
    >>> tokenizer.decode(encode_output(tokenizer, [{"role": "user", "content": "1+1=?"}], "2"))
    '<|im_start|>user\\n1+1=?<|im_end|>\\n<|im_start|>assistant\\n2<|im_end|>'
    ```
    """
    end: list[Any] = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return prompt_ids(tokenizer, messages) + tokenizer.encode(text, add_special_tokens=False) + end


@dataclass
class OutcomeVerifier:
    """
    Outcome verifier of a trained model: how likely the whole output is right, as [`encode_output`] writes it.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            An `AutoModelForSequenceClassification`, of one label (sigmoid of its logit; TRL's `RewardTrainer` makes
            such models) or two (the share of the second).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `16`):
            Most outputs to read at once.

    Raises:
        `ValueError`: If the model has another number of labels; when it runs, if an output is longer than its context.

    Example:

    ```python
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from think_tools.search import OutcomeVerifier, best_of_n

    name = "out/tiny-outcome-verifier"
    model = AutoModelForSequenceClassification.from_pretrained(name)
    verifier = OutcomeVerifier(model, AutoTokenizer.from_pretrained(name))
    print(verifier([{"role": "user", "content": "12*13=?"}], ["156", "146"]))
    ```
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 16
    num_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.model.config.num_labels not in (1, 2):
            raise ValueError(f"`model` must have one label or two, got {self.model.config.num_labels}.")

    def __call__(self, messages: Messages, texts: Sequence[str]) -> list[float]:
        rows = [encode_output(self.tokenizer, messages, text) for text in texts]
        self.num_tokens += sum(map(len, rows))
        return [
            float(logits.sigmoid() if len(logits) == 1 else logits.softmax(-1)[1])
            for output, _ in forward(self.model, rows, self.batch_size)
            for logits in output.double()  # in single precision every logit above 17 would be a 1
        ]


@dataclass
class ProcessVerifier:
    r"""
    Process verifier of a trained model: how likely the answer will be right after each step, as [`encode_steps`]
    writes them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            An `AutoModelForTokenClassification` of two labels, the second of which is good.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        separator (`str`, *optional*, defaults to `"\n"`):
            Text after each step in training.
        batch_size (`int`, *optional*, defaults to `16`):
            Most outputs to read at once.
        fmt ([`ThinkFormat`], *optional*, defaults to `THINK`):
            Markers of the outputs.

    Raises:
        `ValueError`: If the model has another number of labels; when it runs, if an output is longer than its context.

    Example:

    ```python
    from transformers import AutoModelForTokenClassification, AutoTokenizer
    from think_tools.search import ProcessVerifier

    name = "out/tiny-process-verifier"
    model = AutoModelForTokenClassification.from_pretrained(name)
    verifier = ProcessVerifier(model, AutoTokenizer.from_pretrained(name))
    print(verifier([{"role": "user", "content": "12*13=?"}], ["<think>\nCompute 12*13.\n\n"]))
    ```
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    separator: str = "\n"
    batch_size: int = 16
    fmt: ThinkFormat = THINK
    num_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.model.config.num_labels != 2:
            raise ValueError(f"`model` must have two labels, got {self.model.config.num_labels}.")

    def __call__(self, messages: Messages, texts: Sequence[str]) -> list[list[float]]:
        prompt = problem_text(messages)
        encoded = [encode_steps(self.tokenizer, prompt, steps_of(text, self.fmt), self.separator) for text in texts]
        self.num_tokens += sum(len(ids) for ids, _ in encoded)
        places = (ends for _, ends in encoded)
        return [
            logits[next(places)].softmax(-1)[:, 1].tolist()
            for output, _ in forward(self.model, [ids for ids, _ in encoded], self.batch_size)
            for logits in output.double()
        ]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages, **chat_template_kwargs: Any) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, sanitize_control_tokens=True, **chat_template_kwargs
    )
    return encoded["input_ids"]  # type: ignore[index,call-overload,return-value]


def forward(
    model: PreTrainedModel | PeftModel, rows: list[list[int]], batch_size: int, *, last_only: bool = False
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Logits of each batch, and where the last token of each of its rows is among them, the only ones on request."""
    context = model.config.get_text_config().to_dict().get("max_position_embeddings", math.inf)
    if (longest := max(map(len, rows), default=0)) > context:
        raise ValueError(
            f"`texts` are up to {longest} tokens long with their prompt, but the verifier reads {context}."
        )
    pad = model.config.get_text_config().pad_token_id or 0
    for start in range(0, len(rows), batch_size):
        batch = [torch.tensor(row) for row in rows[start : start + batch_size]]
        ends = [len(row) - 1 for row in batch]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=pad)
        mask = torch.arange(ids.shape[1])[None] <= torch.tensor(ends)[:, None]
        kept = sorted(set(ends))
        only = {"logits_to_keep": torch.tensor(kept, device=model.device)} if last_only else {}
        training = model.training
        model.eval()
        with torch.inference_mode():
            output = model(input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device), **only)
        model.train(training)
        yield output.logits, [kept.index(end) for end in ends] if last_only else ends
