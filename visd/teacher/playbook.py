"""A playbook: short lessons, each counted as it helps or harms, kept small by rules (RESD, arXiv 2605.12741).

The playbook is plain data. What goes into it is decided elsewhere; here are its rules of maintenance. With h helpful and d
harmful tags, an entry is unused when h + d = 0, and harmful when d >= h and d > 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SECTIONS = (
    "strategies and insights",
    "formulas and calculations",
    "code snippets and templates",
    "common mistakes",
    "problem-solving heuristics",
    "context clues and indicators",
    "others",
)
"""Where an entry may stand, in the order in which they are written."""

RULES = ("prioritized", "staleness", "reset")


@dataclass
class Entry:
    """One lesson."""

    id: str
    section: str  # one of SECTIONS
    text: str
    created: int  # context update in which it was added
    used: int  # context update in which it was last tagged; until then `created`
    helpful: int = 0
    harmful: int = 0

    @property
    def unused(self) -> bool:
        return self.helpful + self.harmful == 0

    @property
    def is_harmful(self) -> bool:
        return self.harmful > 0 and self.harmful >= self.helpful

    def line(self) -> str:
        return f"[{self.id}] helpful={self.helpful} harmful={self.harmful} :: {self.text}"


@dataclass
class Playbook:
    """All lessons, in the order in which they were added."""

    entries: list[Entry] = field(default_factory=list)
    updates: int = 0  # context updates so far
    cleaned: int = 0  # updates when it was last cleaned
    named: int = 0  # entries ever added, so that no id stands for two lessons

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, id_: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.id == id_), None)

    def add(self, section: str, text: str) -> Entry | None:
        """Append a lesson; None where the same text is there already."""
        if any(entry.text == text for entry in self.entries):
            return None
        if section not in SECTIONS:
            raise ValueError(f"{section!r} is no section of the playbook")
        self.named += 1
        entry = Entry(f"p{self.named:05d}", section, text, self.updates, self.updates)
        self.entries.append(entry)
        return entry

    def tag(self, id_: str, helpful: bool) -> bool:
        """Count that an entry helped or harmed; False where there is no such entry."""
        entry = self.find(id_)
        if entry is None:
            return False
        entry.helpful += helpful
        entry.harmful += not helpful
        entry.used = self.updates
        return True

    def due(self, every: int, most: int) -> bool:
        """Whether it is to be cleaned: every so many updates (0: never for that reason), or when it is too long."""
        return len(self) > most or (every > 0 and self.updates - self.cleaned >= every)

    def clean(self, rule: str, most: int, numbers: np.random.Generator) -> int:
        """Apply a rule; its bound is enforced only where there are more than `most` entries.

        Args:
            rule: prioritized drops harmful and unused entries, then random ones down to `most`; staleness drops harmful
                ones and unused ones older than one update, then those not used for longest; reset drops all.

        Returns:
            How many entries were dropped.
        """
        before, enforced = len(self), len(self) > most
        if rule == "reset":
            self.entries = []
        elif rule == "prioritized":
            self.entries = [e for e in self.entries if not e.is_harmful and not e.unused]
            if enforced and len(self) > most:
                kept = sorted(numbers.choice(len(self), size=most, replace=False).tolist())
                self.entries = [self.entries[i] for i in kept]
        elif rule == "staleness":
            self.entries = [
                e for e in self.entries if not e.is_harmful and not (e.unused and self.updates - e.created > 1)
            ]
            if enforced and len(self) > most:
                newest = sorted(self.entries, key=lambda e: (-e.used, -e.created, e.id))[:most]
                self.entries = [e for e in self.entries if e in newest]
        else:
            raise ValueError(f"rule {rule!r} is not one of {', '.join(RULES)}")
        self.cleaned = self.updates
        return before - len(self)

    def text(self) -> str:
        """As models and people read it: entries by section; "" where there is none."""
        parts = []
        for section in SECTIONS:
            lines = [entry.line() for entry in self.entries if entry.section == section]
            if lines:
                parts.append("\n".join([f"## {section}", *lines]))
        return "\n\n".join(parts)

    def counts(self) -> dict[str, float]:
        """Entries by how they did."""
        return {
            "entries": len(self),
            "unused": sum(e.unused for e in self.entries),
            "harmful": sum(e.is_harmful for e in self.entries),
            "proven": sum(e.helpful > 5 and e.harmful < 2 for e in self.entries),
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Playbook:
        entries: Iterable[Mapping[str, Any]] = state["entries"]
        return cls([Entry(**entry) for entry in entries], state["updates"], state["cleaned"], state["named"])
