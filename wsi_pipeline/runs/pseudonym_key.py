"""Pseudonyms and the secret key that they follow from.

They are an HMAC under a key that lies outside of every product: a plain hash would not do, for it
can be computed for every accession number.
"""

import hashlib
import hmac
import os
import secrets
import stat
import tempfile
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wsi_pipeline.core.errors import ConfigError

PREFIX = "anon-"
DIGITS = 16
"""64 bits: two of a million names share a pseudonym once in forty million times."""
MIN_KEY_BYTES = 16
MAX_KEY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """The pseudonyms of one key."""

    key: bytes = field(repr=False)

    def name(self, name: str) -> str:
        """Return the pseudonym of a name, such as `anon-91f3a0c25b7d4e68`.

        It is the same for composed and decomposed letters (Unicode NFC).
        """
        text = unicodedata.normalize("NFC", name).encode(errors="surrogateescape")
        return PREFIX + hmac.new(self.key, text, hashlib.sha256).hexdigest()[:DIGITS]


def open_key(key_file: Path, out: Path) -> Pseudonyms:
    """Return the pseudonyms of a key; where there is no such file, make a new key.

    Raises ConfigError where others than its owner may read the key, where it is too short, or where
    it lies in `out`, the folder of links.
    """
    key_file = key_file.absolute()
    if key_file.is_relative_to(out.absolute()):
        raise ConfigError(
            f"{key_file}: the key would lie in the folder of links; keep it in another folder"
        )
    _make_key(key_file)
    return Pseudonyms(_read_key(key_file))


def _make_key(key_file: Path) -> None:
    """Write a new key unless there is one: whole or not at all, and only one if runs compete."""
    if key_file.exists():
        return
    try:
        handle, aside = tempfile.mkstemp(dir=key_file.parent, prefix=f".{key_file.name}.")  # 0600
        try:
            with open(handle, "w") as stream:  # noqa: PTH123 - a handle, not a path
                stream.write(secrets.token_hex(32) + "\n")
                stream.flush()
                os.fsync(handle)
            with suppress(FileExistsError):
                os.link(aside, key_file)
        finally:
            Path(aside).unlink()
    except OSError as error:
        raise ConfigError(
            f"{key_file}: no key could be made there ({error.strerror}); name a file in a folder"
            " that is there"
        ) from error


def _read_key(key_file: Path) -> bytes:
    try:
        status = key_file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_KEY_BYTES:
            raise ConfigError(
                f"{key_file}: not a key file; name another, or one that does not exist yet"
            )
        if status.st_mode & 0o077:
            raise ConfigError(
                f"{key_file}: others may read this key; make it yours alone: chmod 600"
            )
        key = key_file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"{key_file}: cannot be read ({error.strerror}); name the key file"
        ) from error
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"{key_file}: a key of {len(key)} bytes can be guessed; it must have {MIN_KEY_BYTES} or"
            " more"
        )
    return key
