"""Every set-up in which a trainer hands out completions, with a scripted policy: our rewards beside TRL's own."""

import math
from importlib.resources import files

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from think_tools.rewards import (
    accuracy_reward,
    consistency_reward,
    format_reward,
    get_accuracy_reward,
    get_format_reward,
    get_group_length_reward,
    get_judge_reward,
    get_language_consistency_reward,
    get_tag_count_reward,
    get_think_length_reward,
    get_think_monitor,
    guard,
    tag_count_reward,
    think_monitor,
)

# Half right, half wrong, all well formed: whatever the set-up, accuracy is 0.5 and format 1.0.
WRITTEN = [f"<think>\n2 plus 3 is {n}\n</think>\n\nThe answer is \\boxed{{{n}}}.<|im_end|>" for n in (5, 4)]
PREFILLED = [text.removeprefix("<think>\n") for text in WRITTEN]
CUT = ["<think>\n2 plus 3 is \\boxed{5}, but", "<think>\n2 plus"]  # says 5 and never answers
CALL = '<think>\nask\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call><|im_end|>'
CHAT = [{"role": "user", "content": "What is 2+3?"}]
TEXT = "Question: What is 2+3? Answer: "


def add(a: int, b: int) -> int:
    """
    Add two numbers.

    Args:
        a: First number.
        b: Second number.
    """
    return a + b


def special(tokenizer, rename=str):
    markers = [AddedToken(rename(marker), special=True, normalized=False) for marker in ("<think>", "</think>")]
    tokenizer.add_tokens(markers, special_tokens=True)


def stored(name, parsed=False):
    """Give the tokenizer one of TRL's stored chat templates, and its response template if `parsed`."""

    def change(tokenizer):
        from trl import add_response_schema

        tokenizer.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
        tokenizer.response_template = None  # the embedded model has one
        if parsed:
            add_response_schema(tokenizer)

    return change


def both(*changes):
    return lambda tokenizer: [change(tokenizer) for change in changes]


# Name -> change of the tokenizer, prompt, what the policy writes, tools, and for each trainer what TRL gives:
# (format, reasoning accuracy, accuracy), with None where its rewards raise.
PLAIN = (1.0, 0.5, 0.5)
BLIND = (0.0, 0.0, 0.5)
NO_FORMAT = (0.0, 0.5, 0.5)
SETUPS = {
    "plain": (stored("qwen3"), CHAT, WRITTEN, None, PLAIN, PLAIN),
    "our own templates": (lambda tokenizer: None, CHAT, WRITTEN, None, BLIND, PLAIN),
    "think tokens special": (both(stored("qwen3"), special), CHAT, WRITTEN, None, BLIND, BLIND),
    "response template": (stored("qwen3", parsed=True), CHAT, WRITTEN, None, BLIND, PLAIN),
    "response template, think tokens special": (
        both(stored("qwen3", parsed=True), special), CHAT, WRITTEN, None, BLIND, BLIND,
    ),
    "prefilled": (stored("qwen3_5_think"), CHAT, PREFILLED, None, NO_FORMAT, NO_FORMAT),
    "prefilled, response template": (stored("qwen3_5_think", parsed=True), CHAT, PREFILLED, None, BLIND, NO_FORMAT),
    "prefilled, think tokens special": (both(stored("qwen3_5_think"), special), CHAT, PREFILLED, None, BLIND, BLIND),
    "plain text prompts": (lambda tokenizer: None, TEXT, WRITTEN, None, None, None),
    "plain text prompts that open the reasoning": (
        lambda tokenizer: None, f"{TEXT}<think>\n", PREFILLED, None, None, None,
    ),
    "tools present": (stored("qwen3"), CHAT, WRITTEN, [add], BLIND, None),
    "several messages": (stored("qwen3"), CHAT, [CALL, *WRITTEN], [add], (0.0, 0.0, 0.0), None),
    "cut in the reasoning": (stored("qwen3"), CHAT, CUT, None, (0.0, 0.0, 0.5), (0.0, 0.0, 0.5)),
    "cut in the reasoning, response template": (
        stored("qwen3", parsed=True), CHAT, CUT, None, (0.0, 0.0, 0.0), (0.0, 0.0, 0.5),
    ),
    "cut in the reasoning, prefilled": (
        stored("qwen3_5_think"), CHAT, [text.removeprefix("<think>\n") for text in CUT], None,
        (0.0, 0.0, 0.5), (0.0, 0.0, 0.5),
    ),
}  # fmt: skip


def train(trainer_name, tokenizer, model, folder, rewards, *, prompt=CHAT, written=WRITTEN, tools=None, **columns):
    """One step with the written texts in place of sampled ones; returns the trainer and the rewards it computed."""
    import trl
    from datasets import Dataset

    class Scripted(getattr(trl, trainer_name)):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            # The turn after a tool's result gets what comes after the call.
            texts = (
                written[1:] if "tool_response" in tokenizer.decode(prompt_ids[0]) else written[: len(written) % 2 or 2]
            )
            ids = [
                tokenizer.encode(texts[row % len(texts)], add_special_tokens=False) for row in range(len(prompt_ids))
            ]
            return (ids, None) if trainer_name == "GRPOTrainer" else ids

        def _calculate_rewards(self, *args):
            self.computed = super()._calculate_rewards(*args)
            return self.computed

    config = getattr(trl, trainer_name.replace("Trainer", "Config"))(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        max_steps=1,
        max_completion_length=512,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    row = {"prompt": prompt, "solution": "$5$", **columns}
    trainer = Scripted(
        model=str(model),
        args=config,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([row] * 4),
        reward_funcs=rewards,
        **({"tools": tools} if tools else {}),
    )
    trainer.train()
    return trainer, trainer.computed.tolist()


# For every day one set-up of each trainer is enough; RLOO takes no tools.
RUNS = [
    pytest.param(setup, trainer_name, marks=[] if setup == "plain" else [pytest.mark.slow])
    for setup, (*_, tools, _, _) in SETUPS.items()
    for trainer_name in ("GRPOTrainer", "RLOOTrainer")
    if not (tools and trainer_name == "RLOOTrainer")
]


@pytest.mark.parametrize("setup, trainer_name", RUNS)
def test_every_setup(setup, trainer_name, tokenizer, tiny_model, tmp_path):
    from trl.rewards import accuracy_reward as trl_accuracy
    from trl.rewards import reasoning_accuracy_reward, think_format_reward

    change, prompt, written, tools, in_grpo, in_rloo = SETUPS[setup]
    trl_values = in_grpo if trainer_name == "GRPOTrainer" else in_rloo
    change(tokenizer)
    rewards = [
        get_accuracy_reward(tokenizer=tokenizer),
        get_format_reward(tokenizer=tokenizer),
        get_tag_count_reward(tokenizer=tokenizer),
        get_think_monitor(tokenizer=tokenizer),
    ]
    if trl_values:
        rewards += [think_format_reward, reasoning_accuracy_reward, trl_accuracy]
    trainer, computed = train(
        trainer_name, tokenizer, tiny_model, tmp_path, rewards, prompt=prompt, written=written, tools=tools
    )
    # By column, and not from the log: ours and TRL's accuracy share a name.
    accuracy, well_formed, tags, _, *theirs = (sum(column) / len(column) for column in zip(*computed, strict=True))
    cut, logged = setup.startswith("cut"), trainer.state.log_history[0]
    assert (accuracy, well_formed, tags) == ((0.0, 0.0, 0.5) if cut else (0.5, 1.0, 1.0))
    assert tuple(theirs) == (trl_values or ())
    assert (logged["think/closed"], logged["think/truncated"]) == ((0.0, 1.0) if cut else (1.0, 0.0))
    assert logged.get("think/prefilled", 0.0) == ("prefilled" in setup or "open" in setup)


@pytest.mark.slow
@pytest.mark.parametrize("markers_are_special", [True, False])
def test_another_familys_markers_need_no_configuration(markers_are_special, tokenizer, tiny_model, tmp_path):
    def to_seed(text):
        return text.replace("think>", "seed:think>")

    seed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(to_seed(tokenizer.backend_tokenizer.to_str())),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        chat_template=to_seed(tokenizer.chat_template),
    )
    if markers_are_special:
        special(seed, to_seed)
    rewards = [
        get_accuracy_reward(tokenizer=seed),
        get_format_reward(tokenizer=seed),
        get_tag_count_reward(tokenizer=seed),
        get_language_consistency_reward("en", min_words=2, tokenizer=seed),
        get_think_monitor(tokenizer=seed),
        format_reward,
    ]
    written = [to_seed("<think>\ntwo plus three is 5\n</think>\n\nThe answer is 5.<|im_end|>")]
    trainer, computed = train("GRPOTrainer", seed, tiny_model, tmp_path, rewards, written=written)
    assert computed == [pytest.approx([1.0, 1.0, 1.0, 1.0, math.nan, 0.0], nan_ok=True)] * 4
    assert trainer.state.log_history[0]["think/closed"] == 1.0


async def judge(messages):
    """A judge that finds right what the reference says."""
    answer, _, reference = messages[1]["content"].partition("===== REFERENCE ANSWER =====")
    right = reference.split()[0].strip("$") in answer.split("===== ANSWER =====")[1]
    return f"correctness: {10 * right}"


def broken(completions, **kwargs):
    raise RuntimeError("out of disk")


@pytest.mark.parametrize("trainer_name", ["GRPOTrainer", "RLOOTrainer"])
def test_every_reward_in_one_run(trainer_name, tokenizer, tiny_model, tmp_path, caplog):
    rewards = {
        accuracy_reward: [1.0, 0.0],
        format_reward: [1.0, 1.0],
        tag_count_reward: [1.0, 1.0],
        consistency_reward: [1.0, 1.0],
        think_monitor: [math.nan, math.nan],
        get_think_length_reward(target=16, tokenizer=tokenizer): [0.8125, 0.8125],
        get_group_length_reward(): [0.0, 0.0],
        get_language_consistency_reward("en", min_words=1, tokenizer=tokenizer): [1.0, 1.0],
        guard(get_judge_reward(judge, "correctness"), timeout=30): [1.0, 0.0],
        guard(broken): [math.nan, math.nan],
    }
    trainer, computed = train(trainer_name, tokenizer, tiny_model, tmp_path, list(rewards))
    for reward, column in zip(rewards.items(), zip(*computed, strict=True), strict=True):
        assert list(column) == pytest.approx(reward[1] * 2, nan_ok=True), reward[0].__name__
    logged = trainer.state.log_history[0]
    assert (logged["guard/broken"], logged["guard/judge_reward"], logged["judge/failed"]) == (4.0, 0.0, 0.0)
    assert "`broken` gave no reward to 4 of 4 completions: RuntimeError: out of disk" in caplog.text


@pytest.mark.slow
def test_none_weighs_as_zero_in_trl_and_filled_it_does_not(tokenizer, tiny_model, tmp_path):
    """Four well-formed completions, two of them with too few words for a share: nobody did anything better."""
    long, short = "<think>\nFirst add two and three\n</think>\n\n5<|im_end|>", "<think>\n2+3\n</think>\n\n5<|im_end|>"
    language = get_language_consistency_reward("en", min_words=4)
    advantages = []
    for reward in (language, guard(language, fill_none=True)):
        rewards = [get_format_reward(tokenizer=tokenizer), reward]
        trainer, _ = train("GRPOTrainer", tokenizer, tiny_model, tmp_path, rewards, written=[long, short])
        advantages.append(list(trainer._logs["advantages"]))
    assert advantages[0] == pytest.approx([0.866, -0.866] * 2, abs=1e-3)
    assert advantages[1] == [0.0] * 4
