"""How many file descriptors a supervisor needs, and their limit, which it raises only for itself.

Tasks and the programs they start would inherit a raised limit, and programs that use ``select`` break above 1,023. So
each child restores the limit that the supervisor was started with.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .plan import MAX_CHILDREN

# Open in an image: four for the inbox, two each for lifeline, loans and scoreboard, one for the notifier.
_OF_AN_IMAGE = 11
# Open for a moment: a module being imported, a file in /proc, a log file being reopened.
_SPARE = 16
# Open in a child: five of the supervisor's, two pipes of its own, and its broker, which it looks up in a file.
_OF_A_CHILD = 12
# One for the socket that each child lends, and one for its predecessor's during a reload.
_PER_CHILD = 2

_UNLIMITED = 1 << 62


class TooFewDescriptorsError(Exception):
    """The system's limit of file descriptors is too low."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """``soft`` is the limit that the supervisor was started with; ``base`` counts the open ones that are not ours."""

    soft: int
    base: int

    @classmethod
    def count(cls, *, soft: int | None = None, ours: int = 0) -> Descriptors:
        """Count the descriptors that the app and our parent left open; after a reload ``ours`` of them are our own.

        ``soft`` is the limit of the first image.
        """
        return cls(_limits()[0] if soft is None else soft, _count_open() - ours)

    @property
    def most_children(self) -> int:
        """How many children the current limit allows, each with a predecessor."""
        return max(0, (_limits()[0] - self.needed(0)) // _PER_CHILD)

    def needed(self, children: int) -> int:
        """Return how many descriptors a supervisor needs during a reload."""
        return self.base + 2 * _OF_AN_IMAGE + _PER_CHILD * children + _SPARE

    def tell(self, children: int) -> str:
        """Describe how many descriptors this number of workers needs."""
        return (
            f"{_workers(children)} need at most {self.needed(children)} file descriptors; "
            f"the hard limit is {_limits()[1]}"
        )

    def check(self, children: int) -> None:
        """Raise :exc:`TooFewDescriptorsError` if the limit does not allow this many children."""
        needed, hard = self.needed(children), _limits()[1]
        if needed > hard:
            raise TooFewDescriptorsError(
                f"{_workers(children)} need {needed} file descriptors, two each during a reload, but the hard limit "
                f"is {hard}: raise it (`ulimit -Hn`, LimitNOFILE= of systemd), or run fewer workers"
            )
        if self.base + _OF_A_CHILD > self.soft:
            raise TooFewDescriptorsError(
                f"a worker needs {self.base + _OF_A_CHILD} file descriptors, but the soft limit is {self.soft}: "
                "raise it (`ulimit -Sn`, LimitNOFILE= of systemd)"
            )

    def check_reload(self, children: int, inherited: int) -> None:
        """Raise :exc:`TooFewDescriptorsError` if a new image would have too few, given those it inherits."""
        needed, limit = self.base + _OF_AN_IMAGE + children + inherited + _SPARE, _limits()[0]
        if needed > limit:
            raise TooFewDescriptorsError(
                f"it needs {needed} file descriptors while workers of the old code run, but the limit is {limit}: "
                "send HUP again when they have exited"
            )

    def raise_limit(self) -> None:
        """Raise the soft limit as far as the largest plan needs, at most to the hard limit."""
        soft, hard = _limits()
        wanted = min(hard, self.needed(MAX_CHILDREN))
        if wanted > soft:
            _set_limit(wanted)

    def put_back(self) -> None:
        """Restore the soft limit, for children."""
        _set_limit(self.soft)


def _workers(children: int) -> str:
    return "one worker and its supervisor" if children == 1 else f"{children} workers and their supervisor"


def _limits() -> tuple[int, int]:
    soft, hard = (_UNLIMITED if limit == resource.RLIM_INFINITY else limit for limit in _get())
    return soft, hard


def _get() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def _set_limit(soft: int) -> None:
    with suppress(OSError, ValueError):  # the system has a lower maximum
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.RLIM_INFINITY if soft >= _UNLIMITED else soft, _get()[1]))


def _count_open() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(list(Path(folder).iterdir())) - 1  # the listing itself holds one
    return 3
