"""What happened, as people read it, and the trace of everything, as a digest that two runs are compared by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable


class Story:
    """Events of one run in order: the told ones are kept as lines, all of them are in the digest."""

    def __init__(self, now_s: Callable[[], float], *, tell: Callable[[str], None] | None = None) -> None:
        self.lines: list[str] = []
        self._now_s = now_s
        self._tell = tell
        self._trace = hashlib.sha256()
        self.events = 0

    def note(self, text: str) -> None:
        """Something that belongs to the trace but not to the story (a block's hash)."""
        self.events += 1
        self._trace.update(f"{self._now_s():.6f} {text}\n".encode())

    def say(self, text: str) -> None:
        """Something that a person follows."""
        self.note(text)
        line = f"{self._now_s():9.3f} s  {text}"
        self.lines.append(line)
        if self._tell is not None:
            self._tell(line)

    @property
    def digest(self) -> str:
        """The trace so far: equal for equal plans, on every machine."""
        return self._trace.hexdigest()[:16]
