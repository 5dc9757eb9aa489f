"""The layer rule of the README, checked by reading the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "think_tools"
TEXT = {"formats", "parsing", "steps", "answers", "prompts"}
HOOKS = {"templates", "rewards", "losses", "decoding"}
SAMPLING = {"backends"}
PROCEDURES = {"data", "search", "callbacks", "preflight", "hub", "tiny"}
COMMANDS = {"demo", "cli"}
MAY_IMPORT = {
    **dict.fromkeys(TEXT, TEXT),
    **dict.fromkeys(HOOKS, TEXT),
    **dict.fromkeys(SAMPLING, TEXT | HOOKS),
    **dict.fromkeys(PROCEDURES, TEXT | HOOKS | SAMPLING),
    **dict.fromkeys(COMMANDS, TEXT | HOOKS | SAMPLING | PROCEDURES | COMMANDS),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(file: Path) -> set[str]:
    """First-level names of `think_tools` that a file imports."""
    depth = len(file.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        absolute = (
            isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("think_tools")
        )
        assert not absolute, f"{file} imports the package by its name, not relatively"
    return found


def third_party_imports(file: Path) -> set[str]:
    """Packages that are loaded when the file is imported."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_layer_imports_only_the_layers_below(file):
    unit = unit_of(file)
    assert own_imports(file) - {unit} <= MAY_IMPORT[unit]


@pytest.mark.parametrize("file", [f for f in FILES if unit_of(f) in TEXT], ids=lambda file: file.name)
def test_the_text_layer_imports_only_the_standard_library(file):
    assert third_party_imports(file) == set()


def loaded_by(module: str) -> list[str]:
    """Which of the heavy packages an import of `module` loads, in a fresh interpreter."""
    code = (
        f"import {module}, sys; print(*[m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    return subprocess.check_output([sys.executable, "-c", code], text=True).split()


@pytest.mark.parametrize("module", ["think_tools", "think_tools.rewards"])
def test_neither_the_root_nor_the_rewards_load_torch(module):
    assert loaded_by(module) == []
