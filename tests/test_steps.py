import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from think_tools import split_steps

CASES = {
    "blank lines": ["First.\n\n", "Second.\n\n\n", "Third."],
    "blank lines with spaces and carriage returns": ["First.\r\n \r\n", "Second."],
    "a single line break": ["First.\nStill first."],
    "white space around": ["\n\nFirst.\n\n", "Second.\n\n"],
    "nothing": [],
    "white space alone": [" \n\n \n\n"],
    "step tags": ["<step>First.</step>\n", "<step>Second.\n\nStill second.</step>"],
    "a single pair of step tags": ["<step>First.\n\nStill first.</step>"],
    "text around step tags": ["Well.\n", "<step>First.</step> ", "So 4."],
    "step tags that are never closed": ["<step>First. ", "<step>Second."],
    "empty step tags belong to the step before": ["<step>First.</step><step></step>\n", "<step>Second.</step>"],
    "headings": ["Let us see.\n\n", "Step 1: add.\n\n2 + 2\n", "Step 2: done."],
    "headings in Markdown": ["## Step 1\nadd\n\n", "**Step 2:** done\n", "- step 3"],
    "Chinese headings": ["步骤1：相加\n", "步骤 二：完成\n", "第三步，检查"],
    "a step named in a sentence": ["I skip step 2 here.\nThen I go on.\n\n", "Steps are done."],
    "blank lines in code": ["Run:\n\n", "```python\na = 1\n\nb = 2\n```\n\n", "Done."],
    "a heading and a tag in code": ["```\nStep 1\n<step>\n```\n\n", "Done."],
    "blank lines in code that was cut off": ["Run:\n\n", "~~~\na = 1\n\nb = 2\n\n"],
    "a fence of the other kind inside": ["```\n~~~\n\n```\n\n", "Done.\n\n", "~~~\n\n~~~"],
    "blank lines in display maths": ["So\n\n", "$$\n1\n\n2\n$$\n\n", "\\[\n3\n\n4\n\\]\n\n", "Done."],
    "dollars that open no formula": ["It costs $$5.\n\n", "Or more."],
    "a bracket that opens no formula": ["A \\[ b.\n\n", "$$\nx\n\ny\n$$\n\n", "Done."],
    "a line break in a matrix is no formula": ["a \\\\[2pt]\n\n", "b"],
}


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES)
def test_the_text_is_cut_into_these_steps(steps):
    assert split_steps("".join(steps)) == steps


PIECES = [
    "<step>",
    "</step>",
    "Step 1",
    "步骤2",
    "\n",
    "\n\n",
    " ",
    "```",
    "~~~",
    "$$",
    "\\[",
    "\\]",
    "a",
    "b c.",
    "\r",
]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_the_steps_are_the_text_again_and_none_is_empty(text):
    steps = split_steps(text)
    assert "".join(steps) == text
    if len(steps) > 1:
        assert all(step.replace("<step>", "").replace("</step>", "").strip() for step in steps)


def test_a_text_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match=r"`text` must be a string, got list: pass the reasoning"):
        split_steps(["a"])  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["<step></step>\n\n", "\\[", "$$ ", "\n```", "\n ", "# ", "Step 1\n", "a\n\n"])
def test_a_megabyte_takes_seconds_at_most(piece):
    text = piece * (1_000_000 // len(piece))
    begin = time.process_time()
    assert "".join(split_steps(text)) == text
    assert time.process_time() - begin < 5
