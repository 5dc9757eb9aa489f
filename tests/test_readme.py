"""The README's script runs, its links lead somewhere, and its names exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "recipes/README.md", "space/README.md", "think_tools/tiny/README.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_every_name_in_the_table_exists():
    table = README.split("## What is where")[1].split("## Layers")[0]
    modules = {path.stem for path in (ROOT / "think_tools").iterdir()}
    names = [name for name in re.findall(r"`(\w+)\.(\w+)`", table) if name[0] in modules]
    assert len(names) > 10
    for module, name in names:
        assert hasattr(importlib.import_module(f"think_tools.{module}"), name), f"{module}.{name}"


def test_every_file_of_the_map_exists():
    block = README.split("## Map")[1].split("```")[1]
    folder, missing = ROOT, []
    for line in block.strip().splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ROOT / name
        path = folder / name if line.startswith(" ") else folder
        missing += [] if path.exists() else [str(path)]
    assert missing == []


@pytest.mark.slow
def test_the_script_of_the_readme_runs_with_a_small_model(tiny_model, tmp_path):
    script = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "GRPOTrainer(" in block)
    small = {
        'load_dataset("trl-lib/DeepMath-103K", split="train")': 'arithmetic_problems("train", n=8)',
        '"Qwen/Qwen3-0.6B"': repr(str(tiny_model)),
        'GRPOConfig(output_dir="qwen3-0.6b-grpo", max_completion_length=4096)': (
            f"GRPOConfig(output_dir={str(tmp_path)!r}, max_completion_length=8, max_steps=1, use_cpu=True, "
            'bf16=False, activation_checkpointing=False, report_to="none", logging_steps=1)'
        ),
    }
    for original, replacement in small.items():
        assert original in script
        script = script.replace(original, replacement)
    scope = {"arithmetic_problems": importlib.import_module("think_tools.tiny").arithmetic_problems}
    exec(compile(script, "README.md", "exec"), scope)
    logs = scope["trainer"].state.log_history[0]
    assert "rewards/accuracy_reward/mean" in logs
    assert logs["think/closed"] + logs["think/truncated"] + logs["think/unclosed"] + logs["think/no_think"] == 1
