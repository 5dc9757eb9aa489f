"""Sample from a transformers model, in batches or live, with the reasoning and the answer told apart."""

import asyncio
import contextvars
import copy
import threading
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..decoding import ThinkingBudget
from ..formats import THINK, ThinkFormat, detect_format
from ..parsing import ThinkStream, parse
from ..templates import PromptState, end_of_turn, prompt_state
from .batching import Ending, KeptCaches, Row, generate_rows
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
        keep_bytes (`int`, *optional*, defaults to 1 GiB):
            Most bytes of keys and values that `extend` keeps, on the model's device. `0` keeps none, and every step of
            a search reads everything again.

    Example:

    ```python
    from think_tools.backends import SamplingParams, TransformersBackend
    from think_tools.tiny import load_tiny

    backend = TransformersBackend(*load_tiny("thinker"))
    [[candidate]] = backend.sample([[{"role": "user", "content": "12*13=?"}]], SamplingParams(temperature=0))
    print(candidate.trace.reasoning, candidate.trace.answer)
    ```
    """

    supports_extend = True
    supports_logprobs = True
    supports_thinking_budget = True

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        tokenizer: PreTrainedTokenizerBase,
        *,
        fmt: ThinkFormat | None = None,
        sanitize_control_tokens: bool = True,
        keep_bytes: int = 2**30,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.fmt = fmt or detect_format(tokenizer) or THINK
        self.sanitize_control_tokens = sanitize_control_tokens
        self._kept = KeptCaches(keep_bytes)
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

        Outputs that have ended leave the batch and waiting ones take their places; the candidates of one prompt share
        the work of reading it. With a think budget or waits, and for models with recurrent layers, a batch waits for
        its longest output instead.

        Args:
            prompts (`list[list[dict]]`):
                One list of messages per prompt.
            params ([`SamplingParams`]):
                How to sample.
            batch_size (`int`, *optional*, defaults to `16`):
                Most sequences to generate at once.
            chat_template_kwargs (*optional*):
                Variables of the chat template, such as `enable_thinking=False`.

        Returns:
            `list[list[Candidate]]`: `params.n` candidates for each prompt, in the order of `prompts`.

        Raises:
            `ValueError`: If a prompt fills the model's context, or `batch_size` is below 1.
        """
        kept = self._kept if params.stop else None  # a stop text means to go on
        return self._extend(prompts, [[]] * len(prompts), params, chat_template_kwargs, batch_size, kept)

    def extend(
        self,
        prompts: Sequence[Messages],
        prefixes: Sequence[Sequence[int] | str],
        params: SamplingParams,
        *,
        batch_size: int = 16,
        **chat_template_kwargs: Any,
    ) -> list[list[Candidate]]:
        """
        Go on with every assistant turn from its own tokens, `params.n` times.

        The keys and values of what is written are kept, so that a search reads each token once. They are dropped when
        the model is trained or its adapters change.

        Args:
            prompts (`list[list[dict]]`):
                The messages before each turn.
            prefixes (`list[list[int]]`):
                What stands in each turn so far: the `token_ids` of the candidates that led there, one after the other,
                `[]` to begin. A text is tokenized, maybe otherwise than the model did.
            params ([`SamplingParams`]):
                How to sample; `max_tokens` counts new tokens.
            batch_size (`int`, *optional*, defaults to `16`):
                Most sequences to generate at once.
            chat_template_kwargs (*optional*):
                Variables of the chat template, such as `enable_thinking=False`.

        Returns:
            `list[list[Candidate]]`: `params.n` continuations of each turn; the text and tokens of each are only what
            is new, its trace is that of the whole turn.

        Raises:
            `ValueError`: If a turn has ended already or fills the model's context, if there are not as many prefixes
                as prompts, or if `batch_size` is below 1.

        Example:

        ```python
        >>> from think_tools.backends import SamplingParams, TransformersBackend
        >>> from think_tools.tiny import load_tiny

        >>> backend = TransformersBackend(*load_tiny("thinker"))
        >>> prompt, params = [{"role": "user", "content": "12*13=?"}], SamplingParams(temperature=0, stop=("\\n",))
        >>> [[step]] = backend.sample([prompt], params)
        >>> [[rest]] = backend.extend([prompt], [step.token_ids], SamplingParams(temperature=0))
        >>> rest.trace.answer
        '156'
        ```
        """
        return self._extend(prompts, prefixes, params, chat_template_kwargs, batch_size, self._kept)

    def _extend(
        self,
        prompts: Sequence[Messages],
        prefixes: Sequence[Sequence[int] | str],
        params: SamplingParams,
        chat_template_kwargs: dict[str, Any],
        batch_size: int,
        kept: KeptCaches | None,
    ) -> list[list[Candidate]]:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if len(prompts) != len(prefixes):
            raise ValueError(f"`prefixes` must be as many as `prompts`, got {len(prefixes)} and {len(prompts)}.")
        state = prompt_state(self.tokenizer, fmt=self.fmt, **chat_template_kwargs)
        begun = [self._row(*turn, params, chat_template_kwargs) for turn in zip(prompts, prefixes, strict=True)]
        rows = [Row([*row.ids], row.most, row.turn, cache=row.cache) for row in begun for _ in range(params.n)]
        with self._exclusive(params.seed):
            if kept:  # a new search reads its prompts again, and meets nothing of an old one
                kept.find(self.model, [row for row in begun if row.start > row.turn])
            self._generate(rows, params, state, batch_size=batch_size, kept=kept)
        candidates = [self._candidate(row, params, state) for row in rows]
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
        row = self._row(messages, "", params, chat_template_kwargs)
        state = prompt_state(self.tokenizer, fmt=self.fmt, **chat_template_kwargs)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[int | Row | Exception] = asyncio.Queue()
        streamer = _TokenStreamer(lambda item: loop.call_soon_threadsafe(queue.put_nowait, item))

        def run() -> None:
            try:
                with self._exclusive(params.seed):
                    self._generate([row], params, state, streamer=streamer)
                streamer.send(row)
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
            while not isinstance(item := await queue.get(), Row):
                if isinstance(item, Exception):
                    raise item
                num_tokens += 1
                for part, piece in () if item in self._end_ids else split.feed(text.feed(item)):
                    yield Delta(part, piece, num_tokens)
            for part, piece in split.feed(text.finish()):
                yield Delta(part, piece, num_tokens)
            yield self._candidate(item, params, state)
        finally:
            streamer.cancelled.set()

    def _row(
        self,
        messages: Messages,
        prefix: Sequence[int] | str,
        params: SamplingParams,
        chat_template_kwargs: dict[str, Any],
    ) -> Row:
        prompt = self._encode(messages, chat_template_kwargs)
        if isinstance(prefix, str):
            prefix = self.tokenizer.encode(prefix, add_special_tokens=False)
        if prefix and prefix[-1] in self._end_ids:
            raise ValueError(f"`prefixes` has a turn that has ended, with token {prefix[-1]}: nothing can follow.")
        start = len(prompt) + len(prefix)
        if start >= self._context():
            raise ValueError(
                f"A prompt with its prefix is {start} tokens long, but the model reads at most {self._context()}. A "
                "turn whose last candidate has `finish_reason='length'` may be one that cannot go on."
            )
        return Row([*prompt, *prefix], int(min(start + params.max_tokens, self._context())), turn=len(prompt))

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

    def _generate(self, rows: list[Row], params: SamplingParams, state: PromptState, **options: Any) -> None:
        """Write all rows; `options` are those of `generate_rows`."""
        ending = Ending(self._end_ids, params.stop, params.logprobs, self._decode)
        config = self._generation_config(params, state)
        if params.thinking_token_budget is not None or params.num_wait:
            budget = ThinkingBudget(
                self.tokenizer,
                params.thinking_token_budget,
                num_wait=params.num_wait,
                eos_token_ids=self._end_ids,
                fmt=self.fmt,
            )
            options["processors"] = [budget]
        generate_rows(self.model, rows, config, ending, **{"batch_size": len(rows), **options})

    def _generation_config(self, params: SamplingParams, state: PromptState) -> GenerationConfig:
        config = copy.deepcopy(self.model.generation_config)
        assert config is not None, "a model that can generate has a generation config"
        pad = self.tokenizer.pad_token_id
        config.update(
            do_sample=params.temperature > 0,
            # Transformers' defaults where nothing is drawn: it logs a complaint about any other value.
            temperature=params.temperature or 1.0,
            top_p=params.top_p if params.temperature else 1.0,
            top_k=params.top_k if params.temperature else 50,
            # The rest would make of one row several, or of one step several tokens.
            num_return_sequences=1,
            num_beams=1,
            prompt_lookup_num_tokens=None,
            max_length=None,
            eos_token_id=self._end_ids or None,
            bad_words_ids=[*(config.bad_words_ids or []), *(self._opening_ids if state == "closed" else [])] or None,
            # Any id will do: the mask hides it before the prompt, and outputs are cut at their end token.
            pad_token_id=pad if pad is not None else next(iter(self._end_ids), 0),
        )
        return config

    def _candidate(self, row: Row, params: SamplingParams, state: PromptState) -> Candidate:
        finished = row.ids[-1] in self._end_ids
        ids = row.ids[row.turn : len(row.ids) - finished]
        new, before = row.ids[row.start :], row.start - row.turn
        whole = self._decode(ids)
        cut = not finished and row.stop_reason is None
        end = None if row.stop_reason else finished
        trace = parse(whole, opened=state == "open", fmt=self.fmt, finished=end)
        if trace.reasoning is None:
            num_reasoning_tokens = 0
        elif trace.status == "complete":
            # The fewest tokens whose text has the closing marker, whether it is one token or many.
            lengths = range(len(ids) + 1)
            num_reasoning_tokens = bisect_left(lengths, True, key=lambda n: self.fmt.close in self._decode(ids[:n]))
        else:
            num_reasoning_tokens = len(ids)
        num_reasoning_tokens = max(0, num_reasoning_tokens - before)
        answered = trace.reasoning is None or trace.status == "complete"
        answer = row.logprobs[num_reasoning_tokens:] if answered else []
        return Candidate(
            text=whole[len(self._decode(ids[:before])) :],  # not decoded alone: some tokenizers drop a leading space
            trace=trace,
            finish_reason="length" if cut else "stop",
            num_tokens=len(new),
            num_reasoning_tokens=num_reasoning_tokens,
            num_prompt_tokens=row.start,
            stop_reason=row.stop_reason,
            token_ids=tuple(new),
            logprob=fmean(row.logprobs) if params.logprobs else None,
            answer_logprob=fmean(answer) if params.logprobs and answer else None,
        )


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

    def __init__(self, send: Callable[[int | Row | Exception], object]) -> None:
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
