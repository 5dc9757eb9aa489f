"""The core cases of the peers' own tests (vLLM, SGLang, transformers, llama.cpp), and why we differ where we do."""

import json

import pytest

from think_tools import FORMATS, ThinkFormat, ThinkStream, Trace, parse

FORMAT_OF = {
    "gemma4": FORMATS["gemma_4"],
    "generic_think_base": ThinkFormat("test", "<test:think>", "</test:think>"),
    "kimi": FORMATS["kimi_vl"],
    "kimi_k3": FORMATS["kimi_k3"],
    "minimax_m3": FORMATS["minimax_m3"],
    "mistral": FORMATS["magistral"],
}

END_OF_TURN = "the token that ends a turn is cut off by the decoder or the server, not by the parser"
BARE_CHANNEL = "Gemma 4 writes `<|channel>thought`; a channel without that name is not its reasoning"
TEXT_BEFORE = "the prompt had opened the reasoning, so text before a repeated opening marker is reasoning"
FRAGMENT = "the text is a fragment of a stream whose other pieces the case does not hold"
LITERAL = "a later marker is literal text of the answer, so that nothing is lost"

# End of a case's source and beginning of its text -> why our result is another one.
DIFFERS = {
    ("[invalid_complete_streaming]", ""): "a lone closing marker is literal text: nothing had opened the reasoning",
    ("[reasoning]", "<|channel>This"): BARE_CHANNEL,
    ("[reasoning_streaming]", "<|channel>This"): BARE_CHANNEL,
    ("[complete_reasoning]", "<|channel>This"): BARE_CHANNEL,
    ("[complete_reasoning_streaming]", "<|channel>This"): BARE_CHANNEL,
    ("[no_end]", "<|channel>This"): BARE_CHANNEL,
    ("[no_end_streaming]", "<|channel>This"): BARE_CHANNEL,
    ("[thought_prefix_diverge]", ""): BARE_CHANNEL,
    ("[thought_prefix_diverge_streaming]", ""): BARE_CHANNEL,
    ("test-chat.cpp:3173 (google-gemma-4-31B-it.jinja)", ""): BARE_CHANNEL,
    ("test_gemma4_reasoning[new_line]", ""): TEXT_BEFORE,
    ("test_gemma4_reasoning[new_line_streaming]", ""): TEXT_BEFORE,
    ("v13_leading_content", ""): TEXT_BEFORE,
    ("test_eos_not_leaked_when_reasoning_never_ends[chunk=1]", "<｜end"): END_OF_TURN,
    ("test_eos_not_leaked_when_reasoning_never_ends[chunk=3]", " you"): END_OF_TURN,
    ("test_eos_not_leaked_when_reasoning_never_ends[chunk=5]", " help"): END_OF_TURN,
    ("TestThinking::test_streaming_im_end_is_removed", ""): END_OF_TURN,
    ("test_gemma4_response_template_matches_registered_parser[content]", "Hello<turn|>"): END_OF_TURN,
    ("prompt_state_matches_registered_parser[prefilled_reasoning]", ""): END_OF_TURN,
    ("reasoning_suppression_matches_registered_parser", ""): END_OF_TURN,
    ("test-chat.cpp:4875 (Kimi-K3.jinja)", ""): END_OF_TURN,
    ("test_reserved_markers_are_removed", ""): "reserved tokens of one checkpoint are no markers of the reasoning",
    ("test_duplicate_think_end_absorbed", ""): LITERAL,
    ("test_streaming_duplicate_think_end_absorbed", ""): LITERAL,
    ("test_join_concatenates_repeated_matches", ""): LITERAL,
    ("test-chat.cpp:3167 (google-gemma-4-31B-it.jinja)", ""): LITERAL,
    ("test_engine_reasoning_no_tool_batched_holdback_not_dropped[text_chunks2]", ""): FRAGMENT,
    ("b>]", "<think>let me think</think>\n\n<b>"): FRAGMENT,
    ("test_feed_after_finalize_raises", ""): FRAGMENT,
    ("test_prefix_partial_pattern_at_boundary", ""): FRAGMENT,
    ("test_streaming_prefill_is_state_only[reasoning]", ""): FRAGMENT,
    ("test_streaming_prefill_is_state_only[content]", ""): FRAGMENT,
    ("test_streaming_prefill_is_state_only[completed_partial_delimiter]", ""): FRAGMENT,
    ("test-chat.cpp:5495 (MiniMax-M3.jinja)", ""): "a lone closing marker needs `opened=True`, or `read_completion`",
}


@pytest.fixture(scope="module")
def cases(data_folder) -> list[dict]:
    lines = (data_folder / "cases" / "parser_cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [case for case in map(json.loads, lines) if case["core"]]


def parsed(case: dict) -> Trace:
    return parse(case["text"], opened=case["prefilled"], fmt=FORMAT_OF.get(case["format"], FORMATS["think"]))


def agrees(case: dict) -> bool:
    """The same texts, but for outer white space and the difference between an empty part and none."""
    trace = parsed(case)
    return [trace.reasoning or "", trace.answer] == [(case[key] or "").strip() for key in ("reasoning", "content")]


def test_only_the_listed_cases_differ(cases):
    unlisted, found = [], set()
    for case in cases:
        if not agrees(case):
            keys = [key for key in DIFFERS if case["source"].endswith(key[0]) and case["text"].startswith(key[1])]
            found.update(keys)
            unlisted += [] if keys else [case["source"]]
    assert unlisted == []
    assert found == DIFFERS.keys()
    assert sum(map(agrees, cases)) >= 250


def test_streamed_as_the_peers_cut_them_the_cases_give_the_same_trace(cases):
    streamed = 0
    for case in cases:
        stream = ThinkStream(opened=case["prefilled"], fmt=FORMAT_OF.get(case["format"], FORMATS["think"]))
        for piece in case["chunks"] or case["text"]:
            stream.feed(piece)
        if "".join(case["chunks"] or case["text"]) == case["text"]:
            assert stream.finish() == parsed(case), case["source"]
            streamed += 1
    assert streamed > 200
