import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from hub import running_hub
from make_tokenizer import make_tokenizer
from openai_server import question, running_server, says
from peft import AutoPeftModelForCausalLM, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, GRPOConfig, GRPOTrainer, ModelConfig, SFTConfig, TrlParser
from trl.scripts.grpo import make_parser

from think_tools import parse as parse_text
from think_tools.backends import Candidate
from think_tools.rewards import accuracy_reward
from think_tools.templates import think_lora_config
from think_tools.tiny import arithmetic_problems, load_tiny

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
SMALL = ["--use_cpu", "--bf16", "false", "--activation_checkpointing", "false", "--report_to", "none"]
GSM8K = [{"question": f"What is {n}+{n}?", "answer": f"Twice {n} is {2 * n}.\n#### {2 * n}"} for n in range(2, 14)]


def load_recipe(path: str):
    """A recipe as a module, without running it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, RECIPES / path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Rows read from files are kept in the test's folder, not in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sft():
    return load_recipe("sft.py")


@pytest.fixture(scope="module")
def grpo():
    return load_recipe("grpo.py")


def parse_sft(sft, *flags):
    return TrlParser((sft.ThinkScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config(list(map(str, flags)))


def parse_grpo(grpo, *flags):
    return TrlParser((grpo.ThinkScriptArguments, GRPOConfig, ModelConfig)).parse_args_and_config(list(map(str, flags)))


@pytest.fixture
def gsm8k_file(tmp_path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GSM8K), encoding="utf-8")
    return path


# `test_recipes_verifiers.py` reads those of label_steps.py, train_verifier.py and search_table.py.
OTHERS = {"label_steps", "outcome_verifier", "process_verifier", "search"}
CONFIGS = sorted(path for path in RECIPES.rglob("*.yaml") if path.stem not in OTHERS)
# The recipe that reads a config of this name, its own flags, and TRL's; every other config is read by `sft.py`.
READERS = {
    "grpo": ("grpo.py", "ThinkScriptArguments", (GRPOConfig, ModelConfig)),
    "sft_mix": ("sft_mix.py", "MixArguments", (SFTConfig, ModelConfig)),
    "journey_sft": ("journey_sft.py", "JourneyArguments", (SFTConfig, ModelConfig)),
    "dpo": ("dpo.py", "PairArguments", (DPOConfig, ModelConfig)),
    "distill": ("distill.py", "DistillArguments", ()),
    "staged_attention": ("staged_attention.py", "StagedArguments", (SFTConfig,)),
}


def parse(name: str, *flags):
    """A recipe as a module, and its arguments as it reads them itself."""
    file, own, others = READERS.get(name, ("sft.py", "ThinkScriptArguments", (SFTConfig, ModelConfig)))
    recipe = load_recipe(file)
    parser = TrlParser((getattr(recipe, own), *others))
    return recipe, parser.parse_args_and_config(list(map(str, flags)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_config_is_read_by_its_recipe_and_says_what_the_defaults_would_cut(path, tmp_path):
    said = path.read_text(encoding="utf-8")
    if path.stem == "distill":
        _, [args] = parse("distill", "--config", path, "--output_dir", tmp_path)
        assert (args.num_questions, args.n) == (200, 1)
        return
    _, (args, training_args, *model_args) = parse(path.stem, "--config", path, "--output_dir", tmp_path, *SMALL)
    if path.stem == "grpo":
        assert {"beta:", "epsilon:", "max_completion_length:"} <= set(said.split())
        assert training_args.num_generations == 8
    else:
        assert "max_length:" in said.split()
    for each in model_args:
        assert each.model_name_or_path
        assert each.use_peft or args.adapter


def test_the_tiny_grpo_config_holds_only_trl_keys():
    flags = ["--config", str(RECIPES / "tiny/grpo.yaml"), "--reward_funcs", "think_tools.rewards.accuracy_reward"]
    script_args, training_args, model_args, _ = make_parser().parse_args_and_config(flags)
    assert script_args.dataset_name == "recipes/tiny/problems"
    assert training_args.max_completion_length == 384
    assert model_args.model_name_or_path == "think_tools/tiny/base"


@pytest.mark.parametrize(("split", "n"), [("train", 1000), ("test", 200)])
def test_the_problems_in_the_repository_are_those_of_the_generator(split, n):
    file = RECIPES / f"tiny/problems/{split}.jsonl"
    rows = load_dataset("json", data_files=str(file), split="train").to_list()
    columns = ["prompt", "solution", "source", "id", "language"]
    assert rows == arithmetic_problems(split, n).select_columns(columns).to_list()


def test_without_rows_the_error_names_both_flags(sft, grpo):
    with pytest.raises(ValueError, match="`train_file` and `dataset_name` are both missing: give one of them"):
        sft.load_rows(sft.ThinkScriptArguments(), seed=0)
    with pytest.raises(ValueError, match="`train_file` and `dataset_name` are both missing: give one of them"):
        grpo.load_questions(grpo.ThinkScriptArguments(), seed=0)


def test_held_out_rows_are_not_trained_on(sft, gsm8k_file):
    train, held_out = sft.load_rows(sft.ThinkScriptArguments(train_file=str(gsm8k_file), held_out=4), seed=0)
    questions = {row["prompt"][0]["content"] for row in train}, {row["prompt"][0]["content"] for row in held_out}
    assert list(map(len, questions)) == [8, 4]
    assert not questions[0] & questions[1]


def test_held_out_questions_come_from_the_test_split_if_there_is_one(grpo):
    args = grpo.ThinkScriptArguments(dataset_name=str(RECIPES / "tiny/problems"), held_out=5)
    train, held_out = grpo.load_questions(args, seed=0)
    assert (len(train), len(held_out)) == (1000, 5)
    assert train.column_names == ["prompt", "solution"]


def test_cold_start_rows_think_part_of_the_time(tmp_path):
    rows = load_recipe("tiny/cold_start_rows.py")
    rows.main(rows.RowArguments(output_file=str(tmp_path / "rows.jsonl"), num_rows=200))
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(written) == 200
    thinking = [row for row in written if row["completion"][0]["reasoning_content"]]
    direct = [row for row in written if not row["completion"][0]["reasoning_content"]]
    assert 40 < len(thinking) < 90
    assert all(row["chat_template_kwargs"]["enable_thinking"] for row in thinking)
    assert {row["chat_template_kwargs"]["enable_thinking"] for row in direct} == {True, False}


def test_the_reference_of_an_adapter_knows_the_think_tokens(grpo, tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(model, think_lora_config(model, tokenizer, r=2))
    rows = [parameter for name, parameter in model.named_parameters() if name.endswith("tokens_delta.default")]
    for row in rows:
        row.data += 1
    args = GRPOConfig(output_dir=str(tmp_path), beta=0.1, use_cpu=True, bf16=False, activation_checkpointing=False)
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": "2+3?"}], "solution": "5"}])
    trainer = GRPOTrainer(model, accuracy_reward, args, train_dataset=prompts, processing_class=tokenizer)
    copies = [p for name, p in trainer.model.named_parameters() if name.endswith("tokens_delta.ref")]
    assert len(copies) == len(rows) == 1
    assert not torch.equal(copies[0], rows[0]), "TRL copies the rows itself now: take copy_token_rows out of grpo.py"
    grpo.copy_token_rows(trainer.model)
    assert torch.equal(copies[0], rows[0])


@pytest.mark.slow
def test_sft_trains_the_reasoning_and_saves_an_adapter(sft, gsm8k_file, tiny_model, tmp_path):
    flags = ["--config", RECIPES / "tiny/sft.yaml", "--model_name_or_path", tiny_model, "--train_file", gsm8k_file]
    flags += ["--max_steps", 8, "--logging_steps", 1, "--held_out", 2, "--held_out_tokens", 8, "--learning_rate", 5e-2]
    trainer = sft.main(*parse_sft(sft, *flags, "--output_dir", tmp_path / "a", "--per_device_train_batch_size", 4))
    trained = [
        trainer.processing_class.decode([label for label in row["labels"] if label != -100])
        for row in trainer.train_dataset
    ]
    assert len(trained) == 10
    assert all(text.startswith("<think>\nTwice ") and text.endswith("<|im_end|>") for text in trained)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    rounds = [entry for entry in trainer.state.log_history if "eval_closed" in entry]
    assert [entry["step"] for entry in rounds] == [0, 8]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        file.name for file in (tmp_path / "a").iterdir()
    }


@pytest.mark.slow
def test_the_medical_recipe_runs_on_its_own_rows(sft, data_folder, tiny_model, tmp_path):
    rows = data_folder / "data/medical_cot_zh_2.jsonl"
    flags = ["--config", RECIPES / "medical.yaml", "--model_name_or_path", tiny_model, "--train_file", rows, *SMALL]
    flags += ["--dtype", "float32", "--load_in_4bit", "false", "--use_bnb_nested_quant", "false", "--held_out", 0]
    # The random model reads bytes: a Chinese character is three tokens.
    flags += ["--optim", "adamw_torch", "--max_length", 8192, "--max_steps", 1, "--logging_steps", 1]
    trainer = sft.main(*parse_sft(sft, *flags, "--output_dir", tmp_path, "--save_strategy", "no"))
    reasoning = [json.loads(line)["Complex_CoT"].strip() for line in rows.read_text(encoding="utf-8").splitlines()]
    trained = [
        trainer.processing_class.decode([label for label in row["labels"] if label != -100])
        for row in trainer.train_dataset
    ]
    assert len(trained) == 2
    assert all(thought in text for thought, text in zip(reasoning, trained, strict=True))


@pytest.mark.slow
def test_grpo_rewards_right_answers_and_trains(grpo, tiny_model, tmp_path, monkeypatch):
    texts = ["<think>\n2 plus 3\n</think>\n\n{}<|im_end|>", "<think>\n2 plus 3<|im_end|>"]

    def scripted(trainer, prompt_ids, *args, **kwargs):
        """The random model cannot answer: every second completion is right, the others never close their thought."""
        golds = {row["prompt"][0]["content"]: row["solution"] for row in trainer.train_dataset}
        questions = [
            re.search(r"user\n(.*)<\|im_end\|>", trainer.processing_class.decode(ids))[1] for ids in prompt_ids
        ]
        answers = [texts[i % 2].format(golds[question]) for i, question in enumerate(questions)]
        return trainer.processing_class(answers)["input_ids"], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", scripted)
    monkeypatch.chdir(ROOT)
    flags = ["--config", RECIPES / "tiny/grpo.yaml", "--model_name_or_path", tiny_model, "--max_steps", 1]
    flags += ["--per_device_train_batch_size", 8, "--num_generations", 4, "--max_completion_length", 48]
    flags += ["--logging_steps", 1, "--held_out", 2, "--output_dir", tmp_path]
    trainer = grpo.main(*parse_grpo(grpo, *flags))
    [step] = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert step["rewards/accuracy_reward/mean"] == 0.5
    assert step["rewards/format_reward/mean"] == 0.5
    assert step["frac_reward_zero_std"] == 0
    assert [entry["step"] for entry in trainer.state.log_history if "eval_accuracy" in entry] == [0, 1]
    adapter = torch.nn.utils.parameters_to_vector(p for p in trainer.model.parameters() if p.requires_grad)
    assert adapter.isfinite().all()
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_pushed_adapter_brings_its_templates(gsm8k_file, tiny_model, tmp_path):
    with running_hub() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        flags = ["--config", RECIPES / "tiny/sft.yaml", "--model_name_or_path", tiny_model, "--train_file", gsm8k_file]
        flags += ["--max_steps", 1, "--held_out", 0, "--output_dir", tmp_path / "out", "--push_to_hub"]
        flags += ["--hub_model_id", "tester/adapter"]
        command = [sys.executable, str(RECIPES / "sft.py"), *map(str, flags)]
        run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr[-3000:]
        assert not [request for request in hub.log if request.startswith("UNKNOWN")]
        pushed = hub.repos["model", "tester/adapter"].files
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(pushed)
    folder = tmp_path / "pulled"
    folder.mkdir()
    for name, data in pushed.items():
        (folder / name).write_bytes(data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert "thinking" in tokenizer.response_template["fields"]
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert [name for name, _ in model.named_parameters() if name.endswith("trainable_tokens_delta.default")]


def test_the_classification_asks_for_the_thousands_of_products(tmp_path):
    mix = load_recipe("sft_mix.py")
    rows = mix.thousands("test", 4)
    assert [row["prompt"][0]["content"] for row in rows][:2] == [
        "20*12=? How many thousands?",
        rows[1]["prompt"][0]["content"],
    ]
    for row, product in zip(rows, arithmetic_problems("test", 4), strict=True):
        assert row["solution"] == row["completion"][0]["content"] == str(int(product["solution"]) // 1000)
        assert row["completion"][0]["reasoning_content"].endswith(f"{product['solution']} -> {row['solution']}")


def test_a_task_of_your_own_needs_other_questions_beside_it():
    mix = load_recipe("sft_mix.py")
    with pytest.raises(ValueError, match="`train_file` and `others_file` must be given together"):
        mix.load_rows(mix.MixArguments(train_file="rows.jsonl"), seed=0)


def test_rows_of_your_own_are_split_into_those_to_train_on_and_those_to_ask(gsm8k_file):
    mix = load_recipe("sft_mix.py")
    args = mix.MixArguments(
        train_file=str(gsm8k_file), others_file=str(gsm8k_file), num_rows=5, num_replayed=3, held_out=4
    )
    parts = mix.load_rows(args, seed=0)
    assert list(map(len, parts)) == [5, 4, 3, 4]
    trained, asked = ({row["prompt"][0]["content"] for row in part} for part in parts[:2])
    assert not trained & asked


def test_a_spoilt_beginning_is_a_right_one_and_a_wrong_result():
    journey = load_recipe("journey_sft.py")
    rows = arithmetic_problems("test", 20)
    beginnings = journey.spoilt_beginnings(rows, seed=0)
    assert beginnings == journey.spoilt_beginnings(rows, seed=0)
    for row, beginning in zip(rows, beginnings, strict=True):
        reasoning = row["completion"][0]["reasoning_content"]
        assert beginning.endswith("\n\n")
        assert not reasoning.startswith(beginning.strip())
        *right, wrong = beginning.strip().split("\n\n")
        assert right == reasoning.split("\n\n")[: len(right)]
        assert wrong.split(": ")[0] == reasoning.split("\n\n")[len(right)].split(": ")[0]


def test_a_trace_that_cannot_be_spoilt_is_named():
    journey = load_recipe("journey_sft.py")
    row = arithmetic_problems("test", 1)[0]
    row["completion"][0]["reasoning_content"] = "I know it."
    with pytest.raises(ValueError, match="no step of row 'test-0-0' has a result that could be wrong"):
        journey.spoilt_beginnings(Dataset.from_list([row]), seed=0)


def test_without_the_packages_of_the_server_the_error_names_them(tmp_path, monkeypatch):
    distill = load_recipe("distill.py")
    monkeypatch.setattr(distill, "is_serve_available", lambda: False)
    with pytest.raises(ImportError, match=r"needs openai, fastapi and uvicorn.*`base_url` of a server"):
        distill.main(distill.DistillArguments(output_dir=str(tmp_path)))


def test_distilled_answers_are_filtered_and_counted(tmp_path, capsys):
    def script(body, number):
        """Every fourth answer is cut, every fourth has no reasoning."""
        thought = f"Let me calculate what they ask for here: {question(body)} I get {number}."
        cut = number % 4 == 0
        return says(
            "42", reasoning_content=None if number % 4 == 1 else thought, finish_reason="length" if cut else "stop"
        )

    distill = load_recipe("distill.py")
    with running_server(script) as server:
        args = distill.DistillArguments(
            model="m", base_url=server.url, num_questions=8, concurrency=1, output_dir=str(tmp_path)
        )
        monkey = [{"instruction": f"How much is {n} and {42 - n}?", "input": "", "output": "42"} for n in range(8)]
        distill.built_in_questions = lambda n: monkey[:n]
        distill.main(args)
    kept = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 4
    assert all(row["finish_reason"] == "stop" and row["completion"][0]["reasoning_content"] for row in kept)
    assert "8 asked -> 8 answered -> complete 4" in capsys.readouterr().out


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path):
    distill = load_recipe("distill.py")
    (tmp_path / "log").write_text("no such model", encoding="utf-8")
    with subprocess.Popen([sys.executable, "-c", ""]) as server:
        server.wait()
        with pytest.raises(RuntimeError, match="did not start within 300 s: no such model"):
            distill.wait_for("http://127.0.0.1:1/health", server, tmp_path / "log")


def small_run(name: str, tmp_path, *flags):
    return parse(name, "--config", RECIPES / f"tiny/{name}.yaml", "--output_dir", tmp_path, "--max_steps", 1, *flags)


@pytest.mark.slow
def test_every_way_of_the_mix_has_a_line_in_the_table(tmp_path, monkeypatch, capsys):
    flags = ["--num_rows", 8, "--num_replayed", 2, "--held_out", 2, "--max_tokens", 256]
    mix, args = small_run("sft_mix", tmp_path, *flags)
    # After one step the teacher is right nowhere.
    monkeypatch.setattr(mix, "right_traces", lambda model, tokenizer, rows, args: mix.thousands("train", 4))
    mix.main(*args)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 10
    assert {line.count("|") for line in lines} == {7}


@pytest.mark.slow
def test_a_model_goes_on_from_a_wrong_step_and_both_runs_are_measured(tmp_path, capsys):
    journey, args = small_run("journey_sft", tmp_path, "--num_rows", 16, "--held_out", 2, "--max_tokens", 256)
    rows = arithmetic_problems("test", 2)
    whole = rows["completion"][0][0]["reasoning_content"], rows["completion"][1][0]["reasoning_content"]
    beginnings = [text[: len(text) // 2] for text in whole]
    texts = journey.go_on(*load_tiny("thinker"), rows, beginnings, args[0])
    assert [text.split("\n</think>")[0] for text in texts] == list(whole)
    journey.main(*args)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table[2:]] == ["| nothing", "| clean traces", "| journeys"]
    assert table[2].startswith("| nothing | 1.000 |")


@pytest.mark.slow
def test_dpo_learns_from_pairs_of_its_own_answers(tmp_path, monkeypatch, capsys):
    def two_lengths(model, tokenizer, rows, args, n=1, **params):
        """Right answers, one of them with the calculation twice."""
        found = []
        for row in dpo.sums("train" if n > 1 else "test", len(rows), seed=1):
            text = row["completion"][0]["reasoning_content"]
            texts = [f"<think>\n{text * times}\n</think>\n\n{row['solution']}" for times in range(1, n + 1)]
            found.append([Candidate(each, parse_text(each, finished=True), "stop", 9, 9) for each in texts])
        return found

    dpo, args = small_run("dpo", tmp_path, "--num_questions", 8, "--held_out", 2, "--n", 2, "--teach_steps", 1)
    monkeypatch.setattr(dpo, "answers", two_lengths)
    trainer = dpo.main(*args)
    assert "8 pairs by the rule 'short' from 8 questions, 2 answers each." in capsys.readouterr().out
    pair = trainer.train_dataset[0]
    assert len(pair["rejected_ids"]) > len(pair["chosen_ids"]) + 25
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_base_without_think_tokens_gets_them_and_its_adapter_loads_again(sft, grpo, tmp_path):
    tokenizer = make_tokenizer("qwen2_5")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    base, adapter, rows = tmp_path / "base", tmp_path / "adapter", tmp_path / "train.jsonl"
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows.write_text("\n".join(map(json.dumps, GSM8K)))
    flags = [
        *SMALL, "--model_name_or_path", base, "--train_file", rows, "--template", "chatml_think", "--think_tokens",
        "--use_peft", "--held_out", 0, "--max_steps", 1, "--output_dir", adapter,
    ]  # fmt: skip
    trained = sft.main(*parse_sft(sft, *flags)).processing_class
    assert len(trained.encode("<think></think>", add_special_tokens=False)) == 2
    args = grpo.ThinkScriptArguments(adapter=str(adapter))
    model, loaded = grpo.load_model(args, ModelConfig(model_name_or_path=str(base)))
    assert loaded.chat_template == trained.chat_template
    assert len(model.get_input_embeddings().weight) % 64 == 0
