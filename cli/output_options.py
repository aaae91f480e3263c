"""Options of commands that write: room on the disk, and the permissions of files."""

import math
import os
import re
from typing import Any

import click


class Bytes(click.ParamType[int]):
    """An amount of bytes, such as 500MB, 2.5GB or 0."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", value.strip())
        if match is None:
            self.fail(f"{value!r} is no amount of bytes; give one such as 500MB or 2GB", param, ctx)
        amount = float(match[1]) * 1000 ** " kMGT".index(match[2] or " ")
        if not math.isfinite(amount):
            self.fail(f"{value[:20]!r}… is more than any disk has; give an amount such as 500MB or 2GB", param, ctx)
        return int(amount)


min_free_option = click.option(
    "--min-free",
    type=Bytes(),
    default="1GB",
    metavar="SIZE",
    help="Bytes that stay free on the disk: no slide, and no block of one, is begun without room for it.",
)


def _set_permissions(context: click.Context, parameter: click.Parameter, value: str) -> None:
    """Set them for this process and those that it starts, until the command ends."""
    if not re.fullmatch(r"0?[0-7]{3}", value) or int(value, 8) & ~0o666 or int(value, 8) & 0o600 != 0o600:
        raise click.BadParameter(f"{value!r} is none that files can have here; give 600, 640, 660, 644 or 664", context, parameter)
    mode = int(value, 8)
    old = os.umask(0o777 & ~(mode | (mode & 0o444) >> 2))
    context.call_on_close(lambda: os.umask(old))


mode_option = click.option(
    "--mode",
    metavar="OCTAL",
    default="600",
    expose_value=False,
    callback=_set_permissions,
    help="Permissions of the files that are made; folders can also be entered by whoever may read.",
)
