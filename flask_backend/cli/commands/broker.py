"""The command that runs the embedded broker."""

from __future__ import annotations

import os
from pathlib import Path

import click

from flask_backend.cli.output import echo
from flask_backend.cli.parameters import env_option, parse_size
from flask_backend.system.streams import streams


@click.command()
@env_option(
    "BACKEND_BROKER_LISTEN",
    "--listen",
    default="127.0.0.1",
    metavar="HOST",
    help="The address to listen on. Any client that can connect has full control: the protocol has no passwords.",
)
@env_option(
    "BACKEND_BROKER_PORT",
    "--port",
    type=click.IntRange(0, 65535),
    default=11300,
    help="The port; 0 picks a free one and prints it.",
)
@env_option(
    "BACKEND_BROKER_FILE",
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the jobs in this SQLite database: they survive a restart. Default: in memory only.",
)
@env_option(
    "BACKEND_BROKER_MAX_JOB_SIZE",
    "--max-job-size",
    type=parse_size,
    default="65535",
    metavar="SIZE",
    help="The largest job to accept, in bytes or with a unit, such as 1M.",
)
def broker(listen: str, port: int, file: Path | None, max_job_size: int) -> None:
    """Run the embedded broker: for development, tests and small installs on one machine.

    It implements the protocol of Beanstalkd, the broker for production. TERM and INT stop it; with --file, it loses no
    acknowledged change, even if it is killed. After USR1 it refuses new jobs.
    """
    streams.expect_no_results()

    import asyncio

    from flask_backend.embedded import MAX_JOB_SIZE, Journal, Listen, serve

    if max_job_size > MAX_JOB_SIZE:
        raise click.BadParameter(
            f"expected at most {MAX_JOB_SIZE} bytes, got {max_job_size}", param_hint="--max-job-size"
        )
    place = f"in {file}" if file else "in memory"

    def announce(address: str) -> None:
        echo(
            f"broker at {address}, jobs {place}; for development and small installs; production runs beanstalkd",
            err=True,
        )
        for warning in journal.warnings if journal else ():
            echo(f"warning: {warning}", err=True)

    journal = Journal(file) if file else None
    try:
        asyncio.run(serve(Listen(listen, port, max_job_size), journal, announce))
    except OSError as error:
        # asyncio rewrites the system's messages, at length; errors of a name lookup have negative numbers.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise click.ClickException(
            f"cannot listen on {listen}, port {port}: {reason}; "
            "stop the program that listens there, or choose another --port or --listen"
        ) from error
    finally:
        if journal:
            journal.close()
