import json
import math
import random
import time

import pytest

from think_tools.answers import Grader
from think_tools.search import (
    best_candidate,
    canonical_answers,
    filter_top,
    maj_at_k,
    majority_vote,
    mean_over_subsets,
    pass_at_k,
    votes_missing,
    weighted_vote,
)

CASES = {
    "the most frequent answer wins": (["7", "8", "7"], "7"),
    "equal values in other words vote together": (["7", "1/2", "0.5"], "1/2"),
    "equal formulas vote together": (["7", r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"], r"\frac{\sqrt{2}}{2}"),
    "the first answer wins a tie": (["8", "7", "7", "8"], "8"),
    "an unread answer never votes": ([None, None, "7"], "7"),
    "a blank answer never votes": (["", " ", "7"], "7"),
    "nobody votes": ([None, None], None),
    "there are no samples": ([], None),
}


@pytest.mark.parametrize(("answers", "winner"), CASES.values(), ids=CASES)
def test_majority_vote(answers, winner):
    assert majority_vote(answers) == winner


WEIGHTED = {
    "the heaviest answer wins": (["7", "8", "7"], [0.1, 0.9, 0.2], None, "8"),
    "weights of equal answers add up": (["0.5", "8", "1/2"], [0.4, 0.7, 0.4], None, "0.5"),
    "the first answer wins a tie": (["8", "7"], [0.5, 0.5], None, "8"),
    "a sample without answer has no say": ([None, "7"], [9.0, 0.1], None, "7"),
    "a sample without answer needs no score": ([None, "7"], [math.nan, 0.1], None, "7"),
    "log-probabilities through a softmax": (["7", "8", "7"], [-2.0, -1.9, -2.0], 1.0, "7"),
    "a cold softmax is best-of-N": (["7", "8", "7"], [-2.0, -1.9, -2.0], 0.01, "8"),
    "a very cold softmax does not overflow": (["7", "8"], [1000.0, -1000.0], 1e-6, "7"),
    "nobody votes": ([None], [1.0], 1.0, None),
}


@pytest.mark.parametrize(("answers", "weights", "temperature", "winner"), WEIGHTED.values(), ids=WEIGHTED)
def test_weighted_vote(answers, weights, temperature, winner):
    assert weighted_vote(answers, weights, temperature=temperature) == winner


KEPT = {
    "half of them": ([0.1, 0.9, 0.5, 0.7], 0.5, None, [1, 3]),
    "a share is rounded up": ([0.1, 0.9, 0.5], 0.5, None, [1, 2]),
    "a share of 100 is exact": ([float(i) for i in range(100)], 0.07, None, list(range(93, 100))),
    "a number of them": ([0.1, 0.9, 0.5], 2, None, [1, 2]),
    "all": ([0.1, 0.9], 1.0, None, [0, 1]),
    "the best one": ([0.1, 0.9], 1, None, [1]),
    "more than there are": ([0.1, 0.9], 5, None, [0, 1]),
    "the first of equal scores": ([0.5, 0.5, 0.5], 2, None, [0, 1]),
    "those without answer are not counted": ([0.9, 0.2, 0.3], 0.5, [None, "7", "8"], [2]),
    "nothing": ([], 0.5, None, []),
}


@pytest.mark.parametrize(("scores", "keep", "answers", "kept"), KEPT.values(), ids=KEPT)
def test_filter_top(scores, keep, answers, kept):
    assert filter_top(scores, keep, answers) == kept


def test_best_candidate():
    assert best_candidate([0.2, 0.9, 0.9]) == 1
    assert best_candidate([0.2, 0.9, 0.5], ["7", None, "8"]) == 2
    assert best_candidate([0.2], [None]) is None
    assert best_candidate([]) is None


MISSING = {
    "nothing was sampled yet": ([], 16, 3),
    "three that agree": (["7"] * 3, 13, 0),
    "three of four": (["7", "7", "8", "7"], 12, 1),
    "the lead is greater than what is left": (["7", "7", "8", "7"], 1, 0),
    "a tie": (["7", "8"] * 4, 8, 3),
    "few are left": (["7", "8"] * 7, 2, 1),
    "nobody could be read yet": ([None] * 8, 8, 2),
    "unread answers do not count": ([None, "7", "7", "7"], 12, 0),
    "nothing is left": (["7", "8"], 0, 0),
}


@pytest.mark.parametrize(("answers", "left", "missing"), MISSING.values(), ids=MISSING)
def test_votes_missing(answers, left, missing):
    assert votes_missing(answers, left) == missing


@pytest.mark.parametrize(("first", "second", "left"), [(3, 1, 12), (5, 3, 8), (2, 0, 14)])
def test_a_vote_is_decided_with_the_probability_that_is_asked_for(first, second, left):
    rng = random.Random(0)
    kept = 0
    for _ in range(20_000):
        share = rng.betavariate(first + 1, second + 1)
        won = sum(rng.random() < share for _ in range(left))
        kept += first + won >= second + left - won
    answers = ["7"] * first + ["8"] * second
    assert votes_missing(answers, left, kept / 20_000 - 0.02) == 0
    assert votes_missing(answers, left, kept / 20_000 + 0.02) > 0


def test_a_sure_vote_cannot_be_overtaken():
    assert votes_missing(["7"] * 8, 8, confidence=1.0) == 0
    assert votes_missing(["7"] * 7, 9, confidence=1.0) == 1
    assert votes_missing(["8", *["7"] * 8], 7, confidence=1.0) == 1  # the first answer would win the tie


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    correct = [True, False, False, True, False]
    for k in range(1, 6):
        by_hand = mean_over_subsets(lambda chosen: any(correct[i] for i in chosen), 5, k, num_subsets=1000)
        assert pass_at_k(correct, k) == pytest.approx(by_hand)
    assert pass_at_k([False] * 3, 2) == 0
    assert pass_at_k([True] * 3, 2) == 1


def test_maj_at_k_of_few_samples_takes_every_subset():
    # Pairs: 78 7-, 8-: of the pair (7, 8) the first wins.
    assert maj_at_k(["7", "8", None], [True, False, False], 2) == pytest.approx(2 / 3)
    assert maj_at_k([None, None], [False, False], 1) == 0


def test_maj_at_k_of_many_samples_takes_random_subsets_with_a_seed():
    answers = ["7"] * 20 + ["8"] * 20
    correct = [answer == "7" for answer in answers]
    first, again = (maj_at_k(answers, correct, 5, num_subsets=400, seed=1) for _ in range(2))
    assert first == again
    assert first == pytest.approx(0.5, abs=0.08)
    assert first != maj_at_k(answers, correct, 5, num_subsets=400, seed=2)


MISTAKES = {
    "fewer weights than answers": (
        lambda: weighted_vote(["7", "8"], [1.0]),
        "`weights` must have one number per answer, got 1 for 2 answers",
    ),
    "a weight that is no number": (
        lambda: weighted_vote(["7", "8"], [1.0, math.nan]),
        "`weights` must be finite numbers, got nan for sample 1: leave that sample out",
    ),
    "a temperature of 0": (
        lambda: weighted_vote(["7"], [1.0], temperature=0.0),
        "`temperature` must be positive or None, got 0.0",
    ),
    "a score without end": (
        lambda: best_candidate([math.inf]),
        "`scores` must be finite numbers, got inf for sample 0",
    ),
    "a share above 1": (
        lambda: filter_top([0.5], 1.5),
        r"`keep` must be a share in \(0, 1\] as a float, or a number of at least 1, got 1.5",
    ),
    "a score that was not computed": (
        lambda: best_candidate([None]),
        "`scores` must be finite numbers, got None for sample 0",
    ),
    "no confidence": (lambda: votes_missing(["7"], 3, 0.0), r"`confidence` must be in \(0, 1\], got 0.0"),
    "none to keep": (lambda: filter_top([0.5], 0), "`keep` must be a share .* got 0"),
    "more than all": (
        lambda: pass_at_k([True], 2),
        "`k` must be from 1 to the number of samples, 1, got 2",
    ),
    "no subset": (
        lambda: maj_at_k(["7", "8"], [True, False], 1, num_subsets=0),
        "`num_subsets` must be at least 1, got 0",
    ),
    "fewer grades than answers": (
        lambda: maj_at_k(["7", "8"], [True], 1),
        "`correct` must have one value per answer, got 1 for 2",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_counted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_questions_are_made_canonical_apart_from_each_other():
    assert canonical_answers([["1/2", "0.5"], ["0.5", "1/2", None], []]) == [["1/2", "1/2"], ["0.5", "0.5", None], []]


def test_canonical_answers_need_no_more_comparison():
    alike = ["x+1", "2", "x+1"]
    assert majority_vote(alike, canonical=True) == "x+1"
    assert weighted_vote(["0.5", "1/2"], [1.0, 2.0], canonical=True) == "1/2"
    assert maj_at_k(alike, [True, False, True], 3, canonical=True) == 1.0


@pytest.fixture(scope="module")
def scorio():
    return pytest.importorskip("scorio")


def random_case(rng):
    """Answers of a question, some unread, with a score each."""
    size = rng.randint(1, 24)
    answers = [rng.choice([None, *"ABCDEFG"[: rng.randint(1, 7)]]) for _ in range(size)]
    return answers, [rng.random() for _ in answers]


def test_selectors_agree_with_scorio_on_1000_random_cases(scorio):
    rng, agg = random.Random(0), scorio.agg
    for _ in range(1000):
        answers, scores = random_case(rng)
        temperature, keep = rng.uniform(0.05, 2), rng.choice([0.1, 0.5, 0.9, 1, 3])
        assert majority_vote(answers, canonical=True) == agg.majority_vote(answers)
        assert weighted_vote(answers, scores, canonical=True) == agg.weighted_majority_vote(answers, scores)
        softmax = weighted_vote(answers, scores, temperature=temperature, canonical=True)
        assert softmax == agg.softmax_weighted_vote(answers, scores, temperature=temperature)
        best = best_candidate(scores, answers)
        assert (None if best is None else answers[best]) == agg.best_of_n(answers, scores)
        kept = filter_top(scores, keep, answers)
        voted = weighted_vote([answers[i] for i in kept], [scores[i] for i in kept], canonical=True)
        assert voted == agg.filtered_vote(answers, scores, keep=keep)
        stop, probability = agg.adaptive_consistency_stop(answers, return_prob=True)
        if abs(probability - 0.95) > 0.01:  # with endless samples to come it is the same rule
            assert (votes_missing(answers, 1000) == 0) is stop


def test_pass_at_k_agrees_with_scorio(scorio):
    import numpy as np

    rng = random.Random(1)
    for _ in range(200):
        correct = [rng.random() < 0.4 for _ in range(rng.randint(1, 20))]
        k = rng.randint(1, len(correct))
        assert pass_at_k(correct, k) == pytest.approx(scorio.eval.pass_at_k(np.array([correct], dtype=int), k))


def early_stop(answers, correct):
    """Samples used and whether the early vote and the full vote are right; `answers` are canonical."""
    drawn = 0
    while missing := votes_missing(answers[:drawn], len(answers) - drawn):
        drawn += missing
    right = dict(zip(reversed(answers), reversed(correct), strict=True))
    early, full = (majority_vote(some, canonical=True) for some in (answers[:drawn], answers))
    return drawn, bool(right[early]) if early else False, bool(right[full]) if full else False


def report(name, found):
    samples, early, full = (sum(column) / len(found) for column in zip(*found, strict=True))
    print(f"{name}: {samples:.2f} of 16 samples, early vote {100 * early:.1f} %, full vote {100 * full:.1f} %")
    return samples / 16, early - full


def test_early_stop_takes_half_the_samples_on_1000_problems_of_all_difficulties():
    rng = random.Random(0)
    found = []
    for _ in range(1000):
        share = rng.betavariate(1.2, 0.8)  # of right samples: 60 % in the mean, many easy and many hard problems
        wrong = [f"w{j}" for j in range(6)]
        answers = [
            "r" if rng.random() < share else rng.choices(wrong, weights=[8, 4, 2, 1, 1, 1])[0] for _ in range(16)
        ]
        found.append(early_stop(answers, [answer == "r" for answer in answers]))
    samples, gain = report("synthetic", found)
    assert samples <= 0.5
    assert abs(gain) <= 0.005


def test_early_stop_takes_half_the_samples_on_stored_math_samples(data_folder):
    lines = (data_folder / "data" / "math_samples_8x50.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rng = random.Random(0)
    found = []
    for row, answers in zip(rows, canonical_answers([row["extracted"] for row in rows]), strict=True):
        for _ in range(20):  # 1,000 problems: 16 samples drawn from the 8 of each of the 50
            drawn = [rng.randrange(8) for _ in range(16)]
            found.append(early_stop([answers[i] for i in drawn], [row["is_correct"][i] for i in drawn]))
    samples, gain = report("MATH samples", found)
    assert samples <= 0.5
    assert abs(gain) <= 0.005


@pytest.mark.slow
def test_1000_problems_of_64_candidates_vote_and_score_in_30_seconds():
    """Answers as models write them: other forms of one value, wrong ones that differ, some that need algebra."""
    rng = random.Random(0)
    fractions = ["\\frac{{{a}}}{{{b}}}", "{a}/{b}", "\\dfrac{{{c}}}{{{d}}}", "${a}/{b}$", "-{a}/{b}", "{a}"]
    formulas = [
        "\\frac{{{a}\\sqrt{{2}}}}{{{b}}}",
        "\\frac{{{c}}}{{{b}\\sqrt{{2}}}}",
        "{a}x + {b}",
        "{b} + {a}x",
        "(x+{a})^2",
    ]
    questions = []
    for i in range(1000):
        numerator, b = rng.randint(2, 99), rng.choice([101, 103, 107])
        forms = fractions if i % 3 else formulas
        questions.append([])
        for _ in range(64):
            a = numerator + rng.choice([0, 0, 0, 0, 1, 2])
            answer = rng.choice(forms).format(a=a, b=b, c=2 * a, d=2 * b)
            questions[-1].append(answer if rng.random() < 0.95 else None)
    start = time.perf_counter()
    with Grader(workers=2) as grader:
        alike = canonical_answers(questions, grader=grader)
        firsts = [[answer for answer in dict.fromkeys(some) if answer is not None] for some in alike]
        golds = [majority_vote(some, canonical=True) for some in alike]
        pairs = [(answer, gold) for some, gold in zip(firsts, golds, strict=True) for answer in some]
        right = iter(grader.grade([answer for answer, _ in pairs], [gold for _, gold in pairs]))
        correct = [dict(zip(some, right, strict=False)) for some in firsts]
    scores = [
        maj_at_k(some, [bool(known.get(answer)) for answer in some], k, canonical=True)
        for some, known in zip(alike, correct, strict=True)
        for k in (1, 8, 64)
    ]
    seconds = time.perf_counter() - start
    print(f"1,000 problems x 64 candidates: {seconds:.1f} s, mean {sum(scores) / len(scores):.3f}")
    assert seconds < 30
