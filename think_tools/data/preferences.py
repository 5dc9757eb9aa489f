"""Preference pairs for DPO from candidates of one question, both sides in the same mode."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from typing import Any, Literal, cast, get_args

from datasets import Dataset, IterableDataset

from ..rewards import accuracy_reward
from .filters import complete, language
from .journeys import Tree, best_first, right_paths, verdict
from .rollouts import Reward, read_candidates, reasoning_of

Rule = Literal["correct", "short", "clean", "format", "judge", "step"]
_MARGINS: dict[Rule, float] = {"clean": 0.1, "judge": 3.0}

logger = logging.getLogger(__name__)


def to_preference(
    dataset: Dataset | IterableDataset | list[dict],
    rule: Rule = "correct",
    *,
    margin: float | None = None,
    max_pairs: int = 1,
    score: str | Callable[[dict], float | None] | None = None,
    length: Callable[[str], int] = len,
    reward: Reward = accuracy_reward,
) -> Dataset:
    """
    Pairs of a better and a worse candidate for the same question, as [`~trl.DPOTrainer`] reads them.

    | rule | chosen | rejected | score that must differ by `margin` |
    |---|---|---|---|
    | `"correct"` | right | wrong | 1 or 0 |
    | `"short"` | right, short reasoning | right, long reasoning | minus the length of the reasoning |
    | `"clean"` | right, in the language of the question | right, mixed | share of words in that language, 0 to 1 |
    | `"format"` | passes [`~think_tools.data.filters.complete`] | does not | 1 or 0 |
    | `"judge"` | higher `score` | lower `score` | `score` |
    | `"step"` | a right next step | a wrong one after the same steps | 1 or 0 |

    Both sides of a pair have reasoning or neither has, so that no pair differs by the mode alone; only `"format"`
    pairs a reasoning with none, for which all candidates should have been asked to think. What is cut, not closed,
    without answer or has a think marker in its text is on no side but that which `"format"` rejects; a message cannot
    leave its reasoning open, so the template closes it there. Of pairs with the same difference the one of most equal
    length is taken, or DPO would learn the length.

    DPO's default `max_length` of 1024 tokens cuts longer pairs: set `DPOConfig(max_length=None)`.

    Source of the steps: rStar-Math, section 3.3 (there by their values), https://huggingface.co/papers/2501.04519.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset`, `list[dict]`):
            One row per candidate, as [`distill`] and [`~think_tools.data.rollouts.sample_candidates`] write them;
            those with the same `prompt` belong together. A column `correct` is believed, else `solution` is compared.
            For `"step"` a list of trees ([`journey`]): the sides have the same steps, whose log-probabilities cancel
            out, then a right or a wrong one and what followed; a wrong leaf needs an `answer`.
        rule (`str`, *optional*, defaults to `"correct"`):
            What is better, see the table.
        margin (`float`, *optional*):
            Least difference of the scores. `None` is 0.1 for `"clean"`, 3 for `"judge"` (of 10), else 1.
        max_pairs (`int`, *optional*, defaults to `1`):
            Most pairs per question, those with the greatest difference. No candidate comes twice.
        score (`str` or `Callable`, *optional*):
            For `"judge"`: the column with the score, a number or the annotation of a filter; or a function of the row.
            `None` leaves a candidate out.
        length (`Callable`, *optional*, defaults to `len`):
            Length of a reasoning, in characters; `lambda text: len(tokenizer(text).input_ids)` counts tokens.
        reward (`Callable`, *optional*, defaults to [`accuracy_reward`]):
            Grades where there is no column `correct`: 1.0 is right.

    Returns:
        `datasets.Dataset`: Columns `prompt`, `chosen` and `rejected` (messages), `chat_template_kwargs`, `solution`,
        `source`, `id`, `rule` and `margin` (the difference). The log says how many questions have no pair, and why.

    Raises:
        `ValueError`: If an argument or a column is missing or unknown, or there is no pair at all.

    Example:

    ```python
    >>> from think_tools.data import to_preference

    >>> prompt = [{"role": "user", "content": "2+2?"}]
    >>> answers = [{"role": "assistant", "reasoning_content": "2+2", "content": text} for text in ("5", "4")]
    >>> rows = [{"prompt": prompt, "completion": [answer], "solution": "4"} for answer in answers]
    >>> pair = to_preference(rows, "correct")[0]
    >>> pair["chosen"][0]["content"], pair["rejected"][0]["content"]
    ('4', '5')
    ```
    """
    if rule not in get_args(Rule):
        raise ValueError(f"`rule` must be one of {list(get_args(Rule))}, got {rule!r}.")
    if (rule == "judge") != (score is not None):
        raise ValueError(f"`score` must be given for `rule='judge'` and for no other, got {score!r} for {rule!r}.")
    margin = _MARGINS.get(rule, 1.0) if margin is None else margin
    pairs: list[dict] = []
    causes: Counter[str] = Counter()
    questions = _questions(dataset, rule, reward)
    for groups in questions:
        scored = [[(_score(row, rule, score, length), row) for row in group] for group in groups]
        scored = [[(value, row) for value, row in group if value is not None] for group in scored]
        found = list(_best_pairs(scored, margin, max_pairs))
        pairs += [_pair(*pair, rule) for pair in found]
        if not found:
            causes[_why_none(scored, rule, margin)] += 1
    if causes:
        listed = "; ".join(f"{cause} ({count:,})" for cause, count in causes.most_common())
        report = f"`to_preference` found no pair for {causes.total():,} of {len(questions):,} questions: {listed}."
        if not pairs:
            raise ValueError(report)
        logger.warning(report)
    return Dataset.from_list(pairs)


def _questions(dataset: Any, rule: Rule, reward: Reward) -> list[list[list[dict]]]:
    """For each question the groups of candidates that may be compared: of one mode, or after the same steps."""
    if rule == "step":
        return [list(_siblings(tree, tree, ())) for tree in dataset]
    questions: dict[str, dict[bool, list[dict]]] = {}
    for row in cast(Iterable[dict], read_candidates(dataset, reward)):
        mode = rule == "format" or bool(reasoning_of(row))
        questions.setdefault(str(row["prompt"]), {}).setdefault(mode, []).append(row)
    return [list(groups.values()) for groups in questions.values()]


def _siblings(root: Tree, node: Tree, before: tuple[str, ...]) -> Iterator[list[dict]]:
    """A row per child of `node`, with what followed it, then the same below its right children."""
    rows = []
    for child in best_first(node):
        right, path = verdict(child), [child]
        while below := best_first(path[-1]):
            path.append(below[0])
        path = next(right_paths(child), path)
        answer = path[-1].get("answer") or (root.get("solution") if right else None)
        reasoning = "\n\n".join([*before, *(step["text"].strip() for step in path)])
        message = {"role": "assistant", "reasoning_content": reasoning, "content": answer or ""}
        rows.append({**root, "completion": [message], "correct": right})
    yield rows
    for child in best_first(node):
        if verdict(child):
            yield from _siblings(root, child, (*before, child["text"].strip()))


def _score(
    row: dict, rule: Rule, score: str | Callable[[dict], float | None] | None, length: Callable[[str], int]
) -> float | None:
    """How good a candidate is by the rule; `None` if it can be on neither side."""
    fit = complete(thinking=rule == "format")(row)["keep"]
    if rule == "format":
        return float(fit)
    if not fit:
        return None
    if rule == "judge":
        value = row[score] if isinstance(score, str) else cast(Callable, score)(row)
        return value["value"] if isinstance(value, dict) else value
    if rule in ("correct", "step"):
        return None if row["correct"] is None else float(row["correct"])
    if not row["correct"]:
        return None
    if rule == "short":
        return -float(length(reasoning_of(row)))
    return language()(row)["value"]["reasoning"]


def _best_pairs(
    scored: list[list[tuple[float, dict]]], margin: float, max_pairs: int
) -> Iterator[tuple[float, dict, dict]]:
    possible = [
        (high - low, abs(len(reasoning_of(better)) - len(reasoning_of(worse))), better, worse)
        for group in scored
        for (high, better), (low, worse) in permutations(group, 2)
        if high > low and high - low >= margin
    ]
    used: set[int] = set()
    for difference, _, better, worse in sorted(possible, key=lambda pair: (-pair[0], pair[1])):
        if len(used) < 2 * max_pairs and not used & {id(better), id(worse)}:
            used |= {id(better), id(worse)}
            yield difference, better, worse


def _pair(difference: float, better: dict, worse: dict, rule: Rule) -> dict:
    kwargs = (better.get("chat_template_kwargs") or {}) | {"enable_thinking": bool(reasoning_of(better))}
    return {
        "prompt": better["prompt"],
        "chosen": better["completion"],
        "rejected": worse["completion"],
        "chat_template_kwargs": kwargs,
        **{name: better.get(name) for name in ("solution", "source", "id")},
        "rule": rule,
        "margin": difference,
    }


def _why_none(scored: list[list[tuple[float, dict]]], rule: Rule, margin: float) -> str:
    values = [value for group in scored for value, _ in group]
    if len(values) < 2:
        return "fewer than two candidates to compare"
    if max(values) - min(values) >= margin > 0:
        return "the better and the worse are of different modes"
    if rule in ("correct", "format", "step"):
        return f"every candidate is {'good' if values[0] else 'bad'}"
    return f"no difference of {margin:g}"
