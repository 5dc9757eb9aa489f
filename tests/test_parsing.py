import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from think_tools import FORMATS, THINK, ThinkFormat, ThinkStream, Trace, parse, read_completion, repair

# name -> (text, the trace without `finished`); `opened=False`, `finished=None`.
WHOLE = {
    "thinks, then answers": ("<think>2+2</think>4", Trace("2+2", "4", "complete")),
    "white space around": ("\n<think>\n2+2\n</think>\n\n4\n", Trace("2+2", "4", "complete")),
    "does not think": ("4", Trace(None, "4", "no_think")),
    "empty reasoning, as Qwen3 with thinking off": ("<think>\n\n</think>\n\n4", Trace("", "4", "complete")),
    "cut off in the reasoning": ("<think>2+", Trace("2+", "", "truncated")),
    "cut off in the closing marker": ("<think>2+2</thi", Trace("2+2</thi", "", "truncated")),
    "cut off in the opening marker": ("<thi", Trace(None, "<thi", "no_think")),
    "no answer": ("<think>2+2</think>", Trace("2+2", "", "complete")),
    "second closing marker is text": ("<think>a</think>b</think>c", Trace("a", "b</think>c", "complete")),
    "nested opening marker is text": ("<think>a<think>b</think>c", Trace("a<think>b", "c", "complete")),
    "opening marker after text": ("Say <think>a</think>", Trace(None, "Say <think>a</think>", "no_think")),
    "second block is text": ("<think>a</think>b<think>c</think>d", Trace("a", "b<think>c</think>d", "complete")),
    "lone closing marker": ("a</think>b", Trace(None, "a</think>b", "no_think")),
    "less-than sign": ("<think>1 < 2</think>yes", Trace("1 < 2", "yes", "complete")),
    "Chinese": ("<think>先算二加二</think>等于四", Trace("先算二加二", "等于四", "complete")),
    "NUL and a lone surrogate": ("<think>\0\ud800</think>\udfff\0", Trace("\0\ud800", "\udfff\0", "complete")),
    "nothing": ("", Trace(None, "", "no_think")),
    "white space alone": (" \n\t", Trace(None, "", "no_think")),
}

# name -> (text, finished, the trace) for `opened=True`
OPENED = {
    "goes on where the prompt stopped": ("2+2</think>4", None, Trace("2+2", "4", "complete")),
    "repeats the opening marker": ("<think>\n2+2</think>4", None, Trace("2+2", "4", "complete")),
    "closes at once": ("\n</think>\n4", None, Trace("", "4", "complete")),
    "nothing yet": ("", None, Trace("", "", "truncated")),
    "cut off by the length limit": ("2+2", False, Trace("2+2", "", "truncated", False)),
    "skipped thinking and stopped": ("It is 4.", True, Trace(None, "It is 4.", "unclosed", True)),
    "opened itself, never closed, stopped": ("<think>2+2=4", True, Trace("2+2=4", "", "unclosed", True)),
    "answer cut off": ("2+2</think>It i", False, Trace("2+2", "It i", "complete", False)),
}

ANSWER_TAGS = FORMATS["r1_zero"]
# name -> (text, reasoning, answer) with `<answer>` tags
TAGGED = {
    "both tags": ("<think>r</think> <answer> 4 </answer>", "r", "4"),
    "text after the closing tag stays": ("<think>r</think><answer>4</answer>!", "r", "4!"),
    "no closing tag": ("<think>r</think><answer>4", "r", "4"),
    "no tags": ("<think>r</think>4", "r", "4"),
    "text before the opening tag: both are text": (
        "<think>r</think>So <answer>4</answer>",
        "r",
        "So <answer>4</answer>",
    ),
    "closing tag alone is text": ("<think>r</think>4</answer>", "r", "4</answer>"),
    "only the first pair is removed": (
        "<think>r</think><answer><answer>4</answer></answer>",
        "r",
        "<answer>4</answer>",
    ),
    "cut off in the opening tag": ("<think>r</think>\n<ans", "r", "<ans"),
    "cut off in the closing tag": ("<think>r</think><answer>4</ans", "r", "4</ans"),
    "no reasoning": ("<answer>4</answer>", None, "4"),
}


def streamed(text, sizes=(1,), *, finished=None, **kwargs) -> tuple[Trace, list[tuple[str, str]]]:
    """The trace and what was shown, with `text` cut into pieces of these sizes in turn."""
    stream, shown, position, turn = ThinkStream(**kwargs), [], 0, 0
    while position < len(text):
        size = sizes[turn % len(sizes)]
        shown += stream.feed(text[position : position + size])
        position, turn = position + size, turn + 1
    return stream.finish(finished), shown


@pytest.mark.parametrize(("text", "expected"), WHOLE.values(), ids=WHOLE)
def test_whole_and_streamed_output(text, expected):
    assert parse(text) == expected
    for size in (1, 2, 3, 7, 1000):
        assert streamed(text, (size,))[0] == expected


@pytest.mark.parametrize(("text", "finished", "expected"), OPENED.values(), ids=OPENED)
def test_output_whose_reasoning_the_prompt_opened(text, finished, expected):
    assert parse(text, opened=True, finished=finished) == expected
    for size in (1, 2, 3, 7, 1000):
        assert streamed(text, (size,), opened=True, finished=finished)[0] == expected


@pytest.mark.parametrize(("text", "reasoning", "answer"), TAGGED.values(), ids=TAGGED)
def test_answer_markers(text, reasoning, answer):
    trace = parse(text, fmt=ANSWER_TAGS)
    assert (trace.reasoning, trace.answer) == (reasoning, answer)
    for size in (1, 2, 3, 7, 1000):
        assert streamed(text, (size,), fmt=ANSWER_TAGS)[0] == trace


GEMMA, MAGISTRAL, GPT_OSS = FORMATS["gemma_4"], FORMATS["magistral"], FORMATS["gpt_oss"]
# name -> (text, format, the trace), by the rules of one family
FAMILY_RULES = {
    "stop token": ("<think>r</think>4<|im_end|>", THINK, Trace("r", "4", "complete")),
    "stop tokens and padding": ("4<|im_end|>\n<|endoftext|><|endoftext|>\n", THINK, Trace(None, "4", "no_think")),
    "stop token in the reasoning": ("<think>r<|im_end|>", THINK, Trace("r", "", "truncated")),
    "nothing but a stop token": ("<|im_end|>", THINK, Trace(None, "", "no_think")),
    "stop token after the answer tag": (
        "<think>r</think><answer>4</answer><|eot_id|>",
        ANSWER_TAGS,
        Trace("r", "4", "complete"),
    ),
    "stop token inside is text": ("Write <|im_end|> last.", THINK, Trace(None, "Write <|im_end|> last.", "no_think")),
    "cut off in a stop token": ("4<|im_end|><|im_", THINK, Trace(None, "4<|im_end|><|im_", "no_think")),
    "HTML is no stop token": ("<s>4</s>", THINK, Trace(None, "<s>4</s>", "no_think")),
    "Mistral's is": ("[THINK]r[/THINK]4</s>", MAGISTRAL, Trace("r", "4", "complete")),
    "no stop tokens wanted": (
        "4<|im_end|>",
        ThinkFormat("mine", "<t>", "</t>", stop=()),
        Trace(None, "4<|im_end|>", "no_think"),
    ),
    "long form of a marker": ("<|channel>thought\nr<channel|>4", GEMMA, Trace("r", "4", "complete")),
    "short form of a marker": ("<|channel>r<channel|>4", GEMMA, Trace("r", "4", "complete")),
    "short form before a similar word": ("<|channel>thousands<channel|>4", GEMMA, Trace("thousands", "4", "complete")),
    "cut off between the forms": ("<|channel>thou", GEMMA, Trace(None, "<|channel>thou", "no_think")),
    "answer without reasoning": ("<|channel|>final<|message|>4<|return|>", GPT_OSS, Trace(None, "4", "no_think")),
    "answer in a schema": (
        "<|channel|>analysis<|message|>r<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
        GPT_OSS,
        Trace("r", "{}", "complete"),
    ),
    "text before the reasoning": ("So: [THINK]r[/THINK]4", MAGISTRAL, Trace("r", "So: 4", "complete")),
    "text and nothing else": ("So: 4", MAGISTRAL, Trace(None, "So: 4", "no_think")),
    "text before, never closed": ("So: [THINK]r", MAGISTRAL, Trace("r", "So:", "truncated")),
    "text before the second block": ("[THINK]r[/THINK]4[THINK]", MAGISTRAL, Trace("r", "4[THINK]", "complete")),
    "skips thinking by a closing marker": ("</mm:think>4", FORMATS["minimax_m3"], Trace(None, "4", "no_think")),
    "elsewhere such a marker is text": ("</think>4", THINK, Trace(None, "</think>4", "no_think")),
    "a tool call in the reasoning is text": (
        "<think>r<tool_call>c</think>4",
        THINK,
        Trace("r<tool_call>c", "4", "complete"),
    ),
}


@pytest.mark.parametrize(("text", "fmt", "expected"), FAMILY_RULES.values(), ids=FAMILY_RULES)
def test_the_rules_of_one_family(text, fmt, expected):
    assert parse(text, fmt=fmt) == expected
    for size in (1, 2, 3, 7, 1000):
        trace, shown = streamed(text, (size,), fmt=fmt)
        assert trace == expected
        if expected.status != "truncated":
            assert trace.answer.startswith("".join(piece for part, piece in shown if part == "answer").strip())


def test_a_stop_token_is_shown_only_if_text_follows():
    stream = ThinkStream()
    shown = [stream.feed(delta) for delta in ["4", "<|im_", "end|>", "\n", "<|im_end|>", " ", "5"]]
    assert shown[:6] == [(("answer", "4"),), (), (), (), (), ()]
    assert shown[6] == (("answer", "<|im_end|>\n<|im_end|> "), ("answer", "5"))
    assert stream.finish().answer == "4<|im_end|>\n<|im_end|> 5"


def test_a_marker_in_pieces_is_never_shown():
    stream = ThinkStream()
    shown = [piece for delta in ["<thi", "nk>2+2", "</th", "ink>", "4"] for piece in stream.feed(delta)]
    assert shown == [("reasoning", "2+2"), ("answer", "4")]


def test_what_only_looked_like_a_marker_is_shown_once_that_is_certain():
    stream = ThinkStream(opened=True)
    assert [stream.feed(delta) for delta in ["1 ", "<", "/", " 2"]] == [
        (("reasoning", "1 "),),
        (),
        (),
        (("reasoning", "</ 2"),),
    ]


def test_finish_may_be_asked_for_at_any_time():
    stream = ThinkStream()
    stream.feed("<think>a</th")
    assert stream.finish() == stream.finish() == Trace("a</th", "", "truncated")
    stream.feed("ink>b")
    assert stream.finish(True) == Trace("a", "b", "complete", True)


PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<",
    "</",
    "think>",
    "<thi",
    "a",
    "b c",
    " ",
    "\n",
    "答",
    "\0",
]
FAMILY_PIECES = [
    "<|im_end|>",
    "<|im_",
    "<tool_call>",
    "[THINK]",
    "[/THINK]",
    "</s>",
    "<|channel>",
    "thought",
    "<channel|>",
]
THINK_TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=20)
TEXTS = st.lists(st.sampled_from(PIECES + FAMILY_PIECES), max_size=14).map("".join) | st.text(max_size=20)
FORMATS_READ = st.sampled_from([THINK, ANSWER_TAGS, GEMMA, MAGISTRAL, FORMATS["minimax_m3"]])
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXTS, SIZES, st.booleans(), st.sampled_from([True, False, None]), FORMATS_READ)
@example(" \n<answer>4</answer>", [1], False, None, ANSWER_TAGS)
@example("<|channel>thought", [2], False, None, GEMMA)
def test_every_way_of_cutting_gives_the_trace_of_the_whole_text(text, sizes, opened, finished, fmt):
    trace, shown = streamed(text, sizes, opened=opened, finished=finished, fmt=fmt)
    assert trace == parse(text, opened=opened, finished=finished, fmt=fmt)
    if trace.status == "complete":
        reasoning = "".join(text for part, text in shown if part == "reasoning")
        assert reasoning.strip() == trace.reasoning
        assert fmt.close not in reasoning
    answer = "".join(text for part, text in shown if part == "answer").strip()
    assert trace.status == "unclosed" or trace.answer.startswith(answer)
    if fmt is THINK:
        assert_nothing_is_lost(trace, without_stop(text, fmt))


MARKERS = re.compile(r"</?think>|\s")


def without_stop(text: str, fmt: ThinkFormat) -> str:
    """The text without the stop tokens that it ends in, one after the other."""
    text = text.rstrip()
    for token in fmt.stop:
        if text.endswith(token):
            return without_stop(text.removesuffix(token), fmt)
    return text


def assert_nothing_is_lost(trace: Trace, text: str) -> None:
    """All characters outside markers and white space are in the trace."""
    kept = MARKERS.sub("", trace.reasoning or "") + MARKERS.sub("", trace.answer)
    assert sorted(kept) == sorted(MARKERS.sub("", text))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXTS, SIZES, st.booleans(), st.sampled_from([True, False, None]), FORMATS_READ)
def test_interleaved_blocks_do_not_depend_on_the_cuts_and_lose_nothing(text, sizes, opened, finished, fmt):
    trace, _ = streamed(text, sizes, opened=opened, finished=finished, fmt=fmt, interleaved=True)
    assert trace == parse(text, opened=opened, finished=finished, fmt=fmt, interleaved=True)
    assert trace.reasoning is None or trace.reasoning == "\n\n".join(
        t for part, t in trace.blocks if part == "reasoning"
    )
    if fmt is THINK:
        blocks = "".join(MARKERS.sub("", block) for _, block in trace.blocks)
        assert blocks == MARKERS.sub("", without_stop(text, fmt))


def test_interleaved_reasoning_keeps_its_blocks_in_order():
    trace, shown = streamed("<think>a</think>b <think>c</think>d", interleaved=True)
    assert trace.blocks == (("reasoning", "a"), ("answer", "b"), ("reasoning", "c"), ("answer", "d"))
    assert (trace.reasoning, trace.answer, trace.status) == ("a\n\nc", "b d", "complete")
    assert "".join(text for _, text in shown) == "ab cd"
    cut, _ = streamed("<think>a</think>b<think>c", interleaved=True)
    assert (cut.reasoning, cut.answer, cut.status) == ("a\n\nc", "b", "truncated")


def test_interleaved_reasoning_with_answer_markers():
    text = "<think>a</think><answer>b</answer><think>c</think> <answer>d</answer>"
    trace, _ = streamed(text, (3,), interleaved=True, fmt=ANSWER_TAGS)
    assert trace.blocks == (("reasoning", "a"), ("answer", "b"), ("reasoning", "c"), ("answer", "d"))


CALL = "<tool_call>{}</tool_call>"
# name -> (text, format, the blocks of reasoning, the answer) read interleaved
INTERLEAVED = {
    "thinks between two calls": (
        f"<think>a</think>{CALL}<think>b</think>{CALL}<think>c</think>4",
        THINK,
        ["a", "b", "c"],
        f"{CALL}{CALL}4",
    ),
    "a call ends the reasoning": (f"<think>a\n{CALL}", THINK, ["a"], CALL),
    "a call of another family too": (
        "<think>a<|tool_calls_section_begin|>{}",
        THINK,
        ["a"],
        "<|tool_calls_section_begin|>{}",
    ),
    "a call ends each block": (f"<think>a{CALL}<think>b{CALL}", THINK, ["a", "b"], f"{CALL}{CALL}"),
    "Mistral": ("[THINK]a[/THINK]b[THINK]c[TOOL_CALLS]f{}</s>", MAGISTRAL, ["a", "c"], "b[TOOL_CALLS]f{}"),
    "Gemma": (
        "<|channel>thought\na<channel|><|tool_call>f<|channel>b<channel|>4<turn|>",
        GEMMA,
        ["a", "b"],
        "<|tool_call>f4",
    ),
    "gpt-oss": (
        "<|channel|>analysis<|message|>a<|end|><|channel|>analysis<|message|>b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>4<|return|>",
        GPT_OSS,
        ["a", "b"],
        "4",
    ),
    "an answer alone": ("4", THINK, [], "4"),
}


@pytest.mark.parametrize(("text", "fmt", "thoughts", "answer"), INTERLEAVED.values(), ids=INTERLEAVED)
def test_several_blocks_of_reasoning(text, fmt, thoughts, answer):
    trace = parse(text, fmt=fmt, interleaved=True)
    assert [block for part, block in trace.blocks if part == "reasoning"] == thoughts
    assert (trace.reasoning, trace.answer) == ("\n\n".join(thoughts) or None, answer)
    assert trace.status == ("complete" if thoughts else "no_think")
    assert read_completion(text, fmt=fmt, interleaved=True) == trace
    for size in (1, 2, 3, 7):
        assert streamed(text, (size,), fmt=fmt, interleaved=True)[0] == trace


# name -> (message, the blocks) read interleaved
INTERLEAVED_MESSAGES = {
    "inline": ({"content": "<think>a</think>b<think>c</think>d"}, "rara"),
    "typed parts": (
        {"content": [{"type": kind, kind: text} for kind, text in zip(["thinking", "text"] * 2, "abcd", strict=True)]},
        "rara",
    ),
    "the first block split off by a server": ({"reasoning_content": "a", "content": "b<think>c</think>d"}, "rara"),
    "cut in the last block": ({"reasoning_content": "a", "content": "b<think>c"}, "rar"),
    "one block": ({"thinking": "a", "content": "b"}, "ra"),
    "a thought alone": ({"thinking": "a", "content": ""}, "r"),
    "no reasoning": ({"content": "a"}, "a"),
}


@pytest.mark.parametrize(("message", "parts"), INTERLEAVED_MESSAGES.values(), ids=INTERLEAVED_MESSAGES)
def test_a_message_with_several_blocks(message, parts):
    trace = read_completion(message, interleaved=True)
    names = {"r": "reasoning", "a": "answer"}
    assert trace.blocks == tuple((names[part], text) for part, text in zip(parts, "abcd", strict=False))
    assert trace.status == ("no_think" if "r" not in parts else "complete" if parts.endswith("a") else "truncated")


@pytest.mark.parametrize("text", [text for text, _ in WHOLE.values()] + ["<think>r</think>a\n\nb"])
def test_canonical_text_is_read_as_the_same_trace(text):
    trace = parse(text)
    assert parse(trace.text()) == trace
    tagged = parse(text, fmt=ANSWER_TAGS)
    assert parse(tagged.text(ANSWER_TAGS), fmt=ANSWER_TAGS) == tagged


# Each gives the same trace as the inline text beside it.
MESSAGES = {
    "reasoning_content": ({"role": "assistant", "reasoning_content": "r", "content": "a"}, "<think>r</think>a"),
    "thinking": ({"thinking": "r\n", "content": "\na"}, "<think>r</think>a"),
    "reasoning": ({"reasoning": "r", "content": "a"}, "<think>r</think>a"),
    "inline": ({"role": "assistant", "content": "<think>r</think>a"}, "<think>r</think>a"),
    "no reasoning": ({"content": "a", "reasoning_content": None}, "a"),
    "inline beside an empty key": ({"content": "<think>r</think>a", "reasoning_content": ""}, "<think>r</think>a"),
    "empty block split off": ({"content": "a", "reasoning_content": ""}, "<think>\n\n</think>\n\na"),
    "the reasoning took all tokens": ({"content": "", "reasoning_content": "r"}, "<think>r"),
    "None content": ({"content": None, "reasoning_content": "r"}, "<think>r"),
    "None content of a tool call": ({"content": None, "tool_calls": []}, ""),
    "no content key in a tool call": ({"role": "assistant", "tool_calls": []}, ""),
    "the last assistant turn": (
        [
            {"role": "assistant", "content": "x"},
            {"role": "tool", "content": "y"},
            {"role": "assistant", "content": "a"},
        ],
        "a",
    ),
    "typed parts": (
        {"content": [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]},
        "<think>r</think>a",
    ),
    "nested parts, as Mistral": (
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "r"}]},
                {"type": "text", "text": "a"},
            ]
        },
        "<think>r</think>a",
    ),
    "plain strings as parts": ({"content": ["<think>r", "</think>a"]}, "<think>r</think>a"),
}


@pytest.mark.parametrize(("completion", "inline"), MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("finished", [True, False, None])
def test_a_message_gives_the_trace_of_the_inline_text(completion, inline, finished):
    expected = parse(inline, finished=finished)
    assert read_completion(completion, finished=finished) == expected
    assert read_completion(inline, finished=finished) == expected


def test_the_message_of_a_trace_is_read_as_that_trace():
    for text in ("<think>r</think>a", "a", "<think></think>a", "<think>r"):
        trace = parse(text)
        assert read_completion(trace.message()) == read_completion([trace.message()]) == trace


GUESSED = {
    "closing marker first: the prompt had opened": ("r</think>a<think>b", Trace("r", "a<think>b", "complete")),
    "closing marker alone": ("</think>a", Trace("", "a", "complete")),
    "opening marker first": ("a <think>r</think>b", Trace(None, "a <think>r</think>b", "no_think")),
    "no marker": ("a", Trace(None, "a", "no_think")),
    "closing marker first, and a stop token": ("r</think>a<|im_end|>", Trace("r", "a", "complete")),
}


@pytest.mark.parametrize(("text", "expected"), GUESSED.values(), ids=GUESSED)
def test_whether_the_prompt_opened_is_guessed_if_unknown(text, expected):
    assert read_completion(text) == expected


def test_a_short_opening_marker_is_one_for_the_guess():
    assert read_completion("<|channel>r<channel|>4", fmt=GEMMA) == Trace("r", "4", "complete")
    assert read_completion("r<channel|>4", fmt=GEMMA) == Trace("r", "4", "complete")


def test_what_the_caller_knows_is_not_guessed():
    assert read_completion("r", opened=True) == Trace("r", "", "truncated")
    assert read_completion("r</think>a", opened=False) == Trace(None, "r</think>a", "no_think")


BAD_COMPLETIONS = {
    "None": (None, TypeError, "`completion` must be a string, a message or a list of messages, got NoneType."),
    "a number": (3, TypeError, "`completion` must be a string, a message or a list of messages, got int."),
    "a list of strings": (["a"], TypeError, "got list of str."),
    "an empty list": ([], ValueError, "`completion` must hold an assistant turn, got the roles []"),
    "no assistant turn": ([{"role": "user", "content": "q"}], ValueError, "assistant turn, got the roles ['user']"),
    "a user message": ({"role": "user", "content": "q"}, ValueError, "an assistant message, got role 'user'."),
    "no content": ({"text": "a"}, ValueError, "`completion` must have the key 'content', got the keys ['text']."),
    "bytes as content": ({"content": b"a"}, TypeError, "a list of parts or None as content, got bytes."),
    "a number as reasoning": ({"content": "a", "thinking": 3}, TypeError, "its reasoning as a string, got int."),
    "an image": ({"content": [{"type": "image", "url": "x"}]}, ValueError, "got [('type', 'image'), ('url', 'x')]."),
}


@pytest.mark.parametrize(("completion", "error", "message"), BAD_COMPLETIONS.values(), ids=BAD_COMPLETIONS)
def test_what_is_no_completion_is_refused(completion, error, message):
    with pytest.raises(error, match=re.escape(message)):
        read_completion(completion)


@pytest.mark.parametrize("function", [parse, repair, ThinkStream().feed], ids=["parse", "repair", "feed"])
@pytest.mark.parametrize("text", [None, 3, b"a", ["a"]])
def test_what_is_no_text_is_refused(function, text):
    with pytest.raises(TypeError, match=r"`text` must be a string, got (NoneType|int|bytes|list): pass the decoded"):
        function(text)


@pytest.mark.parametrize("function", [lambda finished: parse("a", finished=finished), ThinkStream().finish])
def test_a_finish_reason_is_no_finished(function):
    with pytest.raises(TypeError, match=r"`finished` must be True, False or None, got 'length'"):
        function("length")


@pytest.mark.parametrize("function", [parse, read_completion, lambda text, **options: ThinkStream(**options)])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"fmt": "qwen3"}, "`fmt` must be a ThinkFormat, got 'qwen3': pass `FORMATS[name]` or `ThinkFormat(...)`."),
        (
            {"opened": "closed"},
            "`opened` must be True or False, got 'closed': pass `prompt_state(tokenizer) == 'open'`.",
        ),
    ],
    ids=["the name of a format", "the state of a prompt"],
)
def test_names_are_no_options(function, option, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        function("a", **option)


REPAIRED = {
    "well formed": ("<think>r</think>a", Trace("r", "a", "complete")),
    "no reasoning": ("a < b", Trace(None, "a < b", "no_think")),
    "no opening marker": ("r</think>a", Trace("r", "a", "complete", rule="missing_open")),
    "no closing marker": ("<think>r", Trace("r", "", "truncated", rule="missing_close")),
    "an answer tag instead of the closing marker": (
        "<think>r\n<answer>a</answer>",
        Trace("r", "<answer>a</answer>", "complete", rule="missing_close"),
    ),
    "text before": ("Sure! <think>r</think>a", Trace("r", "Sure!\n\na", "complete", rule="text_before")),
    "several blocks": (
        "<think>r</think>a<think>s</think>b",
        Trace("r\n\ns", "a\n\nb", "complete", rule="several_blocks"),
    ),
    "nested": (
        "<think>r<think>s</think>t</think>a",
        Trace("r\n\ns\n\nt", "a", "complete", rule="repeated_open+repeated_close"),
    ),
    "escaped": (r"\<think\>r\</think\>a", Trace("r", "a", "complete", rule="marker_spelling")),
    "escaped slash": (r"<think>r<\/think>a", Trace("r", "a", "complete", rule="marker_spelling")),
    "HTML entities": ("&lt;think&gt;r&lt;/think&gt;a", Trace("r", "a", "complete", rule="marker_spelling")),
    "full width": ("＜think＞r＜／think＞a", Trace("r", "a", "complete", rule="marker_spelling")),
    "upper case": ("<Think>r</THINK>a", Trace("r", "a", "complete", rule="marker_spelling")),
    "attributes": ('<think type="cot">r</think>a', Trace("r", "a", "complete", rule="marker_spelling")),
    "another tag": ("<thinking>r</thinking>a", Trace("r", "a", "complete", rule="other_markers")),
    "another family": ("[THINK]r[/THINK]a", Trace("r", "a", "complete", rule="other_markers")),
    "another family, opening marker missing": (
        "r◁/think▷a",
        Trace("r", "a", "complete", rule="other_markers+missing_open"),
    ),
    "another family with answer markers": (
        "<|channel|>analysis<|message|>r<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>",
        Trace("r", "a", "complete", rule="other_markers"),
    ),
    "a quoted marker is text": (
        "<think>close with `</think>`</think>a",
        Trace("close with `</think>`", "a", "complete", rule="quoted_marker"),
    ),
    "several rules": (
        r"r\</think\>a<think>s",
        Trace("r\n\ns", "a", "truncated", rule="marker_spelling+missing_open+several_blocks+missing_close"),
    ),
    "another tag is text inside": ("<think>the <thought> tag</think>a", Trace("the <thought> tag", "a", "complete")),
    "no tag at all": ("<think about it> a", Trace(None, "<think about it> a", "no_think")),
}


@pytest.mark.parametrize(("text", "expected"), REPAIRED.values(), ids=REPAIRED)
def test_repair_reads_the_text_and_names_the_rule(text, expected):
    assert repair(text) == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(THINK_TEXTS)
def test_repair_loses_nothing_and_leaves_well_formed_text_alone(text):
    trace = repair(text)
    assert_nothing_is_lost(trace, without_stop(text, THINK))
    if trace.rule is None:
        assert trace == parse(text)
    else:
        assert trace.status != "no_think"


HUGE = {
    "one word": "a" * 10_000_000,
    "white space": " " * 10_000_000,
    "opening brackets": "<" * 10_000_000,
    "opening markers": "<think>" * 1_400_000,
    "attributes without end": "<think " + " =" * 5_000_000,
    "stop tokens": "<|im_end|>" * 1_000_000 + "a",
    "tool calls": "<think><tool_call>" * 550_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_ten_megabytes_take_seconds_at_most(text):
    stream = ThinkStream(fmt=ThinkFormat("test", "<think>", "</think>", "<answer>", "</answer>"), interleaved=True)
    begin = time.process_time()
    for start in range(0, len(text), 4096):
        stream.feed(text[start : start + 4096])
    traces = [stream.finish(), parse(text), read_completion(text), repair(text)]
    assert time.process_time() - begin < 20
    letters = len(MARKERS.sub("", text))
    for trace in traces:
        assert len(MARKERS.sub("", trace.reasoning or "")) + len(MARKERS.sub("", trace.answer)) == letters
