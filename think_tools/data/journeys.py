"""Reasoning that errs, notices and goes back: written from search trees, from planted errors, from whole searches."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, pairwise
from typing import Any, cast

from datasets import Dataset, IterableDataset

from ..steps import split_steps
from .countdown import search_countdown
from .rows import open_dataset

Tree = dict[str, Any]

# `{remark}` is what the verifier said, `{state}` where the reasoning goes on, `{slip}` a claim that is wrong.
CONNECTORS = {
    "en": {
        "turn": "Wait: {remark} Back to: {state}",
        "wrong": "this step is wrong.",
        "slip": "{slip} is wrong.",
        "start": "the beginning",
    },
    "zh": {"turn": "等等：{remark}回到：{state}", "wrong": "这一步错了。", "slip": "{slip}错了。", "start": "开头"},
}
# `3*2+0=6` or `-> 26`: what is claimed, and the number that a slip changes.
_RESULT = re.compile(r"(\S*?(?:=|->) ?)(\d{1,9})")
_NAME_LENGTH = 60  # characters


def journey(
    tree: Tree, *, k: int = 1, depth: int | None = 1, connectors: Mapping[str, str] | None = None
) -> list[dict]:
    r"""
    Rows whose reasoning walks through a search tree: into wrong branches, back, and on to a right answer.

    Depth first along the path to a right leaf. At each node up to `k` wrong branches are
    tried before the right step, the most promising first. Each ends with what the verifier remarks, and names the
    state to which the reasoning returns. Wrong steps are parts with `train: False`: `prepare_sft(loss="parts")` masks
    them and trains the remark, the return and the correction, `loss="completion"` trains all.

    Source: Qin et al. 2024, O1 Replication Journey, "How to derive a long thought from a reasoning tree", steps 1 to 3
    (step 4, a rewrite by a strong model, is left to you), https://huggingface.co/papers/2410.18982.

    Args:
        tree (`dict`):
            The root: `prompt` (messages), `children`, and optionally `solution`, `source` and `id`. Every node below
            is a `dict` with

            - `text` (`str`): the step, white space around it aside;
            - `children` (`list[dict]`, *optional*): the steps that may follow; none for a leaf;
            - `correct` (`bool`, *optional*): of a leaf, whether its answer is right; of an inner node, what a verifier
              thinks of the step. A branch is wrong if it is marked so, or if all its leaves are; with unknown leaves
              it is neither right nor wrong, and not walked;
            - `value` (`float`, *optional*): how promising it is, the higher the better;
            - `answer` (`str`, *optional*): of a leaf, the answer; the root's `solution` where it is missing;
            - `remark` (`str`, *optional*): the verifier's sentence on a wrong step;
            - `name` (`str`, *optional*): what the state after the step is called when the reasoning returns to it;
              the first line of `text`, up to 60 characters of it, where it is missing.
        k (`int`, *optional*, defaults to `1`):
            Most wrong branches per node, on wrong branches too. `0` writes the shortcut.
        depth (`int`, *optional*, defaults to `1`):
            Most steps into a wrong branch before the reasoning turns back. `None` follows it to its end.
        connectors (`Mapping`, *optional*):
            Wordings with the keys of `CONNECTORS["en"]`. `None` is English, or Chinese for a prompt with Chinese
            characters.

    Returns:
        `list[dict]`: Rows of the package's type, one per right leaf, the most promising first; empty if no leaf is
        right. The completion's message also has `parts`,
        a list of `{"text", "train"}` whose texts together are the reasoning; `num_wrong` counts the wrong steps.

    Raises:
        `ValueError`: If `tree` has no `prompt`, or a right leaf no answer.

    Example:

    ```python
    >>> from think_tools.data import journey

    >>> tree = {
    ...     "prompt": [{"role": "user", "content": "2+3*4=?"}],
    ...     "solution": "14",
    ...     "children": [{"text": "2+3=5", "correct": False}, {"text": "3*4=12, 2+12=14", "correct": True}],
    ... }
    >>> print(journey(tree)[0]["completion"][0]["reasoning_content"])
    2+3=5
    <BLANKLINE>
    Wait: this step is wrong. Back to: the beginning
    <BLANKLINE>
    3*4=12, 2+12=14
    ```
    """
    if not tree.get("prompt"):
        raise ValueError(f"`tree` must have the messages of its question as `prompt`, got the keys {sorted(tree)}.")
    words = connectors or _words(tree)

    def stray(wrong: Tree, parent: Tree, left: float) -> Iterator[tuple[str, bool]]:
        yield wrong["text"].strip(), False
        for child in _wrong_children(wrong)[:k] if left > 1 else ():
            yield from stray(child, wrong, left - 1)
        state = parent.get("name") or _first_line(parent.get("text", "")) or words["start"]
        yield words["turn"].format(remark=wrong.get("remark") or words["wrong"], state=state), True

    rows = []
    for path in right_paths(tree):
        steps: list[tuple[str, bool]] = []
        for parent, node in pairwise(path):
            for wrong in _wrong_children(parent)[:k]:
                steps += stray(wrong, parent, float("inf") if depth is None else depth)
            steps.append((node["text"].strip(), True))
        rows.append(_row(tree, path[-1], steps, len(rows)))
    return rows


def verdict(node: Tree) -> bool | None:
    """Whether a node of a tree (see [`journey`]) is on the way to a right leaf; `None` if nobody can tell."""
    own, children = node.get("correct"), node.get("children") or ()
    if own is False or not children:
        return own
    below = [verdict(child) for child in children]
    # A right step that leads to wrong leaves only is neither.
    return True if True in below else None if own or None in below else False


def best_first(node: Tree) -> list[Tree]:
    """The children of a node, the most promising first."""
    return sorted(node.get("children") or (), key=lambda child: -(child.get("value") or 0.0))


def right_paths(node: Tree) -> Iterator[list[Tree]]:
    """Every way from `node`, which is in it, to a right leaf."""
    if not node.get("children") and node.get("correct"):
        yield [node]
    for child in best_first(node):
        if verdict(child):
            yield from ([node, *path] for path in right_paths(child))


def plant_errors(
    row: dict,
    *,
    rate: float = 0.3,
    spoil: Callable[[str, random.Random], tuple[str, str] | None] | None = None,
    seed: int = 0,
) -> Tree:
    r"""
    A tree for [`journey`] from one clean trace: some of its steps get a wrong sibling.

    Args:
        row (`dict`):
            A row of the package's type whose reasoning is right. [`split_steps`] cuts it.
        rate (`float`, *optional*, defaults to `0.3`):
            Probability that a step gets a wrong sibling, in `[0, 1]`.
        spoil (`Callable`, *optional*):
            From a step and a random number generator to the wrong step and the words in it that are wrong, or to
            `None` for a step that cannot be spoilt. `None` is [`slip`].
        seed (`int`, *optional*, defaults to `0`):
            With the row's `id` the seed of all choices.

    Returns:
        `dict`: The root of the tree.

    Raises:
        `ValueError`: If the row has no reasoning or `rate` is out of its range.

    Example:

    ```python
    >>> from think_tools.data.journeys import plant_errors
    >>> from think_tools.tiny import arithmetic_problems

    >>> tree = plant_errors(arithmetic_problems(n=1)[0], rate=1.0)
    >>> [child["text"] for child in tree["children"][0]["children"]]
    ['Ones: 56*8: 6*8+0=38 5*8+4=44 -> 448', 'Ones: 56*8: 6*8+0=48 5*8+4=44 -> 448\n\n']
    ```
    """
    message = row["completion"][-1]
    if not 0 <= rate <= 1:
        raise ValueError(f"`rate` must be between 0 and 1, got {rate}.")
    if not (steps := split_steps(message["reasoning_content"] or "")):
        raise ValueError("`row` must have reasoning to plant errors in, got an answer without.")
    rng = random.Random(f"{seed}/{row.get('id')}/{row['prompt']}")
    root = node = {**{key: row.get(key) for key in ("prompt", "solution", "source", "id")}, "children": []}
    for step in steps:
        if rng.random() < rate and (spoilt := (spoil or slip)(step, rng)):
            remark = _words(row)["slip"].format(slip=spoilt[1])
            node["children"].append({"text": spoilt[0], "correct": False, "remark": remark})
        node["children"].append({"text": step, "children": []})
        node = node["children"][-1]
    node |= {"correct": True, "answer": message["content"]}
    return root


def slip(step: str, rng: random.Random) -> tuple[str, str] | None:
    r"""
    The step with one result wrong by one or ten, and the wrong claim; `None` if nothing in it follows `=` or `->`.

    Example:

    ```python
    >>> import random
    >>> from think_tools.data.journeys import slip

    >>> slip("3*2+0=6 1*2+0=2 -> 26", random.Random(0))
    ('3*2+0=6 1*2+0=3 -> 26', '1*2+0=3')
    ```
    """
    if not (results := list(_RESULT.finditer(step))):
        return None
    chosen = rng.choice(results)
    number = int(chosen[2])
    wrong = f"{chosen[1]}{rng.choice([n for d in (-10, -1, 1, 10) if (n := number + d) >= 0])}"
    return step[: chosen.start()].lstrip() + wrong + step[chosen.end() :].rstrip(), wrong


def stream_of_search(
    dataset: Dataset | IterableDataset | list[dict],
    *,
    max_operations: int | None = None,
    error_rate: float = 0.3,
    seed: int = 0,
) -> Dataset:
    r"""
    Rows whose reasoning is a whole search, dead ends and returns included.

    Rows with the columns `numbers` and `target`, as [`~think_tools.data.countdown.countdown_problems`] makes them, are
    searched depth first or breadth first (beam of 1 to 5), ordered by the mean distance to the target or by the
    distances to its factors, as drawn; the lines are those of the paper's code, so that its evaluation reads them.
    Depth first leaves out what is farther from the target than the target is from 0, breadth first what is outside
    the beam, so that some searches find nothing; they are kept, with rating 0, as in the paper.

    Any other rows must have right reasoning in steps, as [`~think_tools.tiny.arithmetic_problems`] has: some steps go
    wrong, are noticed and done again ([`plant_errors`], [`journey`]).

    Source: Gandhi et al. 2024, Stream of Search, "A Language for Search" and "Problem Setup",
    https://huggingface.co/papers/2404.03683.

    Args:
        dataset (`datasets.Dataset`, `datasets.IterableDataset` or `list[dict]`):
            Problems, or rows of the package's type. A stream is read whole.
        max_operations (`int`, *optional*):
            Operations after which a search gives up and is unsolved: a search may take a thousand. `None` is no limit.
        error_rate (`float`, *optional*, defaults to `0.3`):
            Probability that a step of a given reasoning is got wrong first.
        seed (`int`, *optional*, defaults to `0`):
            The same arguments always give the same rows.

    Returns:
        `datasets.Dataset`: The rows with a new `completion` (and a `prompt`, if numbers have none) and `rating` in
        `[0, 1]`: the share of the operations that a solved search did not have to try, or of the written steps that
        are right. Countdown rows also get `search` (`"dfs"`, `"bfs-3"`) and `heuristic`; the others
        `num_wrong`, and `parts` in their message (see [`journey`]).

    Raises:
        `ValueError`: If the columns or the reasoning are missing, or `error_rate` is out of its range.

    Example:

    ```python
    >>> from think_tools.data import stream_of_search

    >>> row = stream_of_search([{"numbers": [4, 6], "target": 10}], seed=1)[0]
    >>> print(row["completion"][0]["reasoning_content"])
    Current State: 10:[4, 6], Operations: []
    Exploring Operation: 6+4=10, Resulting Numbers: [10]
    10,10 equal: Goal Reached
    ```
    """
    rows, columns = open_dataset(dataset)
    countdown = {"numbers", "target"} <= set(columns)
    if not countdown and "completion" not in columns:
        raise ValueError(f"`dataset` must have the columns 'numbers' and 'target', or 'completion', got {columns}.")
    rng = random.Random(f"search/{seed}")
    searched = []
    for row in cast(Iterable[dict], rows):
        if countdown:
            searched.append(search_countdown(row, rng, max_operations))
            continue
        [erring] = journey(plant_errors(row, rate=error_rate, seed=seed))
        clean = len(split_steps(row["completion"][-1]["reasoning_content"]))
        searched.append(row | erring | {"rating": clean / (clean + erring["num_wrong"])})
    return Dataset.from_list(searched)


def _wrong_children(node: Tree) -> list[Tree]:
    return [child for child in best_first(node) if verdict(child) is False]


def _words(row: dict) -> Mapping[str, str]:
    return CONNECTORS["zh" if re.search("[\u3400-\u9fff]", str(row["prompt"])) else "en"]


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _NAME_LENGTH else f"{line[: _NAME_LENGTH - 1]}…"


def _row(root: Tree, leaf: Tree, steps: list[tuple[str, bool]], number: int) -> dict:
    answer = leaf.get("answer") or root.get("solution")
    if not answer:
        raise ValueError("`tree` has a right leaf without `answer`, and its root has no `solution`.")
    texts = [(f"{text}\n\n", train) for text, train in steps[:-1]] + steps[-1:]
    parts = [
        {"text": "".join(text for text, _ in group), "train": train}
        for train, group in groupby(texts, key=lambda step: step[1])
    ]
    reasoning = "".join(part["text"] for part in parts)
    message = {"role": "assistant", "reasoning_content": reasoning, "content": answer, "parts": parts}
    return {
        "prompt": root["prompt"],
        "completion": [message],
        "chat_template_kwargs": {"enable_thinking": True},
        "solution": root.get("solution"),
        "source": root.get("source") or "journey",
        "id": f"{root.get('id') or 'tree'}{f'-{number}' if number else ''}",
        "num_wrong": sum(not train for _, train in steps),
    }
