"""A pattern file of the shape of the reference's, with few words and all of them our own, in place of a checkout."""

from __future__ import annotations

from pathlib import Path

FILE = """
import dataclasses

@dataclasses.dataclass
class Few:
    inputs: str
    targets: str
    inputs_prefix: str = "I "
    targets_prefix: str = "T "
    x_y_delimiter: str = " / "
    example_separator: str = " || "

@dataclasses.dataclass
class Line:
    context: str
    ex_input: str
    ex_output: str
    testing_input: str
    testing_output: str
    example_separator: str = " ; "

FEWSHOT_PATTERNS = {
    "qa": [Few("{question}", "{answer}"), Few("{question}", "nothing")],
    "qa_w_option": [Few("{question} {options_}", "{option_answer}")],
    "qa_w_cot": [Few("{question}", "{cot} so {answer}")],
    "qa_w_option_w_cot": [Few("{question} {options_}", "{cot} so {option_answer}")],
    "numbered_questions": [Few("{context}:{numbered_questions}", "{numbered_answers}")],
    "next_turn_dialog": [Few("{dialog_}", "{answer}")],
}
INLINE_FEWSHOT_PATTERNS = {
    "explain_afterwards": [
        Line("{context} ", "{ex_input}", "={ex_output} for {ex_explanation}", "{input}", "={output}")
    ],
    "no_explicit_explain": [Line("{context} ", "{ex_input}", "={ex_output}", "{input}", "={output}")],
}
READ_START_STRING_CANDIDATES = ["see {context}"]
READ_END_STRING_CANDIDATES = [" "]
COMPRE_START_STRING_CANDIDATES = ["then"]
QA_START_STRING_CANDIDATES = ["told {QA_demos}"]
QA_END_STRING_CANDIDATES = [" "]
TEXT_START_STRING_CANDIDATES = ["of {context}"]
OPT_START_STRING_CANDIDATES = ["of:"]
DIALOG_START_STRING_CANDIDATES = ["talk:"]
UNANSWERABLE_OPTIONS = ["neither"]
OPT_ITEM_NAME_CANDIDATES = [[f" {x})" for x in range(26)]]
OPT_ITEM_END_STR_CANDIDATES = [[""] * 26]
QUESTION_ITEM_NAME_CANDIDATES = [[f" {x}." for x in range(26)]]
DIALOG_ITEM_NAME_CANDIDATES = [["U:", "V:"]]
DIALOG_ITEM_END_STR_CANDIDATES = [[" "]]
"""


def write(checkout: Path) -> Path:
    """The file, where it lies in a checkout."""
    file = checkout / "instruction_pretrain" / "utils" / "read_compre_pt.py"
    file.parent.mkdir(parents=True)
    file.write_text(FILE, encoding="utf-8")
    return file
