"""Keys: what a terminal sends for them, as names. Pure."""

from __future__ import annotations

import re

# The final byte of a sequence without a number, and the number of one that ends in a tilde: as xterm, rxvt, screen,
# tmux and the console of Linux send them.
_BY_FINAL = {"A": "up", "B": "down", "C": "right", "D": "left", "F": "end", "H": "home", "P": "F1", "Z": "back-tab"}
_BY_NUMBER = {1: "home", 4: "end", 5: "page-up", 6: "page-down", 7: "home", 8: "end", 11: "F1", 21: "F10"}
_PLAIN = {" ": "space"} | {
    "\t": "tab",
    "\r": "enter",
    "\n": "enter",
    "\x1b": "escape",
    "\x7f": "backspace",
    "\b": "backspace",
}
_SEQUENCE = re.compile(r"\x1b(\[\[?|O)([0-?]*)[ -/]*([@-Z\\-~])")
# The beginning of a sequence. Keys do not send longer ones.
_BEGINNING = re.compile(r"\x1b(?:\[\[?|O)?[0-?]{0,16}")


class KeyReader:
    """Divides what a terminal sends into keys. A sequence may arrive in parts."""

    def __init__(self) -> None:
        self._pending = ""

    @property
    def is_waiting(self) -> bool:
        """Whether a sequence has begun: it is the key Escape, unless more arrives at once."""
        return bool(self._pending)

    def feed(self, data: bytes) -> list[str]:
        """Return the names of the keys: a character, or a name such as ``page-up``. Unknown ones are left out."""
        text = self._pending + data.decode("latin-1")  # keys are ASCII; other characters are left out
        self._pending = ""
        keys: list[str | None] = []
        while text:
            if found := _SEQUENCE.match(text):
                keys.append(_name(*found.groups()))
            elif text[0] == "\x1b" and _BEGINNING.fullmatch(text):
                self._pending = text
                break
            if found is None:
                keys.append(_PLAIN.get(text[0], text[0] if " " < text[0] < "\x7f" else None))
            text = text[found.end() if found else 1 :]
        return [key for key in keys if key]

    def end(self) -> list[str]:
        """Return the keys of a sequence that has not gone on."""
        pending, self._pending = self._pending, ""
        return ["escape"] if pending else []


def _name(start: str, number: str, final: str) -> str | None:
    if start == "[[":  # function keys of the console of Linux
        return "F1" if final == "A" else None
    if final == "~":
        first = number.partition(";")[0]
        return _BY_NUMBER.get(int(first)) if first.isdecimal() else None
    return _BY_FINAL.get(final)
