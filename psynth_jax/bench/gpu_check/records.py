"""What a piece has found so far, in a file that is always whole, even if it is killed."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from psynth_jax.files import write_text


@dataclasses.dataclass
class Records:
    """path: of the JSON file.  ends: when the piece has to be done, as `time.monotonic` counts."""

    path: Path
    ends: float
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    def note(self, **facts: Any) -> None:
        """Write facts about the piece as a whole."""
        self.facts |= facts
        self.write()

    def add(self, record: dict[str, Any]) -> None:
        """Write one more thing that was found."""
        self.records.append(record)
        self.write()

    def has_time_for(self, what: str, seconds: float = 0.0) -> bool:
        """Say whether so many seconds are left; if not, write that this was skipped."""
        if time.monotonic() + seconds < self.ends:
            return True
        self.skipped.append(what)
        self.write()
        return False

    def write(self) -> None:
        """Write all of it: after a record was changed."""
        found = {**self.facts, "records": self.records, "skipped": self.skipped}
        write_text(self.path, json.dumps(found, indent=2) + "\n")
