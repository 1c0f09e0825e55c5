"""Failures as people deal with them: in groups of a kind, or chosen by a pattern. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from flask_backend.stories import Story

from .console import Failures, StoredStory


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The stories, newest first, of the jobs of a queue that were buried for the same: one endpoint, one kind."""

    queue: str
    endpoint: str | None
    kind: str
    stories: Sequence[StoredStory]

    @property
    def newest(self) -> Story:
        return self.stories[0].note


def group(found: Iterable[Failures]) -> list[FailureGroup]:
    """Return the groups, the one with the newest story first."""
    groups: dict[tuple[str, str | None, str], list[StoredStory]] = {}
    for failures in found:
        for story in failures.stories:
            groups.setdefault((failures.queue, story.note.endpoint, story.note.kind), []).append(story)
    in_order = sorted(groups.items(), key=lambda item: item[1][0].note.buried_at, reverse=True)
    return [FailureGroup(*key, stories) for key, stories in in_order]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which failures are meant: ``ENDPOINT``, ``ENDPOINT/EXCEPTION`` or ``/EXCEPTION``, with a shell's wildcards.

    For the exception its last part will do: ``ConnectionError`` covers ``requests.exceptions.ConnectionError``. What
    killed a worker counts as one: ``/SIGKILL``.
    """

    text: str

    def covers(self, note: Story) -> bool:
        endpoint = note.endpoint or ""
        if fnmatchcase(endpoint, self.text):  # without a slash, or with one of the endpoint's own
            return True
        wanted, slash, kind = self.text.rpartition("/")
        kinds = (note.kind, note.kind.rpartition(".")[2])
        return bool(
            slash and fnmatchcase(endpoint, wanted or "*") and any(fnmatchcase(each, kind or "*") for each in kinds)
        )

    def choose(self, failures: Failures) -> Failures:
        """Return those that it covers; of jobs without a story nothing is known."""
        chosen = [story for story in failures.stories if self.covers(story.note)]
        return replace(failures, stories=chosen, untold=0)
