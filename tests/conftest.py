"""Settings and fixtures of the suite: no network, no telemetry, one thread, a random model that loads at once."""

import os
from pathlib import Path

# Read by the libraries when they are imported, so they are set before anything else is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES="",
)

import pytest

from think_tools.tiny.load import FOLDER


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two threads on a machine with two busy cores are ten times slower than one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def tokenizer():
    """The embedded model's tokenizer: 256 bytes, ChatML and think tokens, `chatml_think` template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER / "base")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a random two-layer Llama and the embedded model's tokenizer: no download, about a second."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("random_model")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of shared rows and cases (`data/`, `cases/`) named by `THINK_TOOLS_DATA`."""
    folder = os.environ.get("THINK_TOOLS_DATA")
    if not folder:
        pytest.skip("THINK_TOOLS_DATA names no folder of shared rows")
    return Path(folder)
