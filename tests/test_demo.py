import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from think_tools import demo
from think_tools.cli import app


def test_retrain_uses_the_settings_of_the_recipe():
    recipe = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "tiny" / "cold_start.yaml").read_text())
    assert {key: recipe[key] for key in demo.COLD_START} == demo.COLD_START


def test_grpo_uses_the_settings_of_the_recipe():
    recipe = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "tiny" / "grpo.yaml").read_text())
    shared = demo.GRPO.keys() - {"max_completion_length"}  # the recipe leaves room for the base, which rambles
    assert {key: recipe[key] for key in shared} == {key: demo.GRPO[key] for key in shared}


@pytest.mark.parametrize("name", ["num_problems", "num_steps", "num_samples"])
def test_a_count_below_one_is_named(name, tmp_path):
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1, got 0\."):
        demo.run_demo(tmp_path, **{name: 0})


@pytest.mark.slow
def test_the_demo_writes_report_picture_and_adapter(tmp_path):
    options = ["--problems", "8", "--steps", "2", "--samples", "2", "--output-dir", str(tmp_path)]
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["direct", "cold start", "GRPO", "vote of 2"]
    assert report["problems"] == 8
    assert report["stages"][0]["think_share"] == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "8 held-out problems" in result.output


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report_and_the_cold_start_can_be_trained_live(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.COLD_START, "max_steps", 1)

    def stages(folder: str) -> list[dict]:
        options = {"num_problems": 4, "num_steps": 1, "num_samples": 2, "seed": 3, "retrain": True}
        report = demo.run_demo(tmp_path / folder, **options)
        return [{key: value for key, value in stage.items() if key != "seconds"} for stage in report["stages"]]

    assert stages("first") == stages("second")
