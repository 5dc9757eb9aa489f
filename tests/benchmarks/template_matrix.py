r"""
What `check_template` finds in every chat template that TRL packages, a line each, and how long it takes (CPU time).

```
python -m tests.benchmarks.template_matrix
```

`inline` is what becomes of `<think>` in the content, `reads` whether `reasoning_content` is rendered in the last turn
(L) and in the history (H), `plain` what precedes an answer without reasoning, `prompt` how the prompt leaves the
reasoning by default and with thinking off. The first line includes what every first use pays for.
"""

import time
from collections import Counter

from tests.make_tokenizer import make_tokenizer, template_names
from think_tools.templates import check_template

WIDTHS = (23, 39, 9, 6, 21, 16, 19, 8)


def main() -> None:
    """Print the matrix."""
    header = ("template", "markers", "inline", "reads", "plain", "prompt", "end of turn", "ms")
    print(*(f"{text:{width}}" for text, width in zip(header, WIDTHS, strict=True)), "findings")
    for name in template_names():
        tokenizer = make_tokenizer(name)
        started = time.process_time()
        report = check_template(tokenizer)
        milliseconds = (time.process_time() - started) * 1000
        key = "reasoning_content"
        cells = (
            name,
            f"{report.format.open} {report.format.close}" if report.format else "-",
            report.inline["<think>"],
            ("L" if key in report.last_turn else "-") + ("H" if key in report.history else "-"),
            report.empty_block.replace("\n", "\\n") or "-",
            "/".join(report.prompts[mode] for mode in ("default", "off") if mode in report.prompts),
            report.end_of_turn or "-",
            f"{milliseconds:.0f}",
        )
        found = Counter(finding.severity for finding in report.findings)
        counts = ", ".join(f"{number} {severity}{'s' * (number > 1)}" for severity, number in found.items())
        print(*(f"{text:{width}}" for text, width in zip(cells, WIDTHS, strict=True)), counts or "none")


if __name__ == "__main__":
    main()
