# /// script
# requires-python = ">=3.11"
# dependencies = ["think-tools"]
# ///
"""
Write the rows that `recipes/tiny/cold_start.yaml` trains on.

```
python recipes/tiny/cold_start_rows.py --output_file out/cold_start.jsonl
```
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import HfArgumentParser

from think_tools.tiny.cold_start import cold_start_rows


@dataclass
class RowArguments:
    """What may be changed; the defaults made the shipped adapter."""

    output_file: str = "out/cold_start.jsonl"
    num_rows: int = 40_000
    think_share: float = 0.35
    seed: int = 0


def main(args: RowArguments) -> None:
    Path(args.output_file).parent.mkdir(parents=True, exist_ok=True)
    rows = cold_start_rows(args.num_rows, args.seed, think_share=args.think_share)
    rows.to_json(args.output_file, force_ascii=False)


if __name__ == "__main__":
    main(*HfArgumentParser(RowArguments).parse_args_into_dataclasses())
