r"""
A byte tokenizer with one of the chat templates that TRL packages, and the special tokens that this template needs.

```
python -m tests.make_tokenizer qwen2_5 out/qwen2_5
```
"""

import re
import sys
from pathlib import Path

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Literals of a template that are single tokens of its family's tokenizer.
TOKENS = re.compile(r"<[|｜][^\s'\"<>{}]+?[|｜]?>|<\w+[|]>|</?(?:start|end)_of_\w+>|</?think>|</s>|\[gMASK\]|<sop>")
# The families whose templates ask for a beginning of sequence.
BEGINNINGS = {
    "cohere": "<BOS_TOKEN>",
    "deepseek": "<｜begin▁of▁sentence｜>",
    "diffusion_gemma": "<bos>",
    "gemma": "<bos>",
    "lfm2": "<|startoftext|>",
    "llama3": "<|begin_of_text|>",
    "muse": "<|begin_of_text|>",
}


def template_names() -> list[str]:
    """Names of the packaged templates, those for training left out."""
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))


def byte_tokenizer(template: str, *, eos: str = "<|endoftext|>", bos: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes and the tokens that stand in the template; think markers are no special tokens."""
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict.fromkeys(TOKENS.findall(template))
    tokenizer.add_tokens([AddedToken(n, special="think>" not in n or "|" in n, normalized=False) for n in names])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token="<|pad|>", bos_token=bos)
    fast.chat_template = template
    return fast


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer of a packaged template; its end of sequence is the token that ends the template's turns."""
    from think_tools.templates import end_of_turn

    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    bos = next((token for family, token in BEGINNINGS.items() if name.startswith(family)), None)
    tokenizer = byte_tokenizer(template, bos=bos)
    end = end_of_turn(tokenizer)
    if end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer


if __name__ == "__main__":
    make_tokenizer(sys.argv[1]).save_pretrained(sys.argv[2])
