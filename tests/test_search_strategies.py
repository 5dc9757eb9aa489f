import math

import pytest
from toy_world import GOLD, accuracy, noisy_oracle, problem, problems, toy_backend

from think_tools.backends import SamplingParams, ScriptedBackend, TransformersBackend
from think_tools.search import (
    best_of_n,
    parallel_sequential,
    self_consistency,
    sequential_revision,
)
from think_tools.tiny import load_tiny


def saying(*texts, **arguments):
    """A model whose samples of one prompt are these, over and over."""
    return ScriptedBackend(lambda messages, prefix, number: texts[number % len(texts)], **arguments)


def value(messages, texts):
    """A verifier to whom a greater number is better."""
    return [float(text) if text.isdigit() else 0.0 for text in texts]


ONE = [problem("3+4?")]


def test_a_vote_takes_the_answer_given_most_often():
    [result] = self_consistency(saying("7", "8", "7.0"), ONE, SamplingParams(n=6), confidence=None)
    assert result.answer == "7"
    assert result.candidate is result.candidates[0]
    assert result.details == {"share": 4 / 6}
    assert len(result.candidates) == 6
    assert result.tree is None


def test_a_vote_that_is_decided_ends():
    backend = saying("7")
    [result] = self_consistency(backend, ONE, SamplingParams(n=16))
    assert len(result.candidates) == len(backend.calls) == 3
    assert result.usage.calls == 1


def test_only_open_votes_go_on():
    texts = {"easy": ["7"], "hard": ["7", "8", "8", "7"]}
    backend = ScriptedBackend(lambda messages, _, number: (t := texts[messages[-1]["content"]])[number % len(t)])
    easy, hard = self_consistency(backend, [problem("easy"), problem("hard")], SamplingParams(n=8))
    assert len(easy.candidates) < len(hard.candidates) == 8
    assert hard.usage.calls > easy.usage.calls == 1


def test_answers_that_cannot_be_read_never_win():
    [result] = self_consistency(saying("<think>7", "I do not know.", "8"), ONE, SamplingParams(n=6), confidence=None)
    assert result.answer == "8"
    assert result.details == {"share": 1.0}


def test_without_any_answer_the_result_has_none():
    [result] = self_consistency(saying("<think>7"), ONE, SamplingParams(n=4), confidence=None)
    assert result.answer is None
    assert result.candidate is result.candidates[0]
    assert result.details == {"share": None}


def test_best_of_n_takes_the_highest_score():
    [result] = best_of_n(saying("7", "9", "8"), ONE, SamplingParams(n=3), verifier=value)
    assert (result.answer, result.scores) == ("9", [7.0, 9.0, 8.0])
    assert result.candidate is result.candidates[1]


def test_best_of_n_weighted_adds_up_scores():
    [result] = best_of_n(saying("7", "9", "7"), ONE, SamplingParams(n=3), verifier=value, weighted=True)
    assert result.answer == "7"


def test_best_of_n_passes_over_an_unread_answer_only_if_there_is_another():
    verifier = lambda messages, texts: [float("know" in text) for text in texts]  # noqa: E731
    [other] = best_of_n(saying("I do not know.", "8"), ONE, SamplingParams(n=2), verifier=verifier)
    [only] = best_of_n(saying("<think>", "I do not know."), ONE, SamplingParams(n=2), verifier=verifier)
    assert other.answer == "8"
    assert (only.answer, only.candidate.text) == (None, "I do not know.")


def test_a_process_verifier_counts_by_its_last_step_or_as_asked():
    steps = lambda messages, texts: [[0.9, 0.1] if text == "7" else [0.3, 0.5] for text in texts]  # noqa: E731
    [last] = best_of_n(saying("7", "8"), ONE, SamplingParams(n=2), verifier=steps)
    [mean] = best_of_n(saying("7", "8"), ONE, SamplingParams(n=2), verifier=steps, reduce="mean")
    assert (last.answer, last.scores) == ("8", [0.1, 0.5])
    assert mean.answer == "7"


def test_a_revision_sees_the_latest_answers_without_their_reasoning():
    seen = []

    def script(messages, prefix, number):
        seen.append(messages[-1]["content"])
        return f"<think>secret</think>{len(seen)}"

    [result] = sequential_revision(ScriptedBackend(script), ONE, SamplingParams(n=4), keep_last=2)
    assert seen[0] == "3+4?"
    assert "2. 3" in seen[3]
    assert "1. 2" in seen[3]
    assert "secret" not in "".join(seen)
    assert [candidate.trace.answer for candidate in result.candidates] == ["1", "2", "3", "4"]


def chain(*answers):
    """A model that gives these answers one after the other."""
    numbers = iter(answers)
    return ScriptedBackend(lambda messages, prefix, number: next(numbers))


SELECT = {
    "the majority of the chain": ({}, "5"),
    "the last": ({"select": "last"}, "6"),
    "the best": ({"select": "verifier", "verifier": value}, "7"),
}


@pytest.mark.parametrize(("arguments", "answer"), SELECT.values(), ids=SELECT)
def test_a_revision_chooses(arguments, answer):
    [result] = sequential_revision(chain("5", "7", "5", "6"), ONE, SamplingParams(n=4), **arguments)
    assert result.answer == answer


def test_the_last_answer_is_the_last_that_can_be_read():
    [result] = sequential_revision(chain("5", "6", "<think>5"), ONE, SamplingParams(n=3), select="last")
    assert result.answer == "6"


def test_flips_are_counted_where_there_is_a_gold_answer():
    [known] = sequential_revision(chain(GOLD, "5", "6", GOLD, GOLD), ONE, SamplingParams(n=5))
    assert known.details == {
        "correct": [True, False, False, True, True],
        "right_to_wrong": 1,
        "wrong_to_right": 1,
    }
    [unknown] = sequential_revision(chain(GOLD, "5"), [ONE[0]["prompt"]], SamplingParams(n=2))
    assert unknown.details == {"correct": [None, None], "right_to_wrong": 0, "wrong_to_right": 0}


SPLITS = {
    "all agree: everything else is revised": (["7"] * 4, 1.0, [4, 4, 4, 4]),
    "half agree: half is revised": (["7", "7", "8", "9"], 0.5, [3, 3, 2, 2] + [1] * 6),
    "none can be read: everything else is new": (["<think>"] * 4, 0.0, [1] * 16),
}


@pytest.mark.parametrize(("first", "agreement", "lengths"), SPLITS.values(), ids=SPLITS)
def test_the_budget_is_split_by_the_agreement_of_the_first_answers(first, agreement, lengths):
    backend = chain(*first, *["7"] * 12)
    [result] = parallel_sequential(backend, ONE, SamplingParams(n=16))
    assert result.details["agreement"] == agreement
    assert [len(numbers) for numbers in result.details["chains"]] == lengths
    assert sorted(number for numbers in result.details["chains"] for number in numbers) == list(range(16))
    assert len(result.candidates) == len(backend.calls) == 16


def test_the_best_of_each_chain_meet():
    # Two chains of 8: the answers of the second are revised worse and worse.
    [result] = parallel_sequential(
        chain("7", "7.0", "9", "3", "9", "2"), ONE, SamplingParams(n=6), num_first=2, verifier=value
    )
    assert result.details["chains"] == [[0, 1, 2], [3, 4, 5]]
    assert [candidate.text for candidate in result.candidates] == ["7", "9", "9", "7.0", "3", "2"]
    assert result.answer == "9"
    [majority] = parallel_sequential(chain("7", "7.0", "9", "7", "9", "7"), ONE, SamplingParams(n=6), num_first=2)
    assert majority.answer == "9"  # a tie between the chains goes to the first


STRATEGIES = {
    "self-consistency": self_consistency,
    "best-of-n": lambda *args, **options: best_of_n(*args, verifier=noisy_oracle(0.5), **options),
    "revision": sequential_revision,
    "both": parallel_sequential,
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


@strategies
def test_every_token_is_counted(strategy):
    backend = toy_backend()
    results = strategy(backend, problems(3), SamplingParams(n=9, temperature=1.0))
    for i, result in enumerate(results):
        mine = [call for call in backend.calls if call[0][-1]["content"].startswith(f"question {i}")]
        assert len(mine) == len(result.candidates)
        assert result.usage.completion_tokens == sum(candidate.num_tokens for candidate in result.candidates)
        assert result.usage.thinking_tokens == sum(candidate.num_reasoning_tokens for candidate in result.candidates)
        assert result.usage.prompt_tokens == sum(candidate.num_prompt_tokens for candidate in result.candidates)
        assert result.usage.calls > 0
        assert result.usage.seconds > 0
        assert result.usage.verifier_tokens == 0


class CountingVerifier:
    num_tokens = 100  # of an earlier search

    def __call__(self, messages, texts):
        self.num_tokens += sum(map(len, texts))
        return [0.5] * len(texts)


def test_verifier_tokens_are_those_of_each_problem():
    results = best_of_n(saying("7", "12"), problems(2), SamplingParams(n=2), verifier=CountingVerifier())
    assert [result.usage.verifier_tokens for result in results] == [3, 3]


@strategies
def test_a_viewer_sees_samples_and_results(strategy):
    events = []
    results = strategy(toy_backend(), problems(2), SamplingParams(n=4), on_event=events.append)
    for i, result in enumerate(results):
        seen = [c for e in events if e["type"] == "samples" and e["problem"] == i for c in e["candidates"]]
        assert sorted(map(id, seen)) == sorted(map(id, result.candidates))
        assert [e["result"] for e in events if e["type"] == "result" and e["problem"] == i] == [result]


@strategies
@pytest.mark.parametrize("calls", [0, 1])
def test_a_search_that_is_stopped_gives_what_there_is(strategy, calls):
    backend = toy_backend()
    results = strategy(backend, problems(2), SamplingParams(n=9), stop=lambda: len(backend.calls) > calls - 1)
    assert [len(result.candidates) > 0 for result in results] == [calls > 0] * 2
    assert all((result.candidate is None) == (not calls) for result in results)


@strategies
def test_no_problems_no_results(strategy):
    assert strategy(toy_backend(), [], SamplingParams(n=4)) == []


@strategies
def test_messages_are_problems_too(strategy):
    [result] = strategy(toy_backend(), [problem("question")["prompt"]], SamplingParams(n=4))
    assert result.answer is not None


def test_more_samples_are_right_more_often_and_a_good_verifier_helps():
    tasks, params = problems(60), SamplingParams(n=16)
    once = accuracy(self_consistency(toy_backend(), tasks, SamplingParams(n=1)))
    vote = accuracy(self_consistency(toy_backend(), tasks, params, confidence=None))
    early = accuracy(self_consistency(toy_backend(), tasks, params))
    best = accuracy(best_of_n(toy_backend(), tasks, params, verifier=noisy_oracle(1.0)))
    assert once < 0.5 < 0.6 < vote < best
    assert abs(early - vote) <= 0.035
    print(f"once {once:.2f}, vote {vote:.2f}, early {early:.2f}, best {best:.2f}")


class SeedsSeen(ScriptedBackend):
    def __init__(self):
        super().__init__(lambda messages, prefix, number: str(number % 2))
        self.seeds = []

    def extend(self, prompts, prefixes, params, **chat_template_kwargs):
        self.seeds += range(params.seed, params.seed + params.n)
        self.kwargs = chat_template_kwargs
        return super().extend(prompts, prefixes, params, **chat_template_kwargs)


def test_no_two_samples_of_a_problem_get_the_same_seed():
    backend = SeedsSeen()
    self_consistency(backend, ONE, SamplingParams(n=16, seed=3))
    assert len(backend.seeds) == len(set(backend.seeds)) == len(backend.calls) > 4


def test_template_arguments_reach_the_backend():
    backend = SeedsSeen()
    best_of_n(
        backend, ONE, SamplingParams(n=2, seed=0), verifier=value, chat_template_kwargs={"enable_thinking": False}
    )
    assert backend.kwargs == {"enable_thinking": False}


MISTAKES = {
    "a row without prompt": (
        lambda: self_consistency(saying("7"), [{"question": "3+4?"}], SamplingParams(n=2)),
        r"`problems\[0\]` must be messages, or a row with a `prompt`, got {'question': '3\+4\?'}",
    ),
    "a text as problem": (
        lambda: self_consistency(saying("7"), ["3+4?"], SamplingParams(n=2)),
        r"`problems\[0\]` must be messages, or a row with a `prompt`",
    ),
    "confidence above 1": (
        lambda: self_consistency(saying("7"), ONE, SamplingParams(n=2), confidence=95),
        r"`confidence` must be in \(0, 1\], got 95",
    ),
    "a score that is no number": (
        lambda: best_of_n(saying("7"), ONE, SamplingParams(n=1), verifier=lambda _, texts: [math.nan]),
        "`verifier` must give finite scores",
    ),
    "an unknown way to select": (
        lambda: sequential_revision(saying("7"), ONE, SamplingParams(n=2), select="first"),
        r"`select` must be one of \['majority', 'verifier', 'last'\], .* got 'first'",
    ),
    "a verifier that is missing": (
        lambda: sequential_revision(saying("7"), ONE, SamplingParams(n=2), select="verifier"),
        "`verifier` be given with 'verifier' and with no other, got 'verifier' and None",
    ),
    "a verifier that would not be asked": (
        lambda: sequential_revision(saying("7"), ONE, SamplingParams(n=2), verifier=value),
        "`verifier` be given with 'verifier' and with no other, got 'majority'",
    ),
    "nothing to look at": (
        lambda: sequential_revision(saying("7"), ONE, SamplingParams(n=2), keep_last=0),
        "`keep_last` must be at least 1, got 0",
    ),
    "more first answers than answers": (
        lambda: parallel_sequential(saying("7"), ONE, SamplingParams(n=4), num_first=5),
        "`num_first` must be from 1 to `params.n`, 4, or None, got 5",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_searched_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def thinker():
    return TransformersBackend(*load_tiny("thinker"))


@pytest.mark.slow
def test_the_embedded_model_votes(thinker):
    row = {"prompt": [{"role": "user", "content": "12*13=?"}], "solution": "156"}
    params = SamplingParams(n=4, seed=0, max_tokens=300)
    [result] = self_consistency(thinker, [row], params)
    assert result.answer == "156"
    assert result.usage.prompt_tokens > 0
    assert result.usage.completion_tokens > result.usage.thinking_tokens > 0
