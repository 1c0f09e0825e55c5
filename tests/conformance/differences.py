"""All known differences between the embedded broker and beanstalkd 1.13, each with its reason.

The tests of both servers exclude these; :mod:`test_differences` shows that each one exists.
"""

from __future__ import annotations

DIFFERENCES = {
    "the TTR of every job expires": (
        "beanstalkd misses some while their holders send nothing: a bug that must not affect the tests of workers"
    ),
    "a put that ends in EXPECTED_CRLF uses up no id": (
        "the broker assigns an id when it stores a job; beanstalkd never reports the id that it skips"
    ),
    "cmd-put counts only complete puts": (
        "like all other counters; beanstalkd counts a put as soon as it has read its numbers"
    ),
    "a carriage return in the middle of a line does not end it": (
        "beanstalkd checks only the first one, and then waits for more; ours finds the line's end: BAD_FORMAT"
    ),
    "a line of 225 bytes is too long like any longer one": (
        "its line break crosses the end of beanstalkd's buffer, so beanstalkd misses it and swallows the next line too"
    ),
    "of several clients that wait for a job the first to arrive gets the first one": (
        "beanstalkd takes turns in an order that is not documented"
    ),
    "tubes are listed in the order in which they were first used": (
        "beanstalkd moves the last one into the place of a removed one; the protocol promises no order"
    ),
    "the statistics of the binlog are 0, and `os` names the broker": "it has no binlog, and it is not beanstalkd",
    "ids go on after any number of restarts": (
        "with an empty binlog beanstalkd restarts at 1, and an old id then means another job"
    ),
    "after a restart a job has the counters and the priority of its last put, release, bury or kick": (
        "beanstalkd does not write releases without a delay, and counts a bury twice"
    ),
    "a full disk refuses puts while 16 MiB are left": (
        "so that jobs can be deleted and buried: beanstalkd keeps room for that in its binlog"
    ),
}
