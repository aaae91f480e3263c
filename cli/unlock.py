"""`wsi unlock`."""

from pathlib import Path

import rich_click as click

from wsi_pipeline.core.errors import EnvironmentFault

from .main import leave, printable
from .run_file import ConfigCommand


@click.command(cls=ConfigCommand)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH…")
@click.option(
    "--force",
    is_flag=True,
    help="Also those that a process on another machine seems to hold; see that it has ended first.",
)
def unlock(paths: tuple[Path, ...], force: bool) -> None:
    """Remove the locks of dead runs at or below PATH, and say who holds the others.

    A run that dies lets go of its locks by itself; this is for shared drives that have not noticed.
    A lock of a process that lives on this machine is never removed. Exit code 5 where locks are
    left.
    """
    from wsi_pipeline.runs.clean import unlock as remove_locks

    locks = remove_locks(paths, force)
    for lock in locks:
        held_by = f"held by {lock.owner}; wait for it or stop it"
        said = held_by if lock.is_held else f"unlocked; its owner was {lock.owner}"
        click.echo(printable(f"{lock.target}: {said}"))
    held = sum(lock.is_held for lock in locks)
    click.echo(f"{len(locks)} locks = removed {len(locks) - held} + held {held}")
    leave(EnvironmentFault.exit_code if held else 0)
