"""The view of a scheduled task in an editor and a type checker. Checked by mypy --strict and basedpyright."""

from __future__ import annotations

from typing import Any, assert_type

from flask import Flask

from flask_backend import Backend, Job, Jobs

backend = Backend(Flask(__name__))


@backend.task("com.example/default")
def resize(name: str, width: int = 100, *, crop: bool = False) -> tuple[int, int]:
    return width, len(name) if crop else width


@backend.task("com.example/default")
async def fetch(url: str) -> bytes:
    return url.encode()


@backend.receiver("com.example/inbox")
def inbox(message: dict[str, Any]) -> None: ...


@backend.before_first_task("com.example/default")
def connect() -> None: ...


def schedule() -> None:
    assert_type(resize("cat.jpg"), Job)
    assert_type(resize("cat.jpg", 50, crop=True), Job)
    assert_type(resize.run("cat.jpg"), tuple[int, int])
    assert_type(fetch("https://example.com"), Job)
    assert_type(fetch.run("https://example.com"), bytes)
    assert_type(resize.map(["cat.jpg", "dog.jpg"]), Jobs)
    assert_type(backend.send("com.external/other", {"any": ["json"]}), Job)
    assert_type(resize("cat.jpg").id, int)
    assert_type(inbox({}), None)
    assert_type(connect(), None)


def mistakes() -> None:
    # Each line is wrong and must be refused: an unused ignore is itself an error.
    resize()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    resize(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    resize("cat.jpg", height=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    resize.run("cat.jpg", width="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def send_batch() -> None:
    with backend.batch(when="ended") as batch:
        assert_type(batch.on_complete(resize.options(priority=1), "cat.jpg", crop=True), None)
        assert_type(batch.add(resize, "cat.jpg", 50), Job)
        assert_type(batch.add(fetch, url="https://example.com"), Job)
        assert_type(batch.map(resize, ["cat.jpg"]), Jobs)
        batch.add(resize)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        batch.add(resize, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        batch.add(resize.options(delay=1), "cat.jpg", height=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
