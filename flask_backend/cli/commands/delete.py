"""The command that deletes jobs."""

from __future__ import annotations

from typing import Any

import click

from flask_backend.cli.bulk_actions import Request, request_options, run_action


@click.command()
@request_options
@click.pass_context
def delete(ctx: click.Context, /, **options: Any) -> None:
    """Delete jobs, after confirmation.

    Choose them by ID, in any state but reserved, or all buried ones with --all. This cannot be undone. Exit code 1 if
    one of the IDs could not be deleted.
    """
    run_action(ctx, "delete", Request(**options))
