"""Choose among sampled answers by counting."""

from collections.abc import Sequence

from ..answers import same_answer


def majority_vote(answers: Sequence[str | None]) -> str | None:
    """
    The answer given most often, in the words of the first sample that gave it (self-consistency).

    Answers are equal when [`same_answer`] says so: `0.5` and `1/2` vote together.

    Source: Wang et al. 2022, https://huggingface.co/papers/2203.11171.

    Args:
        answers (`Sequence[str | None]`):
            One answer per sample. `None`, an answer that could not be read, never votes.

    Returns:
        `str | None`: The winner. With a tie it is the answer that came first; without any vote it is `None`.

    Example:

    ```python
    >>> from think_tools.search import majority_vote

    >>> majority_vote(["7", "1/2", None, "0.5"])
    '1/2'
    ```
    """
    counts: dict[str, int] = {}
    for answer in answers:
        if answer is None:
            continue
        known = answer if answer in counts else next((other for other in counts if same_answer(answer, other)), answer)
        counts[known] = counts.get(known, 0) + 1
    return max(counts, key=counts.__getitem__) if counts else None
