import random
from dataclasses import replace
from itertools import pairwise

import pytest
from toy_world import DEPTH, GOLD, accuracy, noisy_oracle, problem, problems, toy_backend

from think_tools.backends import SamplingParams, ScriptedBackend, TransformersBackend
from think_tools.data import journey, prepare_sft, to_preference
from think_tools.search import beam_search, best_of_n, dvts, mcts
from think_tools.tiny import load_tiny

PARAMS = SamplingParams(n=8, max_tokens=500)
ORACLE = noisy_oracle(0.0)
STRATEGIES = {
    "beam search": lambda *args, **options: beam_search(*args, **{"verifier": ORACLE, "width": 2, **options}),
    "DVTS": lambda *args, **options: dvts(*args, **{"verifier": ORACLE, "num_trees": 2, **options}),
    "MCTS": lambda *args, **options: mcts(*args, **{"verifier": ORACLE, "num_simulations": 12, **options}),
    "MCTS with roll-outs": lambda *args, **options: mcts(
        *args, **{"num_simulations": 4, "num_rollouts": 2, **options}
    ),
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


class Spending(ScriptedBackend):
    """Notes what it has given for each problem."""

    def __init__(self, backend):
        super().__init__(backend.script)
        self.given = {}
        self.limits = []

    def extend(self, prompts, prefixes, params, **chat_template_kwargs):
        groups = super().extend(prompts, prefixes, params, **chat_template_kwargs)
        self.limits.append(params.max_tokens)
        for messages, group in zip(prompts, groups, strict=True):
            self.given.setdefault(messages[-1]["content"], []).extend(group)
        return groups


def nodes_of(tree):
    return [node for child in tree["children"] for node in (child, *nodes_of(child))]


@strategies
def test_every_token_is_counted_pruned_branches_too(strategy):
    backend = Spending(toy_backend())
    results = strategy(backend, problems(3), PARAMS)
    for i, result in enumerate(results):
        given = backend.given[f"question {i}"]
        assert result.usage.completion_tokens == sum(candidate.num_tokens for candidate in given)
        assert result.usage.thinking_tokens == sum(candidate.num_reasoning_tokens for candidate in given)
        assert result.usage.prompt_tokens == sum(candidate.num_prompt_tokens for candidate in given)
        assert result.usage.completion_tokens > sum(candidate.num_tokens for candidate in result.candidates[:1])


@strategies
def test_all_candidates_have_ended_and_are_whole_turns(strategy):
    for result in strategy(toy_backend(), problems(3), PARAMS):
        assert result.candidate in result.candidates
        assert len(result.scores) == len(result.candidates)
        for candidate in result.candidates:
            assert candidate.stop_reason is None
            assert candidate.finish_reason == "stop"
            assert candidate.trace.status == "complete"
            assert candidate.trace.answer in "012345"
            assert candidate.text.startswith("<think>")
            assert "".join(map(chr, candidate.token_ids)) == candidate.text + "\0"
            assert candidate.num_tokens == len(candidate.token_ids)
            assert candidate.num_reasoning_tokens == candidate.text.index("</think>") + len("</think>")


@strategies
def test_the_tree_has_every_path_in_its_steps(strategy):
    for result in strategy(toy_backend(), problems(2), PARAMS):
        texts = set()

        def walk(node, path, texts=texts):
            for child in node["children"]:
                assert "\n" not in child["text"]
                assert "think>" not in child["text"]
                assert "value" in child
                walk(child, [*path, child["text"]])
            if "answer" in node:
                assert node["correct"] is (node["answer"] == GOLD)
                steps = "\n\n".join(path)
                texts.add(f"<think>{steps}</think>{node['answer']}")

        walk(result.tree, [])
        assert texts
        assert {candidate.text for candidate in result.candidates} <= texts
        assert {path.count("\n\n") for path in texts} == {DEPTH - 1}


@strategies
def test_the_tree_makes_training_data(strategy):
    options = {"max_steps": 2} if strategy is STRATEGIES["MCTS"] else {}  # else it passes by all wrong leaves
    results = strategy(toy_backend(0.7), problems(4), PARAMS, **options)
    rows = [row for result in results for row in journey(result.tree)]
    assert rows
    for row in rows:
        assert row["completion"][0]["content"] == GOLD
        assert row["id"].startswith("question")
    pairs = to_preference([result.tree for result in results], "step")
    assert set(pairs["rule"]) == {"step"}
    assert all("wrong" not in row["chosen"][0]["reasoning_content"] for row in pairs)
    assert all("wrong" in row["rejected"][0]["reasoning_content"] for row in pairs)


def test_a_journey_goes_through_prepare_sft(tokenizer):
    [result] = beam_search(toy_backend(), [problem("question")], PARAMS, verifier=ORACLE, width=2)
    assert len(prepare_sft(journey(result.tree), tokenizer, max_length=4096)) >= 1


@strategies
def test_a_viewer_sees_every_node_once(strategy):
    events = []
    results = strategy(toy_backend(), problems(2), PARAMS, on_event=events.append)
    for i, result in enumerate(results):
        mine = [event for event in events if event["problem"] == i]
        seen = [node for event in mine if event["type"] == "steps" for node in event["nodes"]]
        assert {id(node) for node in seen} == {id(node) for node in nodes_of(result.tree)}
        assert mine[-1] == {"type": "result", "problem": i, "result": result}


@strategies
@pytest.mark.parametrize("most", [0, 1, 2, 3, 5])
def test_a_search_that_is_stopped_gives_what_there_is(strategy, most):
    backend = Spending(toy_backend())
    results = strategy(backend, problems(2), PARAMS, stop=lambda: len(backend.limits) >= most)
    assert len(backend.limits) <= most
    for result in results:
        assert bool(result.candidates) == (most > 0) == (result.candidate is not None)


@strategies
def test_the_limit_holds_for_the_whole_turn(strategy):
    def script(messages, prefix, number):
        letter = prefix[7:8] or "abcdefgh"[number % 8]
        return ("<think>" + f"{letter * 5}\n\n" * 20)[len(prefix) :]

    backend = Spending(ScriptedBackend(script))
    results = strategy(backend, problems(2), replace(PARAMS, max_tokens=40), **_flat(strategy))
    for result in results:
        for candidate in result.candidates:
            assert (candidate.finish_reason, candidate.num_tokens) == ("length", 40)
            assert candidate.stop_reason is None
        assert result.answer is None
        assert result.candidate is not None
    assert min(backend.limits) >= 1


@strategies
def test_steps_of_different_lengths_share_a_limit(strategy):
    """Steps are 1 to 30 characters, so that some turns are far ahead of others; all may use all of their limit."""

    def script(messages, prefix, number):
        rng = random.Random(f"{prefix}/{number}")
        return ("" if prefix else "<think>") + "x" * rng.randint(1, 30) + "\n\n" + "y" * 200

    for result in strategy(ScriptedBackend(script), problems(2), replace(PARAMS, max_tokens=100)):
        assert {candidate.num_tokens for candidate in result.candidates} == {100}


@strategies
def test_models_that_do_not_think_are_searched_too(strategy):
    def script(messages, prefix, number):
        steps = ["Add the ones." if not prefix else f"Take {number}.", f"The answer is {number % 2 * 7}."]
        return "\n\n".join(steps[prefix.count("\n\n") :])

    options = (
        {} if strategy is STRATEGIES["MCTS with roll-outs"] else {"verifier": lambda _, texts: [0.5] * len(texts)}
    )
    [result] = strategy(ScriptedBackend(script), [{**problem("question"), "solution": "7"}], PARAMS, **options)
    leaves = [node for node in nodes_of(result.tree) if "answer" in node]
    assert {node["answer"] for node in leaves} <= {"0", "7"}
    assert all(node["correct"] is (node["answer"] == "7") for node in leaves)
    assert result.tree["children"][0]["text"] == "Add the ones."


@strategies
def test_steps_end_where_the_parameters_say(strategy):
    def script(messages, prefix, number):
        text = f"<think><step>first {number if not prefix else ''}</step><step>second</step></think>7"
        return text if not prefix else text[text.index("<step>second") :] if "second" not in prefix else "</think>7"

    params = replace(PARAMS, stop=("</step>",))
    results = strategy(ScriptedBackend(script), problems(1), params, **_flat(strategy))
    assert all(node["text"].endswith("</step>") or "answer" in node for node in nodes_of(results[0].tree))
    assert results[0].answer == "7"


def _flat(strategy):
    """A verifier without opinion, for the strategies that have one."""
    return {} if strategy is STRATEGIES["MCTS with roll-outs"] else {"verifier": lambda _, texts: [0.5] * len(texts)}


def test_steps_that_come_twice_are_one():
    scored = []

    def verifier(messages, texts):
        scored.append(list(texts))
        return [0.5] * len(texts)

    backend = ScriptedBackend(lambda _, prefix, number: "</think>7" if prefix else f"<think>{number % 2}\n\n")
    [result] = beam_search(backend, problems(1), PARAMS, verifier=verifier, width=4)
    assert scored == [["<think>0\n\n", "<think>1\n\n"], ["<think>0\n\n</think>7", "<think>1\n\n</think>7"]]
    assert len(result.candidates) == 2


def test_a_turn_that_closes_after_a_blank_line_has_no_empty_step():
    text = "<think>3 and 4\n\n</think>\n\n7"
    backend = ScriptedBackend(lambda _, prefix, number: text[len(prefix) :])
    [result] = beam_search(
        backend, [{**problem("question"), "solution": "7"}], SamplingParams(n=1), verifier=lambda *_: [0.5], width=1
    )
    assert [node["text"] for node in nodes_of(result.tree)] == ["3 and 4", "7"]
    assert result.candidate.text == text


def test_dvts_keeps_the_best_of_each_tree():
    """The best two steps are dealt to one tree; a beam of two would keep both of them."""
    first = [0.9, 0.1, 0.8, 0.2]

    def verifier(messages, texts):
        return [first[int(text.removeprefix("<think>")[0])] for text in texts]

    backend = ScriptedBackend(lambda _, prefix, number: "</think>7" if prefix else f"<think>{number}\n\n")
    params = SamplingParams(n=4)
    [beam] = beam_search(backend, problems(1), params, verifier=verifier, width=2)
    [trees] = dvts(ScriptedBackend(backend.script), problems(1), params, verifier=verifier, num_trees=2)
    assert beam.scores == [0.9, 0.8]
    assert trees.scores == [0.9, 0.2]


def test_a_threshold_drops_what_is_below_but_never_all():
    backend = ScriptedBackend(lambda _, prefix, number: "</think>7" if prefix else f"<think>{number}\n\n")

    def verifier(messages, texts):
        return [int(text.removeprefix("<think>")[0]) / 10 for text in texts]

    params = SamplingParams(n=4)
    [some] = beam_search(backend, problems(1), params, verifier=verifier, width=4, threshold=0.2)
    [none] = beam_search(
        ScriptedBackend(backend.script), problems(1), params, verifier=verifier, width=4, threshold=0.9
    )
    assert some.scores == [0.3, 0.2]
    assert none.scores == [0.3]


def test_looking_ahead_finds_what_a_step_leads_to():
    """Step `a` looks better and leads nowhere."""

    def script(messages, prefix, number):
        if not prefix:
            return f"<think>{'ab'[number % 2]}\n\n"
        return "bad</think>8" if "a" in prefix.removeprefix("<think>") else "good</think>7"

    def verifier(messages, texts):
        return [1.0 if "good" in text else 0.0 if "bad" in text else 0.6 if "a\n" in text else 0.4 for text in texts]

    params = SamplingParams(n=2)
    [blind] = beam_search(ScriptedBackend(script), problems(1), params, verifier=verifier, width=1)
    backend = Spending(ScriptedBackend(script))
    [ahead] = beam_search(backend, problems(1), params, verifier=verifier, width=1, lookahead=1)
    assert (blind.answer, ahead.answer) == ("8", "7")
    assert ahead.usage.completion_tokens == sum(c.num_tokens for group in backend.given.values() for c in group)
    assert [node["text"] for node in ahead.tree["children"]] == ["a", "b"]


def test_the_last_step_runs_to_the_end():
    backend = toy_backend(depth=10)
    for strategy in STRATEGIES.values():
        for result in strategy(backend, problems(1), PARAMS, max_steps=2):
            assert all(candidate.trace.status == "complete" for candidate in result.candidates)


def test_weighted_adds_up_the_scores_of_equal_answers():
    answers = iter(["8", "7", "7"])
    backend = ScriptedBackend(lambda *_: f"<think>{(answer := next(answers))}</think>{answer}")
    verifier = lambda messages, texts: [0.9 if "8" in text else 0.5 + i / 100 for i, text in enumerate(texts)]  # noqa: E731
    [best] = beam_search(backend, problems(1), SamplingParams(n=3), verifier=verifier, width=3)
    assert (best.answer, len(best.candidates)) == ("8", 2)  # two of the three were the same text
    answers = iter(["8", "7 ", "7"])
    [weighted] = beam_search(backend, problems(1), SamplingParams(n=3), verifier=verifier, width=3, weighted=True)
    assert weighted.answer == "7"


def test_mcts_visits_what_promises_more():
    def script(messages, prefix, number):
        return f"{'ab'[number % 2]}\n\n" if prefix else f"<think>{'ab'[number % 2]}\n\n"

    def verifier(messages, texts):
        return [text.count("a") / max(1, text.count("a") + text.count("b")) for text in texts]

    backend = ScriptedBackend(lambda *args: script(*args) + "x" * 50)
    [result] = mcts(backend, problems(1), SamplingParams(n=2), verifier=verifier, num_simulations=20, max_steps=30)
    a, b = sorted(result.tree["children"], key=lambda node: node["text"])
    assert a["visits"] > b["visits"] >= 1
    assert a["value"] > b["value"]
    assert result.tree["visits"] in (40, 41)
    for node in [result.tree, *nodes_of(result.tree)]:
        if "visits" in node and node["children"] and "visits" in node["children"][0]:  # else the last run's
            below = sum(child["visits"] for child in node["children"])
            assert node["visits"] in (below, below + 1)


def test_mcts_explores_more_if_asked():
    def visits(exploration):
        [result] = mcts(
            toy_backend(), [problem("question 3")], SamplingParams(n=4), verifier=noisy_oracle(1.0),
            num_simulations=24, exploration=exploration,
        )  # fmt: skip
        return sorted((child["visits"] for child in result.tree["children"]), reverse=True)

    assert visits(0.0)[0] > visits(5.0)[0]


def test_roll_outs_value_steps_by_the_gold_answer():
    def script(messages, prefix, number):
        return (
            "</think>7" if "good" in prefix else "</think>8" if prefix else f"<think>{['good', 'bad'][number % 2]}\n\n"
        )

    row = {**problem("question"), "solution": "7"}
    [result] = mcts(ScriptedBackend(script), [row], SamplingParams(n=2), num_simulations=1, num_rollouts=3)
    good, bad = result.tree["children"]
    assert (good["value"], bad["value"]) == (1.0, 0.0)
    assert [leaf["correct"] for leaf in bad["children"]] == [False]  # three roll-outs that read alike
    assert [leaf["answer"] for leaf in good["children"]] == ["7"]
    assert result.answer == "7"
    assert len(result.candidates) == 6


def test_a_search_deeper_than_its_simulations_still_answers():
    [result] = mcts(toy_backend(depth=12), problems(1), SamplingParams(n=2), verifier=ORACLE, num_simulations=2)
    assert len(result.candidates) == 1
    assert result.answer in "012345"


def test_an_informed_search_beats_best_of_n_and_noise_hurts_it():
    tasks, params = problems(24), SamplingParams(n=8, max_tokens=500)
    scores = {}
    for noise in (0.5, 5.0):
        verifier = noisy_oracle(noise)
        scores[noise] = {
            "bon": accuracy(best_of_n(toy_backend(0.6), tasks, params, verifier=verifier)),
            "beam": accuracy(beam_search(toy_backend(0.6), tasks, params, verifier=verifier, width=2)),
            "dvts": accuracy(dvts(toy_backend(0.6), tasks, params, verifier=verifier, num_trees=2)),
            "mcts": accuracy(
                mcts(toy_backend(0.6), tasks, replace(params, n=4), verifier=verifier, num_simulations=20)
            ),
        }
    print(scores)
    for name in ("beam", "dvts", "mcts"):
        assert scores[0.5][name] > scores[0.5]["bon"] + 0.2
        assert scores[0.5][name] > scores[5.0][name] + 0.1


MISTAKES = {
    "a number that the width does not divide": (
        lambda: beam_search(toy_backend(), problems(1), SamplingParams(n=6), verifier=ORACLE, width=4),
        "`params.n` must be a multiple of `width` or `num_trees`, .* got n=6, 1 trees of width 4",
    ),
    "no room": (
        lambda: beam_search(toy_backend(), problems(1), PARAMS, verifier=ORACLE, width=0),
        "which like `max_steps` must be positive; got n=8, 1 trees of width 0",
    ),
    "no steps": (
        lambda: dvts(toy_backend(), problems(1), PARAMS, verifier=ORACLE, max_steps=0),
        "which like `max_steps` must be positive; got .* max_steps=0",
    ),
    "nothing to value steps by": (
        lambda: mcts(toy_backend(), problems(1), PARAMS),
        "`verifier` must be given, or a `solution` for every problem and `num_rollouts` above 0",
    ),
    "roll-outs without gold answers": (
        lambda: mcts(toy_backend(), [problem("question")["prompt"]], PARAMS, num_rollouts=2),
        "`verifier` must be given, or a `solution` for every problem",
    ),
    "no simulation": (
        lambda: mcts(toy_backend(), problems(1), PARAMS, verifier=ORACLE, num_simulations=0),
        "`num_simulations` and `max_steps` must be positive, .* got 0, 16, 0 and 0.2",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_searched_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_log_probabilities_of_a_turn_are_those_of_its_steps():
    backend = ScriptedBackend(
        lambda _, prefix, number: "bbbb</think>7" if prefix else "<think>aa\n\n",
        logprob=lambda text: -1.0 if "a" in text else -2.0,
    )
    params = SamplingParams(n=1, logprobs=True)
    [result] = beam_search(backend, problems(1), params, verifier=lambda _, texts: [0.5] * len(texts), width=1)
    first, rest = len("<think>aa\n\n"), len("bbbb</think>7\0")
    assert result.candidate.logprob == pytest.approx(-(first + 2 * rest) / (first + rest))
    assert result.candidate.answer_logprob == -2.0


@pytest.fixture(scope="module")
def thinker():
    return TransformersBackend(*load_tiny("thinker"))


def search_embedded(thinker, strategy, **options):
    row = {"prompt": [{"role": "user", "content": "12*13=?"}], "solution": "156"}
    [result] = strategy(thinker, [row], SamplingParams(n=2, seed=0, max_tokens=300), **options)
    assert result.answer == "156"
    texts = [node["text"] for node in nodes_of(result.tree)]
    assert len(texts) > 1
    assert all(before != after for before, after in pairwise(texts))
    assert "\n\n".join(texts[:2]) in result.candidate.text
    assert thinker.tokenizer.decode(result.candidate.token_ids).startswith(result.candidate.text)


def longer(messages, texts):
    return [len(text) / 1000 for text in texts]


@pytest.mark.slow
def test_the_embedded_model_is_searched(thinker):
    search_embedded(thinker, beam_search, verifier=longer, width=1)


@pytest.mark.slow
def test_the_embedded_model_is_searched_as_a_tree(thinker):
    search_embedded(thinker, dvts, verifier=longer, num_trees=2)
    search_embedded(thinker, mcts, num_simulations=2, num_rollouts=1)
