"""`check_labels` with texts that are short enough to occur elsewhere, and with other families' markers."""

import pytest
from make_tokenizer import byte_tokenizer

from think_tools import FORMATS
from think_tools.templates import check_labels, end_of_turn, set_chat_template
from think_tools.templates.load import load_template

DROPPED = "the chat template drops the reasoning: it is nowhere in the row"
MASKED = "the reasoning is in the row, but not trained, or not all of it"
CLOSE_MASKED = "</think> is not trained, so the model never learns to end its thinking"


def chat(turn):
    """ChatML around a template of the assistant's turn."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + turn
        + "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


DROPS = chat("{{ m.content }}")
EMPTIES = chat("<think>\n\n</think>\n\n{{ m.content }}")
MUTE = chat("<think>{{ m.reasoning_content }}</think>{{ m.content if m.content|length > 1 }}")
BARE = chat("{{ m.reasoning_content }}\n{{ m.content }}")
KEEPS = load_template("chatml_think")
SEED = chat("<seed:think>{{ m.reasoning_content }}</seed:think>{{ m.content }}")

# Template, reasoning, answer, and what is wrong when all of the turn is trained.
SHORT = {
    "both are the same": (KEEPS, "4", "4", []),
    "reasoning that the answer holds": (KEEPS, "2", "12", []),
    "an answer that the reasoning holds": (KEEPS, "24", "4", []),
    "dropped, and the answer holds it": (DROPS, "2", "12", [DROPPED]),
    "dropped, and the answer is the same": (DROPS, "4", "4", [DROPPED]),
    "dropped, and the marker holds it": (EMPTIES, "think", "4", [DROPPED]),
    "dropped, and the answer repeats it at length": (DROPS, "2 and 2", "It is 4: 2 and 2.", [DROPPED]),
    "an answer that is dropped, and the reasoning holds it": (
        MUTE, "24", "4", ["the chat template drops the answer: it is nowhere in the row"],
    ),
    "written without markers": (BARE, "2", "12", [CLOSE_MASKED]),
    "an answer that shows the markers": (DROPS, None, "Write <think>why</think> first.", []),
    "another family": (SEED, "2", "12", []),
}  # fmt: skip


def row(tokenizer, reasoning, answer):
    """Message, ids, and ids of the prompt."""
    question = {"role": "user", "content": "q"}
    message = {"role": "assistant", "content": answer, "reasoning_content": reasoning}
    message = {key: value for key, value in message.items() if value is not None}
    prompt_ids = tokenizer.apply_chat_template([question], add_generation_prompt=True)["input_ids"]
    return message, tokenizer.apply_chat_template([question, message])["input_ids"], prompt_ids


@pytest.mark.parametrize(("template", "reasoning", "answer", "causes"), SHORT.values(), ids=SHORT)
def test_a_short_text_is_looked_for_where_it_should_stand(template, reasoning, answer, causes):
    tokenizer = byte_tokenizer(template, eos="<|im_end|>")
    message, ids, prompt_ids = row(tokenizer, reasoning, answer)
    labels = [-100] * len(prompt_ids) + ids[len(prompt_ids) :]
    assert check_labels(ids, labels, prompt_ids, message, tokenizer) == causes
    assert check_labels(ids, labels, prompt_ids, message, tokenizer, end_id=end_of_turn(tokenizer)) == causes


def test_short_reasoning_that_is_masked_is_not_found_in_the_answer(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    message, ids, prompt_ids = row(tokenizer, "2", "12")
    close = ids.index(tokenizer.convert_tokens_to_ids("</think>"))
    for start, causes in ((close, [MASKED]), (close + 1, [MASKED])):
        assert check_labels(ids, [-100] * start + ids[start:], prompt_ids, message, tokenizer) == causes


def test_short_reasoning_that_is_cut_is_called_cut(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    message, ids, prompt_ids = row(tokenizer, "123", "3")
    ids = ids[: len(prompt_ids) + 4]  # <think>, line break, 1, 2
    causes = check_labels(ids, [-100] * len(prompt_ids) + ids[len(prompt_ids) :], prompt_ids, message, tokenizer)
    assert causes == [
        "the reasoning is cut: the row ends before it does, so raise the length limit",
        "the answer is cut: the row ends before it does, so raise the length limit",
        "the end of turn <|im_end|> is not trained, so the model never learns to stop",
    ]


def test_a_given_format_is_the_one_that_is_checked():
    tokenizer = byte_tokenizer(SEED, eos="<|im_end|>")
    message, ids, prompt_ids = row(tokenizer, "two", "4")
    labels = [-100] * len(prompt_ids) + ids[len(prompt_ids) :]
    [cause] = check_labels(ids, labels, prompt_ids, message, tokenizer, FORMATS["think"])
    assert cause == CLOSE_MASKED


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look_up", "arguments": {}}}]}
CALLS = {
    "a template that writes it": ("[call {{ m.tool_calls[0].function.name }}]", []),
    "a template that drops it": ("", ["the chat template drops the call of look_up: it is nowhere in the row"]),
}


@pytest.mark.parametrize(("written", "causes"), CALLS.values(), ids=CALLS)
def test_a_call_must_be_in_the_row(written, causes):
    tokenizer = byte_tokenizer(chat(written), eos="<|im_end|>")
    question = {"role": "user", "content": "q"}
    prompt_ids = tokenizer.apply_chat_template([question], add_generation_prompt=True)["input_ids"]
    ids = tokenizer.apply_chat_template([question, CALL])["input_ids"]
    labels = [-100] * len(prompt_ids) + ids[len(prompt_ids) :]
    assert check_labels(ids, labels, prompt_ids, CALL, tokenizer, end_id=tokenizer.eos_token_id) == causes


def test_labels_of_other_tokens_are_refused(tokenizer):
    set_chat_template(tokenizer, "chatml_think")
    message, ids, prompt_ids = row(tokenizer, "two", "4")
    shifted = [-100] * len(prompt_ids) + [*ids[len(prompt_ids) + 1 :], -100]
    [cause] = check_labels(ids, shifted, prompt_ids, message, tokenizer)
    assert cause == "a label is neither the token of its position nor -100"
