"""The peers' own parser tests (vLLM, SGLang, transformers, llama.cpp), and every place where we read otherwise."""

import json
import random
import re
from pathlib import Path

import pytest
import trl

from think_tools import FORMATS, THINK, ThinkFormat, ThinkStream, Trace, detect_format, parse, read_completion

FORMAT_OF = {
    "apriel15": FORMATS["apriel"],
    "apriel16": FORMATS["apriel"],
    "cohere_command": FORMATS["command_a_reasoning"],
    "ernie45": FORMATS["ernie_4_5"],
    "gemma4": FORMATS["gemma_4"],
    "generic_think_base": ThinkFormat("test", "<test:think>", "</test:think>"),
    "granite": FORMATS["granite_3_2"],
    "kimi": FORMATS["kimi_vl"],
    "mistral": FORMATS["magistral"],
    "muse_glimmer": FORMATS["muse"],
    "plamo3": FORMATS["plamo_3"],
}
HEADER = re.compile(r"<\|turn>model\n|<\|im_start\|>assistant\n")

CLOSE_ALONE = "nothing had opened the reasoning, so a closing marker is text (read_completion takes it for a close)"
REPEATED = "a later marker is literal text of the answer, so that nothing is lost"
ONE_BLOCK = "one block unless `interleaved=True`, which joins blocks of reasoning by a blank line, not by a space"
FRAGMENT = "the case is a piece of a stream and does not hold the others"
RESERVED = "reserved tokens of one checkpoint are no markers of its reasoning"

# End of a core case's source, its text -> (our reasoning and answer, theirs, why).
DIFFERS = {
    ("[invalid_complete_streaming]", "This is a reasoning section<channel|>"): (
        ("", "This is a reasoning section<channel|>"), ("", "This is a reasoning section"), CLOSE_ALONE,
    ),
    (
        "TestThinking::test_reserved_markers_are_removed",
        "<think><reserved_12>private reasoning</think><|reserved_13|>final answer",
    ): (
        ("<reserved_12>private reasoning", "<|reserved_13|>final answer"),
        ("private reasoning", "final answer"), RESERVED,
    ),
    ("test_duplicate_think_end_absorbed", "Reasoning here.</think>Content here.</think>More content."): (
        ("Reasoning here.", "Content here.</think>More content."),
        ("Reasoning here.", "Content here.More content."), REPEATED,
    ),
    ("test_streaming_duplicate_think_end_absorbed", "reasoning</think>content</think>more"): (
        ("reasoning", "content</think>more"), ("reasoning", "contentmore"), REPEATED,
    ),
    ("holdback_not_dropped[text_chunks2]", "</think><"): (("", "<"), ("", ""), FRAGMENT),
    ("b>]", "<think>let me think</think>\n\n<b>bold</b>"): (
        ("let me think", "<b>bold</b>"), ("", "<b>bold</b>"), "the server was told to hide the reasoning",
    ),
    ("test_join_concatenates_repeated_matches", "<think>first</think>middle<think>second</think>done"): (
        ("first", "middle<think>second</think>done"), ("first second", "middle done"), ONE_BLOCK,
    ),
    ("test_feed_after_finalize_raises", "<think>x</think>more"): (
        ("x", "more"), ("x", ""), "the case is about text after the end, which that parser refuses",
    ),
    (
        "test-chat.cpp:3167 (google-gemma-4-31B-it.jinja)",
        "<|channel>thought\n<channel|>Hello, world!\nWhat's up?<|channel>thought\n<channel|><channel|>",
    ): (
        ("", "Hello, world!\nWhat's up?<|channel>thought\n<channel|><channel|>"),
        ("", "Hello, world!\nWhat's up?"), REPEATED,
    ),
    (
        "test-chat.cpp:3173 (google-gemma-4-31B-it.jinja)",
        "<|channel><|channel>thought\n<channel|>Hello, world!\nWhat's up?",
    ): (
        ("<|channel>thought", "Hello, world!\nWhat's up?"),
        ("", "Hello, world!\nWhat's up?"), "a marker right after the opening one is text of the reasoning",
    ),
}  # fmt: skip

CONTINUED = "the turn was begun in the prompt, which the case does not hold"
SWITCHED_OFF = "thinking or its parsing was switched off, so that peer hands the output through"
NONEMPTY = "with an empty answer that peer hands the reasoning out as the answer"
KEEPS_MARKERS = "that parser leaves the reasoning and its markers in the answer on purpose"
CHANNELS = "a pair of markers cannot describe other channels: read tool calls with `tokenizer.parse_response`"
NAMED_CALL = "the name of the tool stands before the marker of the call, and is text for us"
OTHER_MARKERS = "a marker that the format does not know"
ATTRIBUTES = "citations and the like are text of the answer"
HELD_BACK = "the output is cut inside a marker, which that peer holds back and we count as text"
THEIR_SLIP = "their own marker stays in the text"

# Name of a test, beginning of the text, both `""` for any -> why a case outside the core is read otherwise.
OTHERS_DIFFER = {
    ("test-chat.cpp", "world!\nWhat's up?"): CONTINUED,
    ("test-chat.cpp", " thinking"): CONTINUED,
    ("test-chat.cpp:4841", "Hello, world!"): CONTINUED,
    ("test_malformed_call_opened_across_prompt_boundary", ""): CONTINUED,
    ("test_reasoning[thinking_disabled_with_close_tag]", ""): SWITCHED_OFF,
    ("test_reasoning_mode", ""): SWITCHED_OFF,
    ("test_truncated_standard_reasoning_does_not_leak", ""): SWITCHED_OFF,
    ("test-chat.cpp:2606", ""): SWITCHED_OFF,
    ("test-chat.cpp:2704", ""): SWITCHED_OFF,
    ("test-chat.cpp:6106", ""): SWITCHED_OFF,
    ("force_nonempty_content", ""): NONEMPTY,
    ("test_minimax_m2_append_reasoning_parser", ""): KEEPS_MARKERS,
    ("TestMiniMaxAppendThinkDetector", ""): KEEPS_MARKERS,
    ("test_harmony_parser", "<|channel|>"): CHANNELS,
    ("TestGptOssDetector", "<|start|>"): CHANNELS,
    ("(openai-gpt-oss-120b.jinja)", ""): CHANNELS,
    ("test_inkling.py", "<|content_"): CHANNELS,
    ("test_inkling_multi_block_message", ""): CHANNELS,
    ("test_harmony_parser", "analysis"): OTHER_MARKERS,
    ("test_corrupted_wrapper_ends_reasoning", ""): OTHER_MARKERS,
    ("TestBareThoughtWithoutChannelOpener", ""): OTHER_MARKERS,
    ("test-chat.cpp:5103", ""): OTHER_MARKERS,
    ("test_ernie_no_tools", ""): OTHER_MARKERS,
    ("test_reserved_markers_are_removed", ""): RESERVED,
    ("test_streaming_split_reserved_markers", ""): RESERVED,
    ("test_plain_content_is_preserved", ""): RESERVED,
    ("test_full_wire_stream_shape", ""): ATTRIBUTES,
    ("test-chat.cpp:4683", ""): "text after a tool call is the answer for that peer, and tool call and text for us",
    ("test_inkling.py", ""): NAMED_CALL,
    ("test_partial_end_think_is_consistent", ""): HELD_BACK,
    ("test_streaming_partial_start_buffered", ""): HELD_BACK,
    ("TestBaseReasoningFormatDetector.test_parse_streaming_increment", ""): HELD_BACK,
    ("test_streaming_returns_empty_when_in_reasoning", ""): HELD_BACK,
    ("test_every_cut_point_matches_non_streaming", ""): HELD_BACK,
    ("test_streaming_subcases", ""): FRAGMENT,
    ("test_character_split_reasoning_stream", ""): FRAGMENT,
    ("test_tool_block_can_end_reasoning_implicitly", ""): FRAGMENT,
    ("test_round_trip_equivalence_prefix", ""): THEIR_SLIP,
    ("test-chat.cpp:2377", ""): THEIR_SLIP,
    ("test-chat.cpp:6219", ""): THEIR_SLIP,
}


@pytest.fixture(scope="module")
def cases(data_folder) -> list[dict]:
    """Every case, with its format; the message that it goes on with stands before its text."""
    lines = (data_folder / "cases" / "parser_cases.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    for case in cases:
        case["fmt"] = FORMAT_OF.get(case["format"], FORMATS.get(case["format"], THINK))
        if "<|START_TEXT|>" in case["text"]:
            case["fmt"] = FORMATS["cohere2_moe"]
        case["opened"] = case["prefilled"]
        if case["core"] and case.get("prefix"):
            begun = HEADER.split(case["prefix"])[-1]
            case |= {
                "opened": False,
                "text": begun + case["text"],
                "chunks": [begun, *(case["chunks"] or [case["text"]])],
            }
        if case["fmt"].text_before and case["fmt"].open[:8] in case["text"]:
            case["opened"] = False  # it was inferred from the expected result, and the text opens the reasoning itself
    return cases


def parsed(case: dict, **options) -> Trace:
    return parse(case["text"], **{"opened": case["opened"], "fmt": case["fmt"], **options})


def streamed(case: dict, pieces: list[str], **options) -> Trace:
    stream = ThinkStream(**{"opened": case["opened"], "fmt": case["fmt"], **options})
    for piece in pieces:
        stream.feed(piece)
    return stream.finish()


def expected(case: dict) -> tuple[str, str]:
    return (case["reasoning"] or "").strip(), (case["content"] or "").strip()


def texts(trace: Trace) -> tuple[str, str]:
    """The texts alone: an empty part and none are the same."""
    return trace.reasoning or "", trace.answer


def test_the_core_cases_are_read_as_the_peers_do_but_for_the_table(cases):
    core = [case for case in cases if case["core"]]
    different = {}
    for case in core:
        if texts(parsed(case)) != expected(case):
            key = next((k for k in DIFFERS if case["source"].endswith(k[0]) and case["text"] == k[1]), case["source"])
            different[key] = (texts(parsed(case)), expected(case))
    assert different == {key: (ours, theirs) for key, (ours, theirs, _) in DIFFERS.items()}
    assert len(core) == 284
    assert len(core) - len(different) == 274


def test_the_core_cases_give_the_same_trace_in_every_two_pieces(cases):
    for case in cases:
        text = case["text"]
        for cut in range(len(text) + 1 if case["core"] else 0):
            assert streamed(case, [text[:cut], text[cut:]]) == parsed(case), (case["source"], cut)


def test_the_core_cases_give_the_same_trace_in_finer_pieces(cases):
    rng = random.Random(0)
    for case in cases:
        text = case["text"]
        if case["core"]:
            assert streamed(case, list(text)) == parsed(case), case["source"]
            for _ in range(3):
                cuts = sorted(rng.choices(range(len(text) + 1), k=4))
                pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
                assert streamed(case, pieces) == parsed(case), (case["source"], cuts)


def test_cut_as_the_peers_cut_them_the_cases_give_the_same_trace(cases):
    whole = [case for case in cases if "".join(case["chunks"] or []) == case["text"]]
    assert len(whole) > 400
    for case in whole:
        for interleaved in (False, True):
            trace = streamed(case, case["chunks"], interleaved=interleaved)
            assert trace == parsed(case, interleaved=interleaved), case["source"]


@pytest.mark.slow
def test_all_cases_give_the_same_trace_in_every_two_pieces_read_interleaved(cases):
    for case in cases:
        text, trace = case["text"], parsed(case, interleaved=True)
        for cut in range(len(text) + 1):
            assert streamed(case, [text[:cut], text[cut:]], interleaved=True) == trace, (case["source"], cut)


def readings(case: dict) -> list[Trace]:
    """The text read plainly and interleaved, opened as the case says or as a closing marker in front tells."""
    return [
        read_completion(case["text"], opened=opened, fmt=case["fmt"], interleaved=interleaved)
        for interleaved in (False, True)
        for opened in (case["opened"], case["opened"] or None)
    ]


def agrees(case: dict, trace: Trace) -> bool:
    """The same texts; a tool call, which the peers take out, is text of our answer."""
    reasoning, answer = expected(case)
    rest = trace.answer.removeprefix(answer).lstrip()
    call = trace.answer.startswith(answer) and (case.get("tool_calls") or rest.startswith(case["fmt"].tool_open))
    return (trace.reasoning or "") == reasoning and (trace.answer == answer or bool(call))


def test_the_other_cases_are_read_as_the_peers_do_but_for_the_reasons_listed(cases):
    others = [case for case in cases if not case["core"]]
    different = [case for case in others if not any(agrees(case, trace) for trace in readings(case))]
    unlisted, found = [], set()
    for case in different:
        keys = [k for k in OTHERS_DIFFER if k[0] in case["source"] and case["text"].startswith(k[1])]
        found.update(keys[:1])
        unlisted += [] if keys else [(case["source"], case["text"])]
    assert unlisted == []
    assert found == OTHERS_DIFFER.keys()
    assert (len(others), len(others) - len(different)) == (586, 443)


PACKAGED = Path(trl.__file__).parent / "chat_templates"
QUESTION = {"role": "user", "content": "What is 2+2?"}
TURNS = {
    "one line each": ("2 and 2 is 4", "It is 4."),
    "several lines": ("First\n\n* 2 = 2\n* 2+2 = 4", "The sum:\n\n```python\nprint(4)\n```"),
    "signs that begin markers": ("1 < 2, a <b> and [c]", "if 1 < 2: `<|x|>` or <br/>"),
    "other scripts": ("先算二加二。 😀", "等于四。"),
}
# Templates that show the reasoning of the last turn, and the one that shows it only if it is inline in the content.
KEEP = {
    "diffusion_gemma", "gemma4_v5", "glm4moe", "gptoss", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "muse_glimmer",
    "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "qwen3", "qwen3_5_nothink",
    "qwen3_5_think", "qwen3_6", "qwen3_8",
}  # fmt: skip
KEEP_INLINE = {"deepseek_r1_distill_training"}


@pytest.mark.parametrize("file", sorted(PACKAGED.glob("*.jinja")), ids=lambda file: file.stem)
def test_parsing_undoes_a_packaged_template_that_keeps_the_reasoning(tokenizer, file):
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", file.read_text(encoding="utf-8")
    fmt = detect_format(tokenizer) or THINK
    for reasoning, answer in TURNS.values():
        message = {"role": "assistant", "content": answer, "reasoning_content": reasoning}
        if file.stem in KEEP_INLINE:
            message = {"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n\n{answer}"}
        elif file.stem.removesuffix("_training") not in KEEP:
            message["content"] = [{"type": "text", "text": answer}] if file.stem.startswith("llava") else answer
        chat = tokenizer.apply_chat_template([QUESTION, message], tokenize=False)
        if file.stem.removesuffix("_training") not in KEEP and file.stem not in KEEP_INLINE:
            assert reasoning not in chat
            continue
        prompt = tokenizer.apply_chat_template([QUESTION], tokenize=False, add_generation_prompt=True)
        # Only one template, whose prompt closes the reasoning by default, does not begin the turn with the prompt.
        shared = prompt if chat.startswith(prompt) else prompt.removesuffix("\n</think>\n\n")
        assert chat.startswith(shared)
        written, opened = chat[len(shared) :], shared.rstrip().endswith(fmt.open)
        for trace in (parse(written, opened=opened, fmt=fmt), read_completion(written, fmt=fmt)):
            assert (trace.reasoning, trace.answer, trace.status) == (reasoning, answer, "complete")
