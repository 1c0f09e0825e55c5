"""Failures for people: grouped by kind, counted by age, or selected by a pattern. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from .console import Failures
from .notes import StoredStory
from .recent import RecentStories


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The stories, newest first, of a queue's buried jobs with the same endpoint and the same kind of failure."""

    queue: str
    endpoint: str | None
    kind: str
    stories: Sequence[StoredStory]

    @property
    def newest(self) -> StoredStory:
        return self.stories[0]

    def covers(self, story: StoredStory) -> bool:
        """Whether a story of the queue belongs to this group."""
        return (story.endpoint, story.kind) == (self.endpoint, self.kind)


def group(found: Iterable[Failures]) -> list[FailureGroup]:
    """Return the groups; the group with the newest story comes first."""
    groups: dict[tuple[str, str | None, str], list[StoredStory]] = {}
    for failures in found:
        for story in failures.stories:
            groups.setdefault((failures.queue, story.endpoint, story.kind), []).append(story)
    in_order = sorted(groups.items(), key=lambda item: item[1][0].buried_at, reverse=True)
    return [FailureGroup(*key, stories) for key, stories in in_order]


def group_of(failures: Failures, endpoint: str | None, kind: str) -> FailureGroup:
    """Return one group of a queue's failures, which may be empty."""
    found = FailureGroup(failures.queue, endpoint, kind, ())
    return replace(found, stories=[story for story in failures.stories if found.covers(story)])


# The ages in seconds up to which failures are counted: an hour, a day, a week.
WINDOWS_S = (3600, 86_400, 604_800)


@dataclass(frozen=True, slots=True)
class Count:
    """A number of jobs; a lower bound unless it ``is_exact``."""

    number: int
    is_exact: bool = True

    def __str__(self) -> str:
        return f"{self.number:,}" if self.is_exact else f"≥ {self.number:,}"


@dataclass(frozen=True, slots=True)
class Aged:
    """A group of failures, with the numbers of those in each of :data:`WINDOWS_S`, and of all."""

    group: FailureGroup
    recent: Sequence[Count]
    all: Count


def count_by_age(recent: RecentStories, now: float, pattern: Pattern | None = None) -> list[Aged]:
    """Count the failures that match, by group; the group with the newest story comes first.

    Where stories were not read, the numbers are lower bounds, unless the window does not reach to the oldest story that
    was read: notes are read by the time of the burial, in whole seconds, the newest first.
    """
    found = [pattern.choose(each) if pattern is not None else each for each in recent.failures]
    is_partly_read = {each.queue for each in recent.failures if each.unread}
    reads_from = math.inf if recent.held or recent.oldest_at is None else int(recent.oldest_at) + 1
    aged: list[Aged] = []
    for each in group(found):
        is_whole = each.queue not in is_partly_read
        numbers = [
            Count(sum(story.buried_at >= now - age_s for story in each.stories), is_whole or now - age_s >= reads_from)
            for age_s in WINDOWS_S
        ]
        aged.append(Aged(each, numbers, Count(len(each.stories), is_whole)))
    return aged


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern for failures: ``ENDPOINT``, ``ENDPOINT/EXCEPTION`` or ``/EXCEPTION``, with shell wildcards.

    The last part of the exception's name is enough: ``ConnectionError`` covers
    ``requests.exceptions.ConnectionError``. A signal that killed a worker counts as an exception: ``/SIGKILL``.
    """

    text: str

    def covers(self, story: StoredStory) -> bool:
        endpoint = story.endpoint or ""
        if fnmatchcase(endpoint, self.text):  # without a slash, or with a slash in the endpoint itself
            return True
        wanted, slash, kind = self.text.rpartition("/")
        kinds = (story.kind, story.kind.rpartition(".")[2])
        return bool(
            slash and fnmatchcase(endpoint, wanted or "*") and any(fnmatchcase(each, kind or "*") for each in kinds)
        )

    def choose(self, failures: Failures) -> Failures:
        """Return the failures that match; jobs whose story is missing or unread never match."""
        chosen = [story for story in failures.stories if self.covers(story)]
        return replace(failures, stories=chosen, untold=0, unread=0)
