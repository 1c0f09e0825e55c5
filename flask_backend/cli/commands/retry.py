"""The command that runs buried or delayed jobs again."""

from __future__ import annotations

from typing import Any

import click

from flask_backend.cli.bulk_actions import Request, request_options, run_action


@click.command()
@request_options
@click.pass_context
def retry(ctx: click.Context, /, **options: Any) -> None:
    """Run buried or delayed jobs again, now, after confirmation.

    Choose them by ID, or all buried ones with --all. Each is kicked, as Beanstalkd calls it, and is ready at once; a
    buried job gets its full number of attempts again. Exit code 1 if one of the IDs could not be retried.
    """
    run_action(ctx, "retry", Request(**options))
