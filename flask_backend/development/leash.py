"""Runs a program that ends when ``flask-backend dev`` does, however that ends. A script: it imports nothing of ours.

Its arguments are the pid of its parent, and the program with its own arguments. What is asked of the kernel here holds
for the program that takes this process over. Only Linux can do that: elsewhere a program outlives a dev that is killed.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    parent, program, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # dev reloads with it, though nohup may have it ignored
    if os.getppid() == int(parent):  # otherwise it died before we asked to be told
        os.execv(program, [program, *arguments])  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
