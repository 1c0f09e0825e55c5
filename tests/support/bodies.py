"""Bodies of jobs as any program may put them.

Each is made from a seed and its number alone, so that it can be made again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any

from flask_backend.message import MAX_DEPTH

TASKS = "bodies/tasks"
INBOX = "bodies/inbox"
MAX_SIZE = 65_535  # bytes, beanstalkd's own limit
_MAX_DIGITS = 4_300  # of an integer, Python's own limit

# What a body would do if anything executed it. The command creates a file in the working folder.
MARKER = "executed-by-a-body"
_TOUCH = f"touch {MARKER}"
_FORGED = "2026-01-01 00:00:00,000 CRITICAL [1] flask_backend.supervisor: all workers are gone"
_FORGED_JSON = json.dumps({"time": "2026-01-01T00:00:00.000Z", "level": "CRITICAL", "logger": "forged", "pid": 1})
_UNSAFE = f"\x1b[2J\x07\r\n{_FORGED}\n{_FORGED_JSON}\n\x00\x7f\x9b31m\x85\u2028\u202e\u2066\ud800 日本 😀"

TEXTS = [
    *("", " ", "a", "äöü ✗ 日本 😀", _UNSAFE, f"x\n{_FORGED}", f"x\r{_FORGED_JSON}\n", "\n" * 50, "\x00", "\ud83d"),
    *(f"$({_TOUCH})", f"`{_TOUCH}`", f"; {_TOUCH} #", f"| {_TOUCH}", f"__import__('os').system('{_TOUCH}')"),
    *("{{7*7}}", "{0.__class__.__init__.__globals__}", "%(message)s %n %s %d", "${jndi:ldap://127.0.0.1/a}", "%"),
    *("../../etc/passwd", "'; DROP TABLE jobs; --", "<script>alert(1)</script>", "\r\ndelete 1\r\n", "\\", '"', "\\u"),
    *("__proto__", "constructor", "__class__", "__reduce__", "NaN", "null", "-0", "1e999", "١٢٣", "²", "😀" * 200),
]
NAMES = [*TEXTS, "self", "args", "kwargs", "call", "handler", "endpoint", "headers", "id", "at", "cls", "a b", "0"]
ENDPOINTS = [
    *TEXTS,
    *(
        "os.system",
        "builtins.eval",
        "record.__globals__",
        "record ",
        " record",
        "RECORD",
        "rec\u043erd",
        "__init__",
        "hook",
    ),
    *("record\x00", "record\n", "flask_backend.cli.main", "http://127.0.0.1/x", "*", "x" * 50_000, "endpoint"),
]


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (_TOUCH,)


FOREIGN = [
    *(pickle.dumps(_Bomb(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
    *(b"!!python/object/apply:os.system [%b]" % _TOUCH.encode(), b"<?xml version='1.0'?><x>&e;</x>", b"\x80", b"\x93"),
    *(b"#!/bin/sh\n%b\n" % _TOUCH.encode(), b"import os; os.system('%b')" % _TOUCH.encode(), b"\x1f\x8b\x08\x00"),
    *(zlib.compress(b'{"endpoint": "record"}'), b"\xe3\x00\x00\x00", _UNSAFE.encode(errors="replace"), b"\r\n", b"---"),
]
PLAIN_OBJECTS = [
    *({"py/object": "os.system", "py/reduce": [_TOUCH]}, {"__class__": "os.system", "args": [_TOUCH]}),
    *({"$type": "System.Diagnostics.Process"}, {"__proto__": {"endpoint": "fail"}}, {"__reduce__": ["os.system"]}),
    {"pickle": base64.b64encode(FOREIGN[2]).decode()},
]


class Fate(Enum):
    """What becomes of a job."""

    DONE = "done"
    RETRIED = "delayed"
    BURIED = "buried"


@dataclass(frozen=True)
class Body:
    """``fate`` is unset where it is not certain; ``call`` is the digest of the call that has to be run, if any."""

    kind: str
    tube: str
    data: bytes
    fate: Fate | None
    call: str | None = None


def digest(endpoint: str, args: Any, kwargs: Any) -> str:
    """Return a fingerprint of a call, with all its values."""
    return hashlib.sha256(json.dumps([endpoint, list(args), kwargs]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Made:
    """A body for the tasks, and the call that it should be."""

    data: bytes
    fate: Fate | None
    args: Any = ()
    kwargs: Any = ()
    endpoint: str = "record"


def make(seed: int, number: int) -> Body:
    """Return one of all bodies. Two in three are for tasks, the others for the receiver, or for the failures tubes."""
    random = Random(f"{seed} {number}")
    if random.random() < 0.06:
        kind = "note in " + (tube := random.choice([TASKS, INBOX]))
        return Body(kind, f"{tube}.failures", _note(random), None)
    if random.random() < 0.3:
        return _for_receiver(random)
    kind = random.choice(list(_KINDS))
    made = _KINDS[kind](random)
    if len(made.data) > MAX_SIZE:
        return Body("cut at the limit", TASKS, made.data[:MAX_SIZE], None)
    call = digest(made.endpoint, made.args, dict(made.kwargs)) if made.fate is Fate.DONE else None
    return Body(kind, TASKS, made.data, made.fate, call)


def is_note_of_ours(body: bytes) -> bool:
    """Whether a reader of stories may take this body for a note of ours, and delete it."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("queue") in (TASKS, INBOX)


# -- values ------------------------------------------------------------------------------------------------------


def value(random: Random, depth: int = 3) -> Any:
    """Return any value that JSON can carry, a few levels deep."""
    if depth and random.random() < 0.3:
        size = random.choice([0, 1, 2, 3, 20])
        return [value(random, depth - 1) for _ in range(size)]
    if depth and random.random() < 0.3:
        return {name(random): value(random, depth - 1) for _ in range(random.choice([0, 1, 3]))}
    return random.choice(_LEAVES)(random)


def name(random: Random) -> str:
    return random.choice(NAMES)


def text(random: Random) -> str:
    if random.random() < 0.5:
        return random.choice(TEXTS)
    return "".join(chr(random.choice(_RANGES)(random)) for _ in range(random.choice([1, 5, 60])))


_RANGES: list[Callable[[Random], int]] = [
    lambda random: random.randrange(0x20),
    lambda random: random.randrange(0x20, 0x7F),
    lambda random: random.randrange(0x7F, 0x250),
    lambda random: random.randrange(0x2000, 0x2070),
    lambda random: random.randrange(0x110000),
]
_LEAVES: list[Callable[[Random], Any]] = [
    text,
    text,
    lambda random: random.choice([None, True, False, 0, -1, 2**31, 2**53 + 1, 2**64, -(2**200), 10**4299]),
    lambda random: random.choice([0.1, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")]),
    lambda random: random.randrange(-(10 ** random.randrange(1, 40)), 10**40),
    lambda random: random.choice(PLAIN_OBJECTS),
]


def _nested(depth: int, *, in_objects: bool) -> str:
    """Return JSON of so many levels."""
    if in_objects:
        return '{"":' * (depth - 1) + "{}" + "}" * (depth - 1)
    return "[" * depth + "]" * depth


def dumps(random: Random, value: Any) -> str:
    """Encode a value in one of the ways that JSON allows."""
    separators = random.choice([(",", ":"), (", ", ": "), (" ,\n\t", "\r\n:")])
    return json.dumps(value, ensure_ascii=not _is_utf8(value) or random.random() < 0.5, separators=separators)


def _is_utf8(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# -- calls -------------------------------------------------------------------------------------------------------


def _call(random: Random, endpoint: str, args: list[Any], kwargs: dict[str, Any], fate: Fate | None) -> _Made:
    parts: dict[str, Any] = {"endpoint": endpoint, "args": args, "kwargs": kwargs}
    parts |= {"headers": headers(random)} if random.random() < 0.7 else {}
    parts |= {name(random) + "?": value(random)} if random.random() < 0.2 else {}  # unknown parts are ignored
    shuffled = dict(random.sample(list(parts.items()), len(parts)))
    white = random.choice(["", "", "", " ", "\n\t\r "])
    return _Made(f"{white}{dumps(random, shuffled)}{white}".encode(), fate, args, kwargs, endpoint)


def headers(random: Random) -> dict[str, Any]:
    """Return headers, with forged ones: ``id`` and ``at`` of any type."""
    made = {key: value(random) for key in ("id", "at") if random.random() < 0.8}
    made |= {"at": random.choice([1e308, -1, 0, 2**33, True, "now", 1.8e9, 10**4000])} if random.random() < 0.3 else {}
    return made | ({name(random): value(random)} if random.random() < 0.3 else {})


def _args(random: Random) -> list[Any]:
    return [value(random) for _ in range(random.choice([0, 1, 2, 5, 40]))]


def _kwargs(random: Random) -> dict[str, Any]:
    return {name(random): value(random) for _ in range(random.choice([0, 1, 3, 30]))}


def _odd_call(random: Random) -> _Made:
    return _call(random, "record", _args(random), _kwargs(random), Fate.DONE)


def _failing_call(random: Random) -> _Made:
    endpoint, fate = random.choice([("fail", Fate.RETRIED), ("fail_for_good", Fate.BURIED), ("décide", Fate.BURIED)])
    return _call(random, endpoint, _args(random), _kwargs(random), fate)


def _other_arguments(random: Random) -> _Made:
    """A call of a task that takes exactly ``a``, and ``b`` by name."""
    args, kwargs = _args(random), _kwargs(random)
    kwargs.pop("a", None)
    if random.random() < 0.5:
        kwargs = {"b": value(random)}
    fits = len(args) == 1 and set(kwargs) == {"b"}
    return _call(random, "exact", args, kwargs, Fate.DONE if fits else Fate.RETRIED)


def _unknown_endpoint(random: Random) -> _Made:
    return _call(random, random.choice(ENDPOINTS), _args(random), _kwargs(random), Fate.RETRIED)


def _deep_call(random: Random) -> _Made:
    depth = random.choice([1, 10, 100, MAX_DEPTH - 3, MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH, 1_000, 30_000])
    inner = _nested(depth, in_objects=depth < 10_000 and random.random() < 0.5)
    body = f'{{"endpoint":"record","args":[{inner}]}}'.encode()
    if depth + 2 > MAX_DEPTH:
        return _Made(body, Fate.BURIED)
    return _Made(body, Fate.DONE, json.loads(f"[{inner}]"))


def _not_closed(random: Random) -> _Made:
    beginning = random.choice(['{"endpoint":"record","args":', "", '{"endpoint":', '"', "\\"])
    return _Made((beginning + random.choice("[{") * random.choice([1, 200, 300, 990, 60_000])).encode(), Fate.BURIED)


def _large_call(random: Random) -> _Made:
    """A call of up to the largest size that the server takes."""
    room = MAX_SIZE - len('{"endpoint":"record","args":[""]}')
    size = room if random.random() < 0.2 else int(2 ** random.uniform(0, 16))
    match random.randrange(3):
        case 0:
            args: list[Any] = [random.choice("x[{ ") * min(size, room)]
        case 1:
            args = [[0] * (min(size, room) // 2)]
        case _:
            args = [{str(each): each for each in range(min(size, room) // 16)}]
    return _Made(json.dumps({"endpoint": "record", "args": args}, separators=(",", ":")).encode(), Fate.DONE, args)


def _huge_number(random: Random) -> _Made:
    digits = random.choice([1, 20, 400, _MAX_DIGITS - 1, _MAX_DIGITS, _MAX_DIGITS + 1, 10_000, 60_000])
    written = random.choice(["", "-"]) + "7" * digits + random.choice(["", ".5", "e5", "E+400", "e-400"])
    is_whole = written.removeprefix("-").isdecimal()
    body = f'{{"endpoint":"record","args":[{written}]}}'.encode()
    if is_whole and digits > _MAX_DIGITS:
        return _Made(body, Fate.BURIED)
    return _Made(body, Fate.DONE, [int(written) if is_whole else float(written)])


def _duplicated_keys(random: Random) -> _Made:
    """Of equal keys the last one counts."""
    others = [f'"{part}":{dumps(random, value(random))}' for part in ("endpoint", "args", "kwargs", "headers")]
    args = _args(random)
    parts = [f'"endpoint":{dumps(random, "record")}', f'"args":{dumps(random, args)}', '"headers":{}']
    body = ",".join([*others, *parts, '"kwargs":{"a":1,"b":2,"a":3}'])
    return _Made(f"{{{body}}}".encode(), Fate.DONE, args, {"a": 3, "b": 2})


def _other_shape(random: Random) -> _Made:
    """Every shape in place of the envelope, and of each of its parts."""
    shape = random.choice([None, True, 0, 1.5, "record", [], ["record"], {}, {"": 1}, value(random)])
    part = random.choice(["", "endpoint", "args", "kwargs", "headers"])
    if not part:
        has_name = isinstance(shape, dict) and isinstance(shape.get("endpoint"), str)
        return _Made(dumps(random, shape).encode(), None if has_name else Fate.BURIED)
    call: dict[str, Any] = {"endpoint": "record", "args": [1], "kwargs": {"b": 2}, "headers": {"id": "3"}}
    call[part] = shape
    body = dumps(random, call).encode()
    fits = isinstance(shape, type({"endpoint": "", "args": [], "kwargs": {}, "headers": {}}[part]))
    if not fits:
        return _Made(body, Fate.BURIED)
    is_done = part != "endpoint" or shape == "record"
    return _Made(body, Fate.DONE if is_done else None, call["args"], call["kwargs"])


def _encoded(random: Random) -> _Made:
    """The right JSON in the wrong encoding."""
    right = json.dumps({"endpoint": "record", "args": ["grüßen", "日本"]}, ensure_ascii=False)
    latin = right.replace("日本", "é")
    bodies = [
        *(
            b"\xef\xbb\xbf" + right.encode(),
            right.encode("utf-16"),
            right.encode("utf-16-le"),
            right.encode("utf-16-be"),
        ),
        *(right.encode("utf-32"), latin.encode("latin-1"), latin.encode("cp1252"), right.encode("utf-7") + b"\xff"),
        *(
            right.replace("日", "\ud800").encode(errors="surrogatepass"),
            right.encode() + b"\xc3",
            b"\xff" + right.encode(),
        ),
        *(right.encode().replace(b"g", b"\xc0\xaf"), right.encode().replace(b"g", b"\xf5\x80\x80\x80")),
    ]
    return _Made(random.choice(bodies), Fate.BURIED)


def _nearly_json(random: Random) -> _Made:
    right = '{"endpoint":"record","args":[1]}'
    bodies = [
        *("", " ", right[:-1], right + right, right + "x", right.replace("]", ",]"), right.replace('"', "'")),
        *(right.replace("1", "01"), right.replace("1", "+1"), right.replace("1", ".5"), right.replace("1", "0x1")),
        *(right.replace("1", '"\n"'), right.replace("1", '"\x00"'), right.replace("1", r'"\x41"'), f"//\n{right}"),
        *(right.replace("1", r'"\u12"'), right.replace("1", "nan"), right.replace("1", "undefined"), right + "\x00"),
        *(f"\ufeff{right}", f"\x0c{right}", right.replace('"args"', "args"), f"({right})", right.replace("1", "1_0")),
    ]
    return _Made(random.choice(bodies).encode(), Fate.BURIED)


def _foreign(random: Random) -> _Made:
    return _Made(random.choice(FOREIGN), Fate.BURIED)


def _noise(random: Random) -> _Made:
    return _Made(b"\xff" + random.randbytes(int(2 ** random.uniform(0, 15))), Fate.BURIED)


def _changed(random: Random) -> _Made:
    """A valid call with some bytes changed, moved or left out."""
    body = bytearray(_odd_call(random).data)
    for _ in range(random.choice([1, 1, 3, 10])):
        place = random.randrange(len(body) + 1)
        match random.randrange(3):
            case 0:
                body[place : place + 1] = random.choice(
                    [b'"', b"\\", b"{", b"]", b"\x00", b"\xff", random.randbytes(1)]
                )
            case 1:
                del body[place : place + random.choice([1, 10])]
            case _:
                body[place:place] = body[: random.choice([1, 20])]
    return _Made(bytes(body), None)


_KINDS: dict[str, Callable[[Random], _Made]] = {
    "odd values": _odd_call,
    "failing task": _failing_call,
    "other arguments": _other_arguments,
    "unknown endpoint": _unknown_endpoint,
    "deep": _deep_call,
    "not closed": _not_closed,
    "large": _large_call,
    "huge numbers": _huge_number,
    "duplicated keys": _duplicated_keys,
    "other shapes": _other_shape,
    "other encodings": _encoded,
    "nearly JSON": _nearly_json,
    "foreign formats": _foreign,
    "noise": _noise,
    "changed bytes": _changed,
}


def _for_receiver(random: Random) -> Body:
    """A receiver takes any JSON: all of the above, and values that are no calls."""
    if random.random() < 0.4:
        message = value(random)
        body = dumps(random, message).encode()
        if len(body) <= MAX_SIZE:
            return Body("message", INBOX, body, Fate.DONE, digest("receive", [message], {}))
    made = _KINDS[random.choice(list(_KINDS))](random)
    is_json = made.fate in (Fate.DONE, Fate.RETRIED) and len(made.data) <= MAX_SIZE
    return Body("message like a call", INBOX, made.data[:MAX_SIZE], Fate.DONE if is_json else None)


# -- notes -------------------------------------------------------------------------------------------------------


def _note(random: Random) -> bytes:
    """A forged story of a failure: every field may have any value."""
    told: dict[str, Any] = {
        "job": random.randrange(1, 3_000), "queue": random.choice([TASKS, INBOX]), "reason": text(random),
        "buried_at": 1.8e9, "host": text(random), "pid": 1, "endpoint": text(random), "call": text(random),
        "exception": text(random), "message": text(random), "traceback": f"{text(random)}\n{text(random)}" * 20,
        "attempts": 1, "allowed": 1, "scheduled_at": 1.8e9, "ran_s": 0.5,
        "death": {"exit_signal": random.choice([9, 200, -1, "9", [1], None]), "exit_status": value(random)},
    }  # fmt: skip
    for key in random.sample(list(told), random.choice([0, 0, 1, 3, 16])):
        told[key] = random.choice(_ODD_FIELDS)(random)
    for key in random.sample(list(told), random.choice([0, 0, 1, 8])):
        del told[key]
    body = dumps(random, told).encode()[:MAX_SIZE]
    return (
        body if random.random() < 0.8 else random.choice([body[:-1], b"\xff" + body, b"[]", b"", _foreign(random).data])
    )


_ODD_FIELDS: list[Callable[[Random], Any]] = [
    value,
    lambda random: random.choice([0, -1, 2**64, 10**4000, 1e308, float("nan"), float("inf"), True]),
    lambda random: random.choice([{}, {"exit_signal": 10**4000}, {"lived_s": float("inf")}, {"task": [1]}]),
]
