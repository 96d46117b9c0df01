"""How privileged text is laid out: one record a layout, chosen by `teacher.layout`.

`facts` is the layout of VISD (arXiv 2605.06094) and of every method whose paper gives none. The others follow the order
of the published prompts: `sdpo` of SDPO (arXiv 2601.20802, Table 2), `opsd` of OPSD (arXiv 2601.18734), `antisd` of AntiSD
(arXiv 2605.11609). All of them come after the question, in the user's turn, so that media and pixels stay the student's.
"""

from __future__ import annotations

from dataclasses import dataclass

HEADER = "Verified facts, hidden from the student."
LABELS = {
    "answer": "Answer:",
    "window": "Window:",
    "key_times": "Key times:",
    "feedback": "Feedback:",
    "reference": "Reference:",
    "peers": "Other answer:",
}
WRITTEN = {
    "playbook": "Lessons of earlier attempts:",
    "trial": "Your earlier attempt:",
    "reflection": "Reflection on your earlier attempt:",
}
"""Labels of blocks that are written while training (arXiv 2605.12741), the same in every layout."""


@dataclass(frozen=True)
class Layout:
    """Fixed texts around the blocks."""

    header: str  # line before the blocks; empty writes none
    labels: dict[str, str]  # what introduces each block
    separator: str  # between a label and its content
    gap: str  # before the header, each block and the closing
    closing: str = ""  # instruction after the blocks

    def write(self, blocks: list[tuple[str, str]]) -> str:
        """Blocks by name and content, in order; "" for none."""
        if not blocks:
            return ""
        labels = WRITTEN | self.labels
        parts = [f"{labels[name]}{self.separator}{content}" for name, content in blocks]
        return "".join(f"{self.gap}{part}" for part in (self.header, *parts, self.closing) if part)


LAYOUTS = {
    "facts": Layout(header=HEADER, labels=LABELS, separator=" ", gap="\n"),
    "sdpo": Layout(
        header="",
        labels=LABELS
        | {
            "peers": "Correct solution:",
            "reference": "Correct solution:",
            "feedback": "The following is feedback from your unsuccessful earlier attempt:",
        },
        separator="\n\n",
        gap="\n\n",
        closing="Correctly solve the original question.",
    ),
    "opsd": Layout(
        header="",
        labels=LABELS | {"reference": "Here is a reference solution to this problem:"},
        separator="\n\n",
        gap="\n\n",
        closing="Understand the reference solution, then derive the same answer step by step in your own words.",
    ),
    "antisd": Layout(
        header="",
        labels=LABELS
        | {
            "peers": "Your previous attempt:",
            "reference": "Your previous attempt:",
            "feedback": "Previous assessment:",
        },
        separator="\n\n",
        gap="\n\n",
        closing="Solve the problem step by step.",
    ),
}
