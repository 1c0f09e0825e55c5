"""The connections between the supervisor and its children, and what each side closes after a fork."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from .descriptors import Descriptors
from .inbox import Inbox
from .loans import Loans
from .notify import Notifier


class Lifeline:
    """A pipe that is never written to: children see its end when its only writer, the supervisor, is gone."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()
        self._old_ones: list[int] = []  # for children that an earlier image of this process started

    @property
    def write_ends(self) -> list[int]:
        return [self._write_end, *self._old_ones]

    def keep(self, write_ends: Iterable[int]) -> None:
        self._old_ones += write_ends

    def let_go_of_old_ones(self) -> None:
        while self._old_ones:
            os.close(self._old_ones.pop())

    def close_in_child(self) -> None:
        self.let_go_of_old_ones()
        os.close(self._write_end)


@dataclass(frozen=True, slots=True)
class Links:
    """The connections between the supervisor and its children.

    ``service`` is the descriptor of the socket that a helper serves, if there is one.
    """

    inbox: Inbox
    lifeline: Lifeline
    loans: Loans
    notifier: Notifier
    descriptors: Descriptors
    service: int | None = None

    def close_in_child(self, *, keep_loan_of: int | None = None) -> None:
        """Close the supervisor's own descriptors, and restore the limit of descriptors that it raised."""
        self.inbox.close_in_child()
        self.lifeline.close_in_child()
        self.loans.close_in_child(keep=keep_loan_of)
        self.notifier.close_in_child()
        if self.service is not None:
            os.close(self.service)
        self.descriptors.put_back()
