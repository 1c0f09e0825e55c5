from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from flask_backend.system.exits import ExitCode

BUFFERED = os.environ | {"PYTHONUNBUFFERED": ""}
PROGRAM = """
import atexit, threading, time
from flask_backend.system.exits import leave

class Heap:
    def __del__(self):
        print("taken apart")

heap = Heap()
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.1), print("in a thread"))).start()
print("not flushed", end=", ")
leave(4)
"""


def test_leaving_does_everything_an_exit_does_except_freeing_objects():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=BUFFERED)
    assert result.stdout == "not flushed, in a thread\nat exit\n"
    assert result.returncode == ExitCode.GAVE_BACK
    assert not result.stderr


def test_leaving_ends_the_process_even_if_its_output_is_not_read():
    code = "import sys; from flask_backend.system.exits import leave; print('x'); leave(0)"
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, env=BUFFERED)
    os.close(write_end)
    assert result.returncode == ExitCode.OK
    assert not result.stderr


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=BUFFERED, timeout=20)


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "sys.exit()",
        "sys.exit(3)",
        "sys.exit(-1)",
        "sys.exit(259)",
        "sys.exit(True)",
        "sys.exit('at a loss')",
        "sys.exit(['at', 'a loss'])",
        "raise ValueError('no luck')",
        "raise KeyboardInterrupt",
        "sys.stderr = None; raise ValueError('no luck')",
        "sys.excepthook = lambda *_: print('hooked'); raise ValueError('no luck')",
        "sys.excepthook = None; raise ValueError('no luck')",
    ],
)
def test_a_process_ends_after_an_error_as_the_interpreter_ends_a_program(end):
    begin = "import atexit, sys\natexit.register(print, 'at exit')\nprint('printed')\n"
    ours = (
        f"{begin}from flask_backend.system.exits import leave_after\nerror = None\n"
        f"try:\n    {end}\nexcept BaseException as caught:\n    error = caught\nleave_after(error)"
    )
    result, wanted = run(ours), run(begin + end)
    assert (result.returncode, result.stdout) == (wanted.returncode, wanted.stdout)
    assert result.stderr.splitlines()[-1:] == wanted.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    ("hang", "named"),
    [
        (
            "threading.Thread(target=time.sleep, args=[60], name='prices').start()",
            "non-daemon threads before it exits: prices",
        ),
        ("atexit.register(time.sleep, 60)", "exit handlers (atexit)"),
    ],
)
def test_code_that_delays_the_end_is_named_and_then_cut(hang, named):
    begun = time.monotonic()
    result = run(
        "import atexit, threading, time\nfrom flask_backend.system.exits import leave\nprint('printed')\n"
        f"{hang}\nleave(4, 1.0)"
    )
    assert result.returncode == ExitCode.GAVE_BACK
    assert result.stdout == "printed\n"
    assert f"the process waits for {named}; in 0.5 s" in result.stderr
    assert time.monotonic() - begun < 15


def test_a_failing_cleanup_of_threads_costs_neither_the_exit_handlers_nor_the_status():
    result = run(
        "import atexit, threading\nfrom flask_backend.system.exits import leave\natexit.register(print, 'at exit')\n"
        "threading._register_atexit(lambda: 1 / 0)\nleave(4)"
    )
    assert result.returncode == ExitCode.GAVE_BACK
    assert result.stdout == "at exit\n"
    assert "ZeroDivisionError" in result.stderr
