"""The one list of all that the embedded broker does otherwise than beanstalkd 1.13, each with its reason.

The tests of both servers leave these out; :mod:`test_differences` shows that each is there.
"""

from __future__ import annotations

DIFFERENCES = {
    "every job's time to run ends": (
        "beanstalkd misses some, while their holders say nothing: a fault, and workers are to be tested without it"
    ),
    "a put that ends in EXPECTED_CRLF uses up no id": (
        "an id is given when a job is stored; nobody is ever told the one that beanstalkd skips"
    ),
    "cmd-put counts only puts that came whole": (
        "as all other counters do; beanstalkd counts a put when it has read its numbers, whatever follows"
    ),
    "a carriage return in the middle of a line is no end of it": (
        "beanstalkd looks at the first one only, and then waits for more; ours finds the line's end: BAD_FORMAT"
    ),
    "a line of 225 bytes is too long like any longer one": (
        "its line break lies across the end of beanstalkd's buffer, which overlooks it and swallows the next line too"
    ),
    "of several clients that wait for a job the first to come is the first to get one": (
        "beanstalkd takes turns in an order that is not documented"
    ),
    "tubes are listed in the order in which they were first used": (
        "beanstalkd moves the last into the place of one that is gone; the protocol promises no order"
    ),
    "the statistics of the binlog are 0, and `os` names the broker": "there is no binlog, and it is not beanstalkd",
    "ids go on after any number of restarts": (
        "with an empty binlog beanstalkd starts at 1 again, and an old id means another job then"
    ),
    "after a restart a job has the counters and the priority of its last put, release, bury or kick": (
        "beanstalkd does not write releases without a delay, and counts a bury twice"
    ),
    "a full disk refuses puts while 16 MiB are left": (
        "so that jobs can be deleted and buried: beanstalkd keeps room for that in its binlog"
    ),
}
