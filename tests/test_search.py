import pytest

from think_tools.search import majority_vote

CASES = {
    "the most frequent answer wins": (["7", "8", "7"], "7"),
    "equal values in other words vote together": (["7", "1/2", "0.5"], "1/2"),
    "the first answer wins a tie": (["8", "7", "7", "8"], "8"),
    "an unread answer never votes": ([None, None, "7"], "7"),
    "nobody votes": ([None, None], None),
    "there are no samples": ([], None),
}


@pytest.mark.parametrize(("answers", "winner"), CASES.values(), ids=CASES)
def test_majority_vote(answers, winner):
    assert majority_vote(answers) == winner
