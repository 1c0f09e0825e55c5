"""Small objects that take up memory, like those of an app."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict


class Record(TypedDict):
    id: int
    name: str
    price: float
    tags: list[str]


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def make_records(megabytes: int) -> list[Record]:
    """Return records that grow the process by the given size: dicts, lists, strings and numbers."""
    records: list[Record] = []
    enough = rss_mb() + megabytes
    while megabytes and rss_mb() < enough:
        for number in range(len(records), len(records) + 1000):
            tags = [f"tag {number} {n}" for n in range(4)]
            records.append({"id": number, "name": f"name {number}", "price": number / 7, "tags": tags})
    return records


def read(records: list[Record]) -> float:
    """Look at every object: this writes its reference count, and so its page."""
    return sum(len(record["name"]) + record["price"] + sum(len(tag) for tag in record["tags"]) for record in records)
