"""The rewards tell the truth whatever shape a completion has, alone and inside a real `GRPOTrainer`."""

import importlib
import pickle

import pytest

from think_tools import rewards
from think_tools.rewards import (
    accuracy_reward,
    format_reward,
    get_accuracy_reward,
    get_format_reward,
    get_think_monitor,
    think_monitor,
)

PREFILLING = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def message(content, **fields):
    return [{"role": "assistant", "content": content, **fields}]


# One right output in every shape in which a trainer hands it out.
SHAPES = {
    "text": "<think>\n2+3\n</think>\n\n5",
    "text after a line break": "\n<think>2+3</think>5",
    "text after a prefilled opening marker": "2+3\n</think>\n\n5",
    "message": message("<think>2+3</think>5"),
    "message after a prefilled opening marker": message("2+3</think>5"),
    "message with its reasoning apart": message("5", reasoning_content="2+3"),
    "message with its reasoning apart, as vLLM names it": message("5", reasoning="2+3"),
    "message with its thinking apart": message("\n\n5", thinking="2+3"),
    "last turn of a tool run": [
        {"role": "assistant", "reasoning_content": "ask", "content": "", "tool_calls": []},
        {"role": "tool", "content": "5"},
        *message("5", reasoning_content="2+3"),
    ],
}


@pytest.mark.parametrize("completion", SHAPES.values(), ids=SHAPES)
def test_the_same_score_for_every_shape(completion):
    metrics = {}
    assert accuracy_reward([completion, completion], solution=["5", "6"]) == [1.0, 0.0]
    assert format_reward([completion]) == [1.0]
    assert think_monitor([completion], log_metric=metrics.__setitem__) == [None]
    assert metrics == {
        "think/closed": 1.0,
        "think/truncated": 0.0,
        "think/unclosed": 0.0,
        "think/no_think": 0.0,
        "think/reasoning_chars": 3.0,
        "think/answer_chars": 1.0,
    }


# (completion, gold, reward)
ACCURACY = {
    "right": (r"<think>r</think>\boxed{5}", "5", 1.0),
    "wrong": (r"<think>r</think>\boxed{6}", "5", 0.0),
    "right only in the reasoning": (r"<think>\boxed{5}</think>I do not know.", "5", 0.0),
    "reasoning cut off after the answer": (r"<think>So \boxed{5}. But wait", "5", 0.0),
    "parsed reasoning cut off after the answer": (message("", reasoning_content=r"So \boxed{5}. But"), "5", 0.0),
    "content None": (message(None, reasoning_content="r"), "5", 0.0),
    "no thinking": ("The answer is 5.", "5", 1.0),
    "no answer": ("<think>r</think>", "5", 0.0),
    "empty text": ("", "5", 0.0),
    "gold of GSM8K": ("<think>r</think>5", "2+3=5\n#### 5", 1.0),
    "gold in dollars": ("<think>r</think>5", "$5$", 1.0),
    "gold in a box": ("<think>r</think>5", r"\boxed{5}", 1.0),
    "gold is a choice letter": ("<think>r</think>The answer is (B).", "B", 1.0),
    "gold is a word": ("<think>r</think>Paris", "Paris", 1.0),
    "gold is bare LaTeX": (r"<think>r</think>\boxed{\pi}", r"\pi", 1.0),
    "gold is a number": ("<think>r</think>5", 5, 1.0),
    "gold is empty": ("<think>r</think>5", "", None),
    "gold is None": ("<think>r</think>5", None, None),
    "Chinese": ("<think>二加三</think>答案是５。", "5", 1.0),
}


@pytest.mark.parametrize(("completion", "gold", "expected"), ACCURACY.values(), ids=ACCURACY)
def test_accuracy(completion, gold, expected):
    assert accuracy_reward([completion], solution=[gold]) == [expected]


def test_accuracy_counts_what_it_could_not_grade():
    metrics, columns = {}, {}
    hangs = r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}"
    scores = get_accuracy_reward(timeout=0.5)(
        ["<think>r</think>So it is.", hangs, "5", "5"],
        solution=["5", "1", "", "5"],
        log_metric=metrics.__setitem__,
        log_extra=columns.__setitem__,
        trainer_state=None,
    )
    assert scores[0] == 0.0
    assert scores[2:] == [None, 1.0]
    assert metrics["accuracy/no_answer"] == 1.0
    assert metrics["accuracy/stopped"] + metrics["accuracy/gold_unreadable"] == 2.0
    assert columns["answer"][2:] == ["5", "5"]


def test_the_last_number_counts_only_when_asked_for():
    completions = ["<think>r</think>That makes 9 eggs, so she gets $18 a day"]
    assert accuracy_reward(completions, solution=["18"]) == [0.0]
    assert get_accuracy_reward(last_number=True)(completions, solution=["18"]) == [1.0]


# Settings of `get_format_reward` under which a completion is well formed.
STRICT, EMPTY, NO_THINK, TAGS = {}, {"allow_empty": True}, {"allow_no_think": True}, {"answer_tags": True}
FORMAT = {
    "thinks, then answers": ("<think>r</think>a", [STRICT, EMPTY, NO_THINK]),
    "line breaks": ("\n<think>\nr\n</think>\n\na\n", [STRICT, EMPTY, NO_THINK]),
    "closing marker only": ("r</think>a", [STRICT, EMPTY, NO_THINK]),
    "empty reasoning": ("<think>\n\n</think>\n\na", [EMPTY]),
    "empty answer": ("<think>r</think>", []),
    "no marker": ("a", [NO_THINK]),
    "nothing": ("", []),
    "cut off in the reasoning": ("<think>r", []),
    "opening marker twice": ("<think>r<think>s</think>a", []),
    "closing marker twice": ("<think>r</think>a</think>", []),
    "two blocks": ("<think>r</think>a<think>s</think>b", []),
    "text before the reasoning": ("Well. <think>r</think>a", []),
    "markers in the wrong order": ("</think>r<think>a", []),
    "another spelling": ("<THINK>r</THINK>a", [NO_THINK]),
    "answer in tags": ("<think>r</think>\n<answer>a</answer>\n", [STRICT, EMPTY, NO_THINK, TAGS]),
    "text after the answer tags": ("<think>r</think><answer>a</answer>b", [STRICT, EMPTY, NO_THINK]),
    "empty answer tags": ("<think>r</think><answer> </answer>", [STRICT, EMPTY, NO_THINK]),
    "answer tags twice": ("<think>r</think><answer>a</answer><answer>b</answer>", [STRICT, EMPTY, NO_THINK]),
    "answer tags in the reasoning": ("<think><answer>r</think><answer>a</answer>", [STRICT, EMPTY, NO_THINK]),
    "answer tags that overlap": ("<think>r</think><answer></answer>", [STRICT, EMPTY, NO_THINK]),
    "parsed message": (message("a", reasoning_content="r"), [STRICT, EMPTY, NO_THINK]),
    "parsed message with a marker left": (message("a</think>b", reasoning_content="r"), []),
    "parsed message cut off": (message("", reasoning_content="r"), []),
}


@pytest.mark.parametrize(("completion", "settings"), FORMAT.values(), ids=FORMAT)
def test_format(completion, settings):
    well_formed = [
        setting for setting in (STRICT, EMPTY, NO_THINK, TAGS) if get_format_reward(**setting)([completion]) == [1.0]
    ]
    assert well_formed == settings
    assert format_reward([completion]) == [float(STRICT in settings)]


def sampled(tokenizer, *texts):
    """Completion ids and texts as TRL hands them out: special tokens are in the ids and not in the texts."""
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return {
        "completions": [message(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)],
        "completion_ids": ids,
        "prompts": [[{"role": "user", "content": "2+3?"}]] * len(texts),
    }


def scores(tokenizer, batch):
    metrics = {}
    get_think_monitor(tokenizer)(**batch, log_metric=metrics.__setitem__)
    return {
        "accuracy": get_accuracy_reward(tokenizer=tokenizer)(**batch, solution=["5"] * len(batch["completions"])),
        "format": get_format_reward(tokenizer=tokenizer)(**batch),
        "direct": get_format_reward(allow_no_think=True, tokenizer=tokenizer)(**batch),
    } | metrics


def test_with_a_tokenizer_cut_outputs_are_seen(tokenizer):
    end = "<|im_end|>"
    batch = sampled(
        tokenizer, f"<think>2+3</think>5{end}", "<think>2+3</think>5", f"5{end}", "<think>\\boxed{5}", f"<think>5{end}"
    )
    found = scores(tokenizer, batch)
    assert found["accuracy"] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert found["format"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert found["direct"] == [1.0, 0.0, 1.0, 0.0, 0.0]
    shares = ("think/closed", "think/truncated", "think/unclosed", "think/no_think")
    assert [found[share] for share in shares] == [0.4, 0.2, 0.2, 0.2]
    assert found["think/reasoning_tokens"] == (3 + 3 + 9 + 1) / 4
    assert found["think/answer_tokens"] == 1.0


def test_with_a_tokenizer_a_prefilling_template_is_seen(tokenizer):
    tokenizer.chat_template = PREFILLING
    end = "<|im_end|>"
    batch = sampled(tokenizer, f"2+3\n</think>\n\n5{end}", "2+3 is \\boxed{5}, but", f"5{end}")
    found = scores(tokenizer, batch)
    # The second is cut inside the reasoning; the third skipped thinking, in a block that it left open.
    assert found["accuracy"] == [1.0, 0.0, 1.0]
    assert found["format"] == found["direct"] == [1.0, 0.0, 0.0]
    # What no zero-argument name can know.
    assert accuracy_reward(**batch, solution=["5"] * 3) == [1.0, 1.0, 1.0]
    assert get_format_reward(allow_no_think=True)(**batch) == [1.0, 1.0, 1.0]


def test_with_a_tokenizer_special_think_tokens_are_seen(tokenizer):
    from tokenizers import AddedToken

    markers = [AddedToken(marker, special=True, normalized=False) for marker in ("<think>", "</think>")]
    tokenizer.add_tokens(markers, special_tokens=True)
    batch = sampled(tokenizer, "<think>\\boxed{6}</think>5<|im_end|>", "<think>2+3</think>6<|im_end|>")
    assert batch["completions"][0] == message("\\boxed{6}5")
    assert scores(tokenizer, batch) | {"accuracy": [1.0, 0.0], "format": [1.0, 1.0]} == scores(tokenizer, batch)
    assert format_reward(**batch) == [0.0, 0.0]


@pytest.mark.parametrize(("prompt", "expected"), {"2+3? <think>\n": 0.0, "2+3?": 1.0}.items())
def test_a_plain_text_prompt_shows_whether_it_opened_the_reasoning(prompt, expected):
    assert accuracy_reward(["so \\boxed{5} but"], solution=["5"], prompts=[prompt]) == [expected]
    assert format_reward(["2+3</think>5"], prompts=[prompt]) == [1.0 - expected]


def test_without_a_chat_template_the_tokenizer_still_shows_the_end(tokenizer):
    tokenizer.chat_template = None
    batch = sampled(tokenizer, "<think>2+3</think>5<|im_end|>", "<think>2+3</think>5")
    assert get_format_reward(tokenizer=tokenizer)(**batch) == [1.0, 0.0]


def test_the_monitor_logs_no_length_of_what_is_not_there():
    metrics = {}
    think_monitor(["", ""], log_metric=metrics.__setitem__)
    assert sorted(metrics) == ["think/closed", "think/no_think", "think/truncated", "think/unclosed"]
    assert think_monitor([], log_metric=metrics.__setitem__) == []
    assert think_monitor(["a"]) == [None]


NAMES = ("accuracy_reward", "format_reward", "think_monitor")


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_name_is_a_dotted_path_for_the_command_line(name):
    """`trl grpo --reward_funcs think_tools.rewards.accuracy_reward` imports a name by these two lines."""
    module_path, func_name = f"think_tools.rewards.{name}".rsplit(".", 1)
    reward = getattr(importlib.import_module(module_path), func_name)
    assert reward.__name__ == name
    assert len(reward(completions=["<think>r</think>5"], solution=["5"], prompts=["?"], completion_ids=[[1]])) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_reward_can_be_pickled(name, tokenizer):
    for reward in (getattr(rewards, name), getattr(rewards, f"get_{name}")(tokenizer=tokenizer)):
        again = pickle.loads(pickle.dumps(reward))
        assert again.__name__ == name
        assert again(["<think>r</think>5"], solution=["5"]) == reward(["<think>r</think>5"], solution=["5"])


ERRORS = {
    "no column": ({"answer": ["5"]}, r"`solution` is missing: .* got the columns \['answer'\]. Rename yours"),
    "a string": ({"solution": "5"}, "`solution` must hold one gold answer per completion, got 1 for 1: pass a list."),
    "another length": ({"solution": ["5", "6"]}, "`solution` must hold one gold answer per completion, got 2 for 1"),
}


@pytest.mark.parametrize(("columns", "error"), ERRORS.values(), ids=ERRORS)
def test_an_error_names_the_column(columns, error):
    with pytest.raises(ValueError, match=error):
        accuracy_reward(["5"], **columns)


def test_an_error_names_the_timeout():
    with pytest.raises(ValueError, match="`timeout` must be a positive number of seconds, got 0"):
        get_accuracy_reward(timeout=0)


# Texts the scripted policy writes: two right of four. Set-ups in which stock rewards give 0 to all.
WRITTEN = [f"<think>\n2 plus 3\n</think>\n\nThe answer is \\boxed{{{n}}}.<|im_end|>" for n in (5, 4, 5, 4)]
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open_pattern": r"\A\s*<think>", "close": "</think>", "content": "text"},
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}


def special_markers(tokenizer):
    from tokenizers import AddedToken

    markers = [AddedToken(marker, special=True, normalized=False) for marker in ("<think>", "</think>")]
    tokenizer.add_tokens(markers, special_tokens=True)


# Name -> (change of the tokenizer, written texts, accuracy, format)
SETUPS = {
    "inline text": (lambda tokenizer: None, WRITTEN, 0.5, 1.0),
    "special think tokens": (special_markers, WRITTEN, 0.5, 1.0),
    "response template": (
        lambda tokenizer: setattr(tokenizer, "response_template", RESPONSE_TEMPLATE),
        WRITTEN,
        0.5,
        1.0,
    ),
    "prefilling template": (
        lambda tokenizer: setattr(tokenizer, "chat_template", PREFILLING),
        [text.removeprefix("<think>\n") for text in WRITTEN],
        0.5,
        1.0,
    ),
    "cut in the reasoning": (lambda tokenizer: None, [r"<think>\boxed{5} but"] * 4, 0.0, 0.0),
}


@pytest.mark.parametrize(("change", "written", "accuracy", "well_formed"), SETUPS.values(), ids=SETUPS)
def test_in_a_real_trainer(change, written, accuracy, well_formed, tokenizer, tiny_model, tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class ScriptedTrainer(GRPOTrainer):
        """Samples the given texts in place of the policy's."""

        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            ids = [
                tokenizer.encode(written[i % len(written)], add_special_tokens=False) for i in range(len(prompt_ids))
            ]
            return ids, None

    change(tokenizer)
    row = {"prompt": [{"role": "user", "content": "What is 2+3?"}], "solution": "5"}
    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_steps=1,
        max_completion_length=128,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = ScriptedTrainer(
        model=str(tiny_model),
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([row] * 4),
        reward_funcs=[
            get_accuracy_reward(tokenizer=tokenizer),
            get_format_reward(tokenizer=tokenizer),
            get_think_monitor(tokenizer=tokenizer),
        ],
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/accuracy_reward/mean"] == accuracy
    assert logged["rewards/format_reward/mean"] == well_formed
    assert logged["think/closed"] == well_formed
    assert logged["accuracy/gold_unreadable"] == 0.0
