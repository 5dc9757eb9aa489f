"""The markers that model families write around their reasoning."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkFormat:
    """
    The markers around a model's reasoning and, for some families, around its answer.

    White space beside a marker belongs to nobody: markers are given without it, and parsing strips it.

    Args:
        name (`str`):
            Name of the format, its key in [`FORMATS`].
        open (`str`):
            Marker that begins the reasoning, such as `<think>`.
        close (`str`):
            Marker that ends the reasoning, such as `</think>`.
        answer_open (`str`, *optional*, defaults to `""`):
            Marker that begins the answer, such as `<answer>`. `""` means that the answer begins at once.
        answer_close (`str`, *optional*, defaults to `""`):
            Marker that ends the answer, such as `</answer>`. `""` means that the answer ends with the output.

    Raises:
        `ValueError`: If `open` or `close` is empty, if a marker begins or ends with white space, or if `open` and
            another marker contain one another, so that a text could not be read in one way only.

    Example:

    ```python
    >>> from think_tools import ThinkFormat, parse

    >>> parse("<plan>2+2</plan>4", fmt=ThinkFormat("plan", "<plan>", "</plan>")).reasoning
    '2+2'
    ```
    """

    name: str
    open: str
    close: str
    answer_open: str = ""
    answer_close: str = ""

    def __post_init__(self) -> None:
        others = {"close": self.close, "answer_open": self.answer_open, "answer_close": self.answer_close}
        for field, marker in {"open": self.open, **others}.items():
            if marker != marker.strip():
                raise ValueError(f"`{field}` must not begin or end with white space, got {marker!r}: strip it.")
            if not marker and field in ("open", "close"):
                raise ValueError(f"`{field}` must not be empty: pass the marker that the model writes.")
        for field, marker in others.items():
            if marker and (marker in self.open or self.open in marker):
                raise ValueError(
                    f"`open` and `{field}` must not contain one another, got {self.open!r} and {marker!r}."
                )


THINK = ThinkFormat("think", "<think>", "</think>")

# Families that write plain `<think>`. Their chat templates differ (who writes the opening marker, what ends a turn):
# the tokenizer's own template tells that, not the format.
_THINK_FAMILIES = (
    "deepseek_r1", "deepseek_r1_distill", "deepseek_v3_1", "deepseek_v3_2", "deepseek_v4", "exaone_4", "gigachat_3_5",
    "glm_4_5", "glm_4_6", "glm_4_7", "granite_4", "intern_s1", "kimi_k2", "laguna", "lfm2_5", "ling_3", "mimo",
    "minicpm_5", "minimax_m1", "minimax_m2", "nemotron_3", "nemotron_nano_v2", "olmo_3", "phi_4_reasoning", "qwen3",
    "qwen3_thinking", "qwen3_5", "qwen3_6", "qwen3_8", "qwq", "reka", "smollm3", "spark_2_5", "step_3", "step_3_5",
    "step_5",
)  # fmt: skip

_OTHERS = (
    ThinkFormat("thinking", "<thinking>", "</thinking>"),
    ThinkFormat("thought", "<thought>", "</thought>"),
    ThinkFormat("reasoning", "<reasoning>", "</reasoning>"),
    ThinkFormat("reason", "<reason>", "</reason>"),
    # DeepSeek-R1 section 2.2.1 (https://huggingface.co/papers/2501.12948): reasoning and answer both in tags.
    ThinkFormat("r1_zero", "<think>", "</think>", "<answer>", "</answer>"),
    ThinkFormat("hunyuan_a13b", "<think>", "</think>", "<answer>", "</answer>"),
    ThinkFormat("ernie_4_5", "<think>", "</think>", "<response>", "</response>"),
    ThinkFormat("granite_3_3", "<think>", "</think>", "<response>", "</response>"),
    ThinkFormat("exaone_deep", "<thought>", "</thought>"),
    ThinkFormat(
        "openthoughts",
        "<|begin_of_thought|>",
        "<|end_of_thought|>",
        "<|begin_of_solution|>",
        "<|end_of_solution|>",
    ),
    ThinkFormat("magistral", "[THINK]", "[/THINK]"),
    ThinkFormat("ministral_reasoning", "[THINK]", "[/THINK]"),
    ThinkFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ThinkFormat("hy3", "<think:opensource>", "</think:opensource>"),
    ThinkFormat("minimax_m3", "<mm:think>", "</mm:think>"),
    ThinkFormat("k2_horizon", "<ifm|think>", "</ifm|think>"),
    ThinkFormat("longcat", "<longcat_think>", "</longcat_think>"),
    ThinkFormat("kimi_vl", "◁think▷", "◁/think▷"),
    ThinkFormat(
        "kimi_k3",
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        "<|open|>response<|sep|>",
        "<|close|>response<|sep|>",
    ),
    ThinkFormat("plamo_3", "<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    ThinkFormat("gemma_4", "<|channel>thought", "<channel|>"),
    ThinkFormat("apertus", "<|inner_prefix|>", "<|inner_suffix|>"),
    ThinkFormat(
        "command_a_reasoning",
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
    ),
    ThinkFormat("cohere2_moe", "<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    # Channels, of which a pair describes the usual turn: one analysis message, then one final message. Decode with
    # `skip_special_tokens=False`, and read tool calls (commentary channel) with `tokenizer.parse_response`.
    ThinkFormat(
        "gpt_oss",
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
    ),
    ThinkFormat("solar_open", "<|think|>", "<|end|>", "<|begin|>assistant<|content|>", "<|end|>"),
    ThinkFormat(
        "inkling",
        "<|content_thinking|>",
        "<|end_message|>",
        "<|message_model|><|content_text|>",
        "<|end_message|>",
    ),
    ThinkFormat("muse", "to=self<|message|>", "<|eom|>", "<|start|>assistant to=user<|message|>", "<|eot|>"),
    # Prose instead of markers.
    ThinkFormat("granite_3_2", "Here is my thought process:", "Here is my response:"),
    ThinkFormat(
        "apriel",
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        answer_close="[END FINAL RESPONSE]",
    ),
)

# Name of a model family or a pair of tags -> its format. `FORMATS["qwen3"] is THINK`; pass any other pair as
# `ThinkFormat(...)`.
FORMATS: dict[str, ThinkFormat] = {
    THINK.name: THINK,
    **dict.fromkeys(_THINK_FAMILIES, THINK),
    **{fmt.name: fmt for fmt in _OTHERS},
}
