"""Failures for people: grouped by kind, or selected by a pattern. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from .console import Failures, StoredStory


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


def group(found: Iterable[Failures]) -> list[FailureGroup]:
    """Return the groups; the group with the newest story comes first."""
    groups: dict[tuple[str, str | None, str], list[StoredStory]] = {}
    for failures in found:
        for story in failures.stories:
            groups.setdefault((failures.queue, story.endpoint, story.kind), []).append(story)
    in_order = sorted(groups.items(), key=lambda item: item[1][0].buried_at, reverse=True)
    return [FailureGroup(*key, stories) for key, stories in in_order]


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
