"""Generate many rows with one model: rows that end leave the batch, waiting ones enter, and caches can be kept."""

import copy
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache, GenerationConfig, LogitsProcessor, PreTrainedModel, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.streamers import BaseStreamer

if TYPE_CHECKING:
    from peft import PeftModel

# Of some tokens of one row: keys and values in each layer, (heads, tokens, size).
KeyValues = list[tuple[torch.Tensor, torch.Tensor]]
# Rows that must have ended before a batch is made up anew, which costs about as much as a few steps.
_FEWEST = 4


@dataclass(eq=False)
class Row:
    """
    One output in the making.

    Args:
        ids (`list[int]`): Prompt, prefix, and what is written so far.
        most (`int`): Length of `ids` at which it is cut off.
        turn (`int`): Where the prompt ends and the assistant's turn begins.
        stop_reason (`str`, *optional*): The stop text it ended with.
        done (`bool`): Whether it has ended.
        logprobs (`list[float]`): Log-probability of each new token, if wanted.
        cache (`list`): Pieces that hold its first tokens, at most all but the last; `[]` if none was read. Rows that
            have the same list are read once.
        num_kept (`int`): How many of those tokens [`KeptCaches`] has.
    """

    ids: list[int]
    most: int
    turn: int = 0
    stop_reason: str | None = None
    done: bool = False
    logprobs: list[float] = field(default_factory=list)
    cache: list[KeyValues] = field(default_factory=list)
    num_kept: int = 0

    def __post_init__(self) -> None:
        self.start = len(self.ids)

    @property
    def num_cached(self) -> int:
        return sum(piece[0][0].shape[1] for piece in self.cache)


@dataclass(frozen=True)
class Ending:
    """When a row ends, and what is noted on the way."""

    end_ids: Sequence[int] = ()
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    decode: Callable[[list[int]], str] = str

    def reason(self, row: Row) -> str | None:
        """The stop text in the new tokens of a row, if its last token completed one."""
        # Each token has a byte at least; the ones before make sure that none is read as the first of a text.
        tail = max((len(stop.encode()) for stop in self.stop), default=0) + 4
        text = self.decode(row.ids[max(row.start, len(row.ids) - tail) :]) if self.stop else ""
        return next((stop for stop in self.stop if stop in text), None)


def generate_rows(
    model: "PreTrainedModel | PeftModel",
    rows: Sequence[Row],
    config: GenerationConfig,
    ending: Ending,
    *,
    batch_size: int,
    processors: Sequence[LogitsProcessor] = (),
    streamer: BaseStreamer | None = None,
    kept: "KeptCaches | None" = None,
) -> None:
    """
    Write every row to its end, at most `batch_size` at once.

    A batch is generated until a quarter of its rows have ended; those leave, and waiting ones take their places. Rows
    of the same prompt share its prefill. `processors` may count what they have seen, so with any of them, and for
    models whose cache cannot be cut into rows, a batch is generated until all of its rows have ended. Rows that may
    go on leave what was read of them to `kept`.
    """
    cuttable = keeps_cache(model)
    steady = bool(processors) or not cuttable or _counts_steps(config)
    waiting, active = deque(rows), list[Row]()
    while waiting or active:
        new = [waiting.popleft() for _ in range(min(len(waiting), batch_size - len(active)))]
        active += new
        enough = len(active)
        if not steady:
            enough = min(enough, max(_FEWEST, math.ceil(enough / (4 if waiting else 2))))
        if cuttable:
            _prefill(model, active, config, kept)
        for row in new:
            row.num_kept = row.num_cached if kept else 0
        watch = _Watch(active, ending, enough)
        _segment(model, watch, config, cached=cuttable, processors=processors, streamer=streamer)
        for row in active:
            if row.done:
                if kept and row.ids[-1] not in ending.end_ids:
                    kept.keep(row)
                row.cache = []
        active = [row for row in active if not row.done]


def keeps_cache(model: "PreTrainedModel | PeftModel") -> bool:
    """Whether the cache of a row can be cut out and joined with others: keys and values of its tokens alone."""
    config: Any = model.generation_config
    layers = DynamicCache(config=model.config).layers
    return (
        model._supports_default_dynamic_cache()  # type: ignore[operator]  # not RWKV's, xLSTM's
        and config.use_cache is not False
        and config.cache_implementation in (None, "dynamic")
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        and "prompt_encoder" not in dict(model.named_children())  # PEFT's virtual tokens, which no row has
    )


class KeptCaches:
    """
    What was read of rows that may go on, each token once; the least recently used is given up first.

    Args:
        most (`int`): Most bytes to keep.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        # By all tokens up to its end: where a piece begins, and the piece. The one before it ends there.
        self._pieces: OrderedDict[tuple[int, ...], tuple[int, KeyValues]] = OrderedDict()
        self._num_bytes = 0
        self._model_state: object = None

    def find(self, model: torch.nn.Module, rows: Iterable[Row]) -> None:
        """Give each row what there is of all its tokens but the last."""
        if self._model_state != (state := _model_state(model)):
            self._pieces.clear()  # trained since, or another adapter: these keys and values are not its own
            self._model_state, self._num_bytes = state, 0
        lengths = sorted({len(key) for key in self._pieces}, reverse=True)
        for row in rows:
            for length in (length for length in lengths if length < len(row.ids) and not row.cache):
                found, key = list[KeyValues](), tuple(row.ids[:length])
                while key in self._pieces:
                    self._pieces.move_to_end(key)
                    start, piece = self._pieces[key]
                    found, key = [piece, *found], key[:start]
                if not key:  # nothing before it was given up
                    row.cache[:] = found

    def keep(self, row: Row) -> None:
        """Copy what is new in the cache of `row`, whose tensors belong to a whole batch."""
        new = slice(row.num_kept, row.num_cached)
        if self.most and new.start < new.stop:
            [whole] = row.cache
            key, row.num_kept = tuple(row.ids[: new.stop]), new.stop
            _, old = self._pieces.pop(key, (0, []))
            piece = [(keys[:, new].clone(), values[:, new].clone()) for keys, values in whole]
            self._pieces[key] = new.start, piece
            self._num_bytes += _num_bytes(piece) - _num_bytes(old)
            while self._num_bytes > self.most:
                _, (_, old) = self._pieces.popitem(last=False)
                self._num_bytes -= _num_bytes(old)


def _num_bytes(piece: KeyValues) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in piece)


def _model_state(model: torch.nn.Module) -> object:
    """Differs after an optimizer step, loaded weights, or a change of adapters."""
    versions = sum(0 if parameter.is_inference() else parameter._version for parameter in model.parameters())
    adapters = [(vars(m).get("_active_adapter"), vars(m).get("_disable_adapters")) for m in model.modules()]
    return versions, str([adapter for adapter in adapters if adapter != (None, None)])


def _counts_steps(config: GenerationConfig) -> bool:
    """Whether a setting counts from the first new token, which differs by row once rows enter one by one."""
    names = ("min_new_tokens", "min_length", "begin_suppress_tokens", "exponential_decay_length_penalty")
    return any(config.to_dict().get(name) for name in names)


def _prefill(
    model: "PreTrainedModel | PeftModel", rows: Sequence[Row], config: GenerationConfig, kept: KeptCaches | None
) -> None:
    """Read rows that are to join others, up to their last token."""
    firsts = {id(row.cache): row for row in rows}.values()
    if len(firsts) == len(rows) and not any(row.cache for row in rows):
        return  # the first step of the batch does it
    # A gap between what is cached and what is not would be counted by sliding windows, so the two meet in all rows.
    groups: dict[int, list[Row]] = {}
    for row in firsts:
        if (left := len(row.ids) - row.num_cached) > 1:
            groups.setdefault(left if row.cache else 0, []).append(row)
    greedy = copy.deepcopy(config)
    greedy.update(do_sample=False, temperature=1.0, top_p=1.0, top_k=50)  # no draw, so that the seed gives the same
    for group in groups.values():
        # `generate` writes a token more than is wanted, but knows which positions and masks the model takes.
        copies = [Row([*row.ids], len(row.ids) + 1, cache=row.cache, num_kept=row.num_cached) for row in group]
        _segment(model, _Watch(copies, Ending(), len(copies)), greedy, cached=True)
        for row, read in zip(group, copies, strict=True):
            row.cache[:] = [[(keys[:, :-1], values[:, :-1]) for keys, values in piece] for piece in read.cache]
            if kept:
                read.cache = row.cache
                kept.keep(read)


def _segment(
    model: "PreTrainedModel | PeftModel",
    watch: "_Watch",
    config: GenerationConfig,
    *,
    cached: bool,
    processors: Sequence[LogitsProcessor] = (),
    streamer: BaseStreamer | None = None,
) -> None:
    """Generate until enough rows have ended; with `cached`, from their caches and into them."""
    rows, lengths = watch.rows, [len(row.ids) for row in watch.rows]
    width = max(lengths)
    ids = [[config.pad_token_id] * (width - len(row.ids)) + row.ids for row in rows]
    mask = [[0] * (width - length) + [1] * length for length in lengths]
    config.max_new_tokens = max(row.most - len(row.ids) for row in rows)
    cache = _join([row.cache for row in rows]) if cached else None
    model.generate(  # type: ignore[operator]
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        past_key_values=cache,
        generation_config=config,
        logits_processor=[*([watch.scores] if watch.ending.logprobs else []), *processors],
        stopping_criteria=[watch],
        streamer=streamer,
    )
    layers: list[Any] = cache.layers if cache else []
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        end = width + len(row.ids) - length - 1  # the last token of a row was never read
        read = slice(end - len(row.ids) + 1, end)
        row.cache = [[(layer.keys[i, :, read], layer.values[i, :, read]) for layer in layers]] if layers else []


def _join(caches: Sequence[Sequence[KeyValues]]) -> Cache:
    """One cache (rows, heads, longest, size), each row at its right end."""
    num_layers = max((len(piece) for cache in caches for piece in cache), default=0)
    if not num_layers:
        return Cache(layer_class_to_replicate=_GrowingLayer)
    return Cache([_GrowingLayer([[piece[i] for piece in cache] for cache in caches]) for i in range(num_layers)])


class _GrowingLayer(DynamicLayer):
    """
    Keys and values of all tokens, those out of a sliding window too: the mask hides them. Room is made in advance,
    where transformers copies all tokens for each new one: most of the time of a CPU at a thousand tokens.
    """

    def __init__(self, rows: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]] = ()) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []
        if rows:
            some = next(pair for pieces in rows for pair in pieces)
            self.lazy_initialization(*some)
            longest = max(sum(keys.shape[1] for keys, _ in pieces) for pieces in rows)
            self._make_room([part.expand(len(rows), -1, -1, -1) for part in some], longest)
            for row, pieces in enumerate(rows):
                at = longest
                for pair in reversed(pieces):
                    end, at = at, at - pair[0].shape[1]
                    for buffer, part in zip(self._buffers, pair, strict=True):
                        buffer[row, :, at:end] = part
            self.keys, self.values = (buffer[:, :, :longest] for buffer in self._buffers)

    def _make_room(self, like: Sequence[torch.Tensor], length: int) -> None:
        old, room = self._buffers, length + max(128, length // 4)
        # Zeros, since what a mask hides must be a number all the same.
        self._buffers = [part.new_zeros(*part.shape[:2], room, part.shape[3]) for part in like]
        for buffer, part in zip(self._buffers, old, strict=bool(old)):
            buffer[:, :, : part.shape[2]] = part

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new, start = (key_states, value_states), self.get_seq_length()
        end = start + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(*new)
        if not self._buffers or end > self._buffers[0].shape[2]:
            self._make_room(new, end)
        for buffer, states in zip(self._buffers, new, strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


class _Scores(LogitsProcessor):
    """Holds the log-probabilities of the last step, (rows, vocabulary), as the model has them."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.last = scores.log_softmax(-1)  # a copy: later processors write into the scores
        return scores


class _Watch(StoppingCriteria):
    """Notes each new token in its row, and ends the batch when `enough` rows have ended."""

    def __init__(self, rows: Sequence[Row], ending: Ending, enough: int) -> None:
        self.rows, self.ending, self.enough = rows, ending, enough
        self.scores = _Scores()
        self.over = False

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        if not self.over:  # on Apple's devices `generate` takes a step too many, and takes it back
            new = input_ids[:, -1:]
            logprobs = [[0.0]] * len(self.rows)
            if self.ending.logprobs:
                logprobs = self.scores.last.gather(1, new).tolist()
            for row, [token], [logprob] in zip(self.rows, new.tolist(), logprobs, strict=True):
                if not row.done:
                    row.ids.append(token)
                    row.logprobs.append(logprob)
                    row.stop_reason = self.ending.reason(row)
                    row.done = bool(row.stop_reason) or token in self.ending.end_ids or len(row.ids) >= row.most
            self.over = sum(row.done for row in self.rows) >= self.enough
        return torch.tensor([self.over or row.done for row in self.rows], device=input_ids.device)
