"""Names that nobody can turn back without a key: the same name gives the same pseudonym wherever the same key is used.

A plain hash would not do: whoever has a list of accession numbers computes the hash of each. So it
is an HMAC, under a key that lies in a file of its own, outside of every product.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wsi_pipeline.core.errors import ConfigError, EnvironmentFault

PREFIX = "anon-"
DIGITS = 16
"""64 bits: two of a million names share a pseudonym once in forty million times."""
MIN_KEY_BYTES = 16
MAX_KEY_BYTES = 4096
LINKS_SUFFIX = ".links"
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,7}")
"""What may be kept of a file's name: its format."""
KNOWN_SUFFIXES = frozenset(
    {
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".scn",
        ".bif",
        ".mrxs",
        ".svslide",
        ".dcm",
        ".czi",
        ".png",
        ".jpg",
        ".jpeg",
        ".bmp",
        ".geojson",
        ".json",
        ".xml",
    }
)


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """A key, and the private folder beside it in which files stand under their pseudonyms."""

    key: bytes = field(repr=False)
    links: Path
    """Folder of links, 0700: the only place that says which file is whose. A run reads slides through it, and knows no other name."""

    def name(self, name: str) -> str:
        """The pseudonym of a slide, a patient or a file, such as `anon-91f3a0c25b7d4e68`; however its letters were composed."""
        text = unicodedata.normalize("NFC", name).encode(errors="surrogateescape")
        return PREFIX + hmac.new(self.key, text, hashlib.sha256).hexdigest()[:DIGITS]

    def below(self, folder: str) -> "Pseudonyms":
        """The same key, with links in a folder of their own. Raises EnvironmentFault."""
        return Pseudonyms(self.key, _make_private(self.links / folder))

    def link(self, path: Path, stem: str) -> Path:
        """A link to a file or folder under another name, made now or by an earlier run. Raises EnvironmentFault."""
        suffix = path.suffix.lower()
        link = self.links / f"{stem}{suffix if suffix in KNOWN_SUFFIXES else ''}"
        target = path.absolute()
        try:
            if not (link.is_symlink() and link.readlink() == target):
                aside = link.with_name(f".{link.name}.{os.getpid()}")
                aside.unlink(missing_ok=True)
                aside.symlink_to(target)
                aside.replace(link)
        except OSError as error:
            raise EnvironmentFault(
                f"{self.links}: cannot be written ({error.strerror}); keep the key where you may"
                " write"
            ) from error
        return link


def open_pseudonyms(key_file: Path, out: Path | None = None) -> Pseudonyms:
    """The pseudonyms of a key; where there is no such file, a new key is made. `out` is where products go.

    Raises ConfigError where others than its owner may read the key, where it is too short, or lies
    among the products.
    """
    key_file = key_file.absolute()
    if out is not None and key_file.is_relative_to(out.absolute()):
        raise ConfigError(
            f"{key_file}: the key would lie among the products; keep it where those who get them"
            " cannot read it"
        )
    _make_key(key_file)
    key = _read_key(key_file)
    return Pseudonyms(key, _make_private(key_file.with_name(key_file.name + LINKS_SUFFIX)))


def _make_private(folder: Path) -> Path:
    """A folder that nobody but its owner may look into."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: cannot be made ({error.strerror}); keep the key where you may write"
        ) from error
    return folder


def _make_key(key_file: Path) -> None:
    """Put a new key there unless there is one: whole or not at all, and one only, however many runs begin at once."""
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


@dataclass(frozen=True, slots=True)
class Veil:
    """Takes names out of texts that were not written by us, such as what a library raised."""

    names: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What must not be read → what stands there instead."""

    def __call__(self, text: str) -> str:
        """The text without these names: longest first, whole words only."""
        for name in sorted(
            (name for name in self.names if name and name in text), key=len, reverse=True
        ):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", self.names[name], text)
        return text

    @property
    def is_on(self) -> bool:
        """Whether anything is hidden at all."""
        return bool(self.names)
