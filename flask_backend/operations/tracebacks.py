"""The traceback in a story, in parts for a page: the app's own frames, and those of libraries to fold. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FRAME = re.compile(r'  (?:[|+ ] *)?File "(?P<file>.*)", line \d+')
# Where the standard library and installed packages are.
_LIBRARY = re.compile(r"(?:^<|/(?:site|dist)-packages/|/lib(?:64)?/python3(?:\.\d+)?/)")


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive lines: frames of libraries if it ``is_library``, and how many frames."""

    text: str
    is_library: bool = False
    frames: int = 0


def fold(traceback: str) -> list[Part]:
    """Return the parts of a traceback, in its order. Other lines, as those of messages, stay with the app's own."""
    parts: list[Part] = []
    is_library = False
    lines: list[str] = []
    frames = 0

    def close() -> None:
        if lines:
            parts.append(Part("\n".join(lines), is_library, frames))

    for line in traceback.split("\n"):
        frame = _FRAME.match(line)
        is_source = line.startswith("    ") and frame is None and is_library
        belongs = bool(frame and _LIBRARY.search(frame["file"].replace("\\", "/"))) or is_source
        if belongs is not is_library:
            close()
            is_library, lines, frames = belongs, [], 0
        lines.append(line)
        frames += frame is not None
    close()
    return parts


def last_own_frame(traceback: str) -> str | None:
    """Return the app's own frame that is closest to the failure, with its source line."""
    lines = [line for part in fold(traceback) if not part.is_library for line in part.text.split("\n")]
    begins = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    if not begins:
        return None
    end = begins[-1] + 1
    while end < len(lines) and lines[end].startswith("    "):
        end += 1
    return "\n".join(lines[begins[-1] : end])
