"""Keep the reasoning in one language (DeepSeek-R1, section 2.3.2, https://huggingface.co/papers/2501.12948)."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..formats import ThinkFormat
from .completions import Completion, CompletionReader, Tokenizer

# What is no word of any language: code, formulas, LaTeX commands, tags, addresses. Every gap is bounded, so that a
# text full of opening marks costs linear time.
_NO_PROSE = re.compile(
    r"```.{0,20000}?(?:```|\Z)|`[^`\n]{1,200}`|\$\$.{0,2000}?\$\$|\$[^$\n]{1,500}\$|\\\[.{0,2000}?\\\]"
    r"|\\\(.{0,500}?\\\)|\\[A-Za-z]+|</?\w{1,20}>|https?://\S{1,500}",
    re.DOTALL,
)
_WORDS = re.compile(
    r"(?P<zh>[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+)"
    r"|(?P<ja>[\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f]+)"
    r"|(?P<ko>[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]+)"
    r"|(?P<ru>[\u0400-\u052f]{2,})|(?P<el>[\u0370-\u03ff\u1f00-\u1fff]{2,})|(?P<he>[\u05b0-\u05ea]{2,})"
    r"|(?P<ar>[\u0610-\u061a\u0620-\u065f\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f]{2,})"
    r"|(?P<hi>[\u0900-\u0963\u0971-\u097f]+)|(?P<th>[\u0e01-\u0e4e]+)"
    r"|(?P<en>[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]{2,}(?:['’][a-z]+)?)"
)
# Characters per word in scripts that write no spaces; in the others a run of letters is a word.
_WORD_LENGTH = {"zh": 1.6, "ja": 2.0, "th": 4.0}
_SENTENCE = re.compile(r"[\n。！？；.!?;]+")
LANGUAGES = tuple(_WORDS.groupindex)


def count_words(text: str) -> Counter[str]:
    r"""
    Count the words of a text by language, code and mathematics removed.

    The script decides, so `"en"` is every language in Latin letters and `"ru"` every one in Cyrillic ones. Chinese
    characters are Japanese in a sentence with kana. A word of Chinese is taken as 1.6 characters, of Japanese as 2, of
    Thai as 4; single Latin, Greek, Cyrillic, Hebrew or Arabic letters are no words, because they are mostly variables.

    Returns:
        `Counter[str]`: Words, not always whole, under `"zh"`, `"ja"`, `"ko"`, `"ru"`, `"el"`, `"he"`, `"ar"`, `"hi"`,
        `"th"` and `"en"`.

    Example:

    ```python
    >>> from think_tools.rewards.language import count_words

    >>> dict(count_words(r"先求最小值 with $x^2$ and \frac{1}{2}，wait"))
    {'zh': 3.125, 'en': 3.0}
    ```
    """
    counts: Counter[str] = Counter()
    for sentence in _SENTENCE.split(_NO_PROSE.sub(" ", text)):
        found: Counter[str] = Counter()
        for word in _WORDS.finditer(sentence):
            language = str(word.lastgroup)
            found[language] += len(word[0]) if language in _WORD_LENGTH else 1
        if found["ja"]:
            found["ja"] += found.pop("zh", 0)  # kanji
        for language, number in found.items():  # Counter's type knows whole numbers only
            counts[language] += number / _WORD_LENGTH.get(language, 1)  # type: ignore[assignment]
    return counts


def get_language_consistency_reward(
    language: str | Callable[[str], float | None],
    min_words: int = 10,
    tokenizer: "Tokenizer | None" = None,
    fmt: ThinkFormat | None = None,
) -> Callable[..., list[float | None]]:
    """
    Reward function that gives the share of target-language words among the words of the reasoning.

    DeepSeek-R1 adds it to the accuracy reward against reasoning that mixes languages, at a slight cost in accuracy.
    Formulas, code and LaTeX commands count for no language.

    Args:
        language (`str` or `Callable`):
            Target: `"zh"`, `"ja"`, `"ko"`, `"ru"`, `"ar"`, `"hi"`, `"th"`, `"el"`, `"he"`, or `"en"`, which is any
            language in Latin letters. For another target a function of the reasoning (text) that returns the share in
            `[0, 1]`, or `None` if it cannot tell; one at module level, so that the reward can be pickled.
        min_words (`int`, *optional*, defaults to `10`):
            Reasoning of fewer words gets `None`: a share of few words is chance, and a policy would find out that the
            shortest reasoning is the purest.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The policy's tokenizer, to read prefilled, cut and special-token output right.
        fmt ([`ThinkFormat`], *optional*):
            Markers of the reasoning, see [`get_accuracy_reward`].

    Returns:
        `Callable`: A picklable reward function for [`~trl.GRPOTrainer`]. Each reward is in `[0.0, 1.0]`; `None` where
        there is no reasoning or too little. Wrap it in `guard(reward, fill_none=True)` so that `None` does not weigh
        as 0 in a group. `log_metric` gets the number of these as `language/none`.

    Raises:
        `ValueError`: If `language` is not supported or `min_words` is below 1.

    Example:

    ```python
    >>> from think_tools.rewards import get_language_consistency_reward

    >>> reward = get_language_consistency_reward("en", min_words=4)
    >>> reward(["<think>First add two and two, 然后加三。</think>7", "<think>2+2</think>4"])
    [0.6666666666666666, None]
    ```
    """
    if not callable(language) and language not in LANGUAGES:
        raise ValueError(
            f"`language` must be one of {sorted(LANGUAGES)}, got {language!r}. Scripts cannot tell other languages "
            "apart: pass a function from text to the share of target words."
        )
    if min_words < 1:
        raise ValueError(f"`min_words` must be at least 1, got {min_words}.")
    return _LanguageConsistencyReward(language, min_words, CompletionReader(tokenizer, fmt))


class _LanguageConsistencyReward:
    # A class and no closure: TRL's async GRPO pickles reward functions into a spawned process.
    __name__ = "language_consistency_reward"

    def __init__(
        self, language: str | Callable[[str], float | None], min_words: int, reader: CompletionReader
    ) -> None:
        self.language = language
        self.min_words = min_words
        self.reader = reader

    def __call__(
        self,
        completions: list[Completion],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        traces = self.reader.read(completions, **columns)
        rewards = [self._share(trace.reasoning or "") for trace in traces]
        if log_metric:
            log_metric("language/none", float(rewards.count(None)))
        return rewards

    def _share(self, reasoning: str) -> float | None:
        words = count_words(reasoning)
        if words.total() < self.min_words:
            return None
        if callable(self.language):
            share = self.language(reasoning)
            return None if share is None else min(1.0, max(0.0, share))
        return words[self.language] / words.total()
