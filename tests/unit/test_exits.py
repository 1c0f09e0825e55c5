from __future__ import annotations

import os
import subprocess
import sys

from flask_backend.exits import ExitCode

BUFFERED = os.environ | {"PYTHONUNBUFFERED": ""}
PROGRAM = """
import atexit, threading, time
from flask_backend.exits import leave

class Heap:
    def __del__(self):
        print("taken apart")

heap = Heap()
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.1), print("in a thread"))).start()
print("not flushed", end=", ")
leave(4)
"""


def test_leaving_does_all_that_an_exit_does_but_take_the_objects_apart():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=BUFFERED)
    assert result.stdout == "not flushed, in a thread\nat exit\n"
    assert result.returncode == ExitCode.GAVE_BACK
    assert not result.stderr


def test_leaving_ends_the_process_though_nobody_reads_what_it_has_said():
    code = "import sys; from flask_backend.exits import leave; print('x'); leave(0)"
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, env=BUFFERED)
    os.close(write_end)
    assert result.returncode == ExitCode.OK
    assert not result.stderr
