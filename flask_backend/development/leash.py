"""Runs a program that ends when ``flask-backend dev`` does, however that ends. A script, without imports of ours.

Its arguments are the pid of its parent, and the program with its own arguments. The request to the kernel stays valid
for the program that replaces this one. It works only on Linux: elsewhere a program outlives a dev that is killed.
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
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # dev uses it to reload, but nohup may have ignored it
    if os.getppid() == int(parent):  # otherwise it died before the request took effect
        os.execv(program, [program, *arguments])  # noqa: S606  # a shell is not wanted


if __name__ == "__main__":
    main()
