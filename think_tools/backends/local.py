"""Sample from a transformers model, in batches or live, with the reasoning and the answer told apart."""

import asyncio
import contextvars
import copy
import threading
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..formats import THINK, ThinkFormat, detect_format
from ..parsing import ThinkStream, parse
from ..templates import PromptState, end_of_turn, prompt_state
from .sampling import Candidate, Delta, Messages, SamplingParams

if TYPE_CHECKING:
    from peft import PeftModel


class TransformersBackend:
    """
    Samples from a transformers model in this process, a PEFT model included.

    Where the prompt has closed the thinking (`enable_thinking=False`), the model cannot open it again, whether the
    opening marker is one token or several: reinforcement makes models write `<think>` after any prompt.

    A backend generates once at a time: a second call, from whatever thread, waits for the first. Two visitors of a
    page therefore never share a batch, nor the state of the random number generator. While it generates, the model is
    in evaluation mode.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, on the device it is to run on.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with a chat template.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning. `None` finds them by `detect_format`, and is `THINK` if the tokenizer shows none.
        sanitize_control_tokens (`bool`, *optional*, defaults to `True`):
            Whether control tokens in the messages are encoded as ordinary text, so that nobody can close the
            reasoning or the turn by typing `</think>` or `<|im_end|>`. Prompts of your own that mean the token, such
            as worked examples with `<think>`, need `False`.

    Example:

    ```python
    from think_tools.backends import SamplingParams, TransformersBackend
    from think_tools.tiny import load_tiny

    backend = TransformersBackend(*load_tiny("thinker"))
    [[candidate]] = backend.sample([[{"role": "user", "content": "12*13=?"}]], SamplingParams(temperature=0))
    print(candidate.trace.reasoning, candidate.trace.answer)
    ```
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        tokenizer: PreTrainedTokenizerBase,
        *,
        fmt: ThinkFormat | None = None,
        sanitize_control_tokens: bool = True,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.fmt = fmt or detect_format(tokenizer) or THINK
        self.sanitize_control_tokens = sanitize_control_tokens
        self._lock = threading.Lock()
        self._end_ids = _end_ids(model, tokenizer, self.fmt)
        # A tokenizer may join the end of a marker that is ordinary text with the line break after it.
        ways = (self.fmt.open, f"{self.fmt.open}\n", f"{self.fmt.open}\n\n")
        self._opening_ids = [tokenizer.encode(way, add_special_tokens=False) for way in ways]

    def sample(
        self, prompts: Sequence[Messages], params: SamplingParams, *, batch_size: int = 16, **chat_template_kwargs: Any
    ) -> list[list[Candidate]]:
        """
        Answer every prompt `params.n` times.

        Args:
            prompts (`list[list[dict]]`):
                One list of messages per prompt.
            params ([`SamplingParams`]):
                How to sample.
            batch_size (`int`, *optional*, defaults to `16`):
                Most sequences to generate at once. The candidates of one prompt stay together, even if they are more.
            chat_template_kwargs (*optional*):
                Variables of the chat template, such as `enable_thinking=False`.

        Returns:
            `list[list[Candidate]]`: `params.n` candidates for each prompt, in the order of `prompts`.

        Raises:
            `ValueError`: If a prompt fills the model's context, or `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        rows = [self._encode(messages, chat_template_kwargs) for messages in prompts]
        state = prompt_state(self.tokenizer, fmt=self.fmt, **chat_template_kwargs)
        per_batch = max(1, batch_size // params.n)
        outputs: list[list[int]] = []
        with self._exclusive(params.seed):
            for start in range(0, len(rows), per_batch):
                outputs += self._generate(rows[start : start + per_batch], params, state)
        candidates = [self._candidate(ids, opened=state == "open") for ids in outputs]
        return [candidates[i : i + params.n] for i in range(0, len(candidates), params.n)]

    async def stream(
        self, messages: Messages, params: SamplingParams, **chat_template_kwargs: Any
    ) -> AsyncGenerator[Delta | Candidate, None]:
        """
        Answer one prompt live.

        Text comes as soon as it is certain: never half a character, never a piece of a marker. The candidate at the
        end is what holds; it may read the text otherwise than the deltas did, as when a model that was to think ends
        its turn without closing the reasoning.

        Closing the generator (`aclose`, or cancelling the task that awaits it) ends the generation at its next token.

        Args:
            messages (`list[dict]`):
                The prompt.
            params ([`SamplingParams`]):
                How to sample; `n` must be 1.
            chat_template_kwargs (*optional*):
                Variables of the chat template, such as `enable_thinking=False`.

        Yields:
            [`Delta`] for each piece of text, then one [`Candidate`].

        Raises:
            `ValueError`: If `params.n` is not 1, or the prompt fills the model's context. Whatever the model raises
            while it generates is raised here too.

        Example:

        ```python
        async for event in backend.stream([{"role": "user", "content": "12*13=?"}], SamplingParams(temperature=0)):
            print(event)
        ```
        """
        if params.n != 1:
            raise ValueError(f"`params.n` must be 1 to stream, got {params.n}.")
        prompt = self._encode(messages, chat_template_kwargs)
        state = prompt_state(self.tokenizer, fmt=self.fmt, **chat_template_kwargs)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[int | list[int] | Exception] = asyncio.Queue()
        streamer = _TokenStreamer(lambda item: loop.call_soon_threadsafe(queue.put_nowait, item))

        def run() -> None:
            try:
                with self._exclusive(params.seed):
                    [output] = self._generate([prompt], params, state, streamer)
                streamer.send(output)
            except _Cancelled:
                return
            except Exception as error:  # raised on a thread nobody watches: it belongs to the caller, whatever it is
                if not streamer.cancelled.is_set():
                    streamer.send(error)

        # A thread of our own and not the loop's executor, whose few threads would all wait for the lock. No daemon:
        # the interpreter would end in the middle of a kernel. It waits for one token at most, see `finally`.
        threading.Thread(target=contextvars.copy_context().run, args=(run,)).start()
        text, split = _TextStream(self._decode), ThinkStream(opened=state == "open", fmt=self.fmt)
        num_tokens = 0
        try:
            while not isinstance(item := await queue.get(), list):
                if isinstance(item, Exception):
                    raise item
                num_tokens += 1
                for part, piece in () if item in self._end_ids else split.feed(text.feed(item)):
                    yield Delta(part, piece, num_tokens)
            for part, piece in split.feed(text.finish()):
                yield Delta(part, piece, num_tokens)
            yield self._candidate(item, opened=state == "open")
        finally:
            streamer.cancelled.set()

    def _encode(self, messages: Messages, chat_template_kwargs: dict[str, Any]) -> list[int]:
        prompt = self.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            sanitize_control_tokens=self.sanitize_control_tokens,
            **chat_template_kwargs,
        )
        ids: list[int] = prompt["input_ids"]  # type: ignore[index]
        if len(ids) >= self._context():
            raise ValueError(
                f"`messages` are {len(ids)} tokens long, but the model reads at most {self._context()}, its answer "
                "included. Leave out earlier turns or shorten the question."
            )
        return ids

    def _context(self) -> float:
        """Most tokens of prompt and output together; infinite for models without positions, such as Mamba."""
        return self.model.config.get_text_config().to_dict().get("max_position_embeddings", float("inf"))

    def _decode(self, ids: list[int]) -> str:
        # Think markers may be special tokens, so special tokens stay; the end of turn is cut off as an id.
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @contextmanager
    def _exclusive(self, seed: int | None) -> Iterator[None]:
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with self._lock, torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            training = self.model.training
            self.model.eval()
            try:
                yield
            finally:
                self.model.train(training)

    def _generate(
        self,
        prompts: list[list[int]],
        params: SamplingParams,
        state: PromptState,
        streamer: BaseStreamer | None = None,
    ) -> list[list[int]]:
        """New ids of `params.n` outputs per prompt, up to and with the first end token."""
        width = max(map(len, prompts))
        config = self._generation_config(params, width, state)
        gaps = [width - len(ids) for ids in prompts]
        padded = [[config.pad_token_id] * gap + ids for gap, ids in zip(gaps, prompts, strict=True)]
        mask = [[0] * gap + [1] * len(ids) for gap, ids in zip(gaps, prompts, strict=True)]
        output: torch.Tensor = self.model.generate(  # type: ignore[operator]  # (prompts * n, width + new)
            input_ids=torch.tensor(padded, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            generation_config=config,
            streamer=streamer,
        )
        rows = output[:, width:].tolist()
        return [row[: next((i + 1 for i, token in enumerate(row) if token in self._end_ids), None)] for row in rows]

    def _generation_config(self, params: SamplingParams, width: int, state: PromptState) -> GenerationConfig:
        config = copy.deepcopy(self.model.generation_config)
        assert config is not None, "a model that can generate has a generation config"
        pad = self.tokenizer.pad_token_id
        config.update(
            do_sample=params.temperature > 0,
            # Transformers' defaults where nothing is drawn: it logs a complaint about any other value.
            temperature=params.temperature or 1.0,
            top_p=params.top_p if params.temperature else 1.0,
            top_k=params.top_k if params.temperature else 50,
            num_return_sequences=params.n,
            max_length=None,
            max_new_tokens=int(min(params.max_tokens, self._context() - width)),
            eos_token_id=self._end_ids or None,
            bad_words_ids=[*(config.bad_words_ids or []), *(self._opening_ids if state == "closed" else [])] or None,
            # Any id will do: the mask hides it before the prompt, and outputs are cut at their end token.
            pad_token_id=pad if pad is not None else next(iter(self._end_ids), 0),
        )
        return config

    def _candidate(self, ids: list[int], *, opened: bool) -> Candidate:
        finished = ids[-1] in self._end_ids
        ids, num_tokens = ids[:-1] if finished else ids, len(ids)
        text = self._decode(ids)
        trace = parse(text, opened=opened, fmt=self.fmt, finished=finished)
        if trace.reasoning is None:
            num_reasoning_tokens = 0
        elif trace.status == "complete":
            # The fewest tokens whose text has the closing marker, whether it is one token or many.
            lengths = range(len(ids) + 1)
            num_reasoning_tokens = bisect_left(lengths, True, key=lambda n: self.fmt.close in self._decode(ids[:n]))
        else:
            num_reasoning_tokens = len(ids)
        return Candidate(text, trace, "stop" if finished else "length", num_tokens, num_reasoning_tokens)


def _end_ids(model: "PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerBase, fmt: ThinkFormat) -> list[int]:
    """Every token that may end a turn: a base model's own one often is not the one that its chat template writes."""
    own: Any = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    end = end_of_turn(tokenizer)
    # One token may end both the reasoning and the turn (`<|end|>` of Solar): the answer is yet to come.
    if end in tokenizer.all_special_ids and tokenizer.encode(fmt.close, add_special_tokens=False) != [end]:
        ends.append(end)
    return sorted({end for end in ends if end is not None})


class _Cancelled(Exception):
    """Nobody wants the rest of the output."""


class _TokenStreamer(BaseStreamer):
    """Sends each new token of a batch of one; raises in the middle of `generate` once cancelled."""

    def __init__(self, send: Callable[[int | list[int] | Exception], object]) -> None:
        self.send = send
        self.cancelled = threading.Event()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.cancelled.is_set():
            raise _Cancelled
        if self._prompt_seen:
            self.send(value.item())  # type: ignore[arg-type]
        self._prompt_seen = True

    def end(self) -> None:
        pass


class _TextStream:
    """Decodes tokens one by one and holds back those that do not make a whole character yet."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = 0  # the tokens of the last piece stay as context: some tokenizers drop a leading space

    def feed(self, token: int) -> str:
        self._ids.append(token)
        piece = self._new_text()
        if not piece or piece.endswith("\ufffd"):  # the first bytes of a character
            return ""
        self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
        return piece

    def finish(self) -> str:
        """The text held back until now, broken characters included."""
        return self._new_text()

    def _new_text(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._shown])) :]
