"""Networks of users: a function in a Python file, run only where the user names the file.

`FILE.py:FUNCTION` names it. A checkpoint that was trained with it records the file's text and its
SHA-256, to read and to compare; that text is never run.
"""

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wsi_pipeline.core.choices import CONFIG_JSON
from wsi_pipeline.core.errors import ConfigError, ModelError, one_line
from wsi_pipeline.core.json_io import read_bounded
from wsi_pipeline.models.choice import ExternalModelTerms

if TYPE_CHECKING:
    from torch import nn

NAME = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
MAX_BYTES = 1_000_000
CLASSES = 2


@dataclass(frozen=True, slots=True)
class OwnCode:
    """The bytes of a user's file, and the function in it that builds a network."""

    path: Path
    function: str
    source: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the architecture: the file's name and the function's."""
        return f"{self.path.name}:{self.function}"

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hex."""
        return hashlib.sha256(self.source).hexdigest()

    def to_json(self) -> dict[str, str]:
        """Return what a checkpoint records of it."""
        return {"sha256": self.sha256, "text": self.source.decode()}

    def build(self, side_px: int, options: Mapping[str, Any]) -> "nn.Module":
        """Run the file, and return what its function makes of `side_px`, 2 classes and `options`.

        Raises ModelError where the file or the function fails, or makes no torch.nn.Module.
        """
        # By the digest: two files of one name may be loaded in one process.
        module = ModuleType(f"wsi_own_{self.sha256[:16]}")
        module.__file__ = str(self.path)
        sys.modules[module.__name__] = module
        try:
            exec(compile(self.source, str(self.path), "exec"), module.__dict__)
            function = getattr(module, self.function, None)
            if not callable(function):
                raise ModelError(f"{self.path}: has no function {self.function}; name one of it")
            network = function(side_px, CLASSES, dict(options))
        except ModelError:
            raise
        except (Exception, SystemExit) as error:  # an exit would pass for success
            raise ModelError(
                f"{self.path}: {self.function} fails: {type(error).__name__}: {one_line(error)};"
                " correct the file"
            ) from error
        from torch import nn

        if not isinstance(network, nn.Module):
            made = type(network).__name__
            raise ModelError(f"{self.path}: {self.function} gives a {made}; return a nn.Module")
        return network


def is_own_code(name: str) -> bool:
    """Return whether an architecture is named as a function in a file."""
    return NAME.fullmatch(name) is not None


def read_code(name: str) -> OwnCode:
    """Read the file that `FILE.py:FUNCTION` names; nothing of it runs. Raises ModelError."""
    match = NAME.fullmatch(name)
    if match is None:
        raise ModelError(f"{name}: names no function of a file; give FILE.py:FUNCTION")
    path = Path(match[1])
    try:
        source = read_bounded(path.resolve(), MAX_BYTES)
        source.decode()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as Python ({one_line(error)})") from error
    return OwnCode(path.resolve(), match[2], source)


def trust_own(code: OwnCode | None) -> ExternalModelTerms:
    """Return the terms of a model whose network this process has built from the user's file."""
    if code is None:
        return ExternalModelTerms()
    return ExternalModelTerms(trust=f"sha256:{code.sha256}", code=f"{code.path}:{code.function}")


def take_own_code(
    path: Path, architecture: str, recorded: Mapping[str, Any] | None, terms: ExternalModelTerms
) -> OwnCode | None:
    """Return the code of a checkpoint's network where the user names and trusts it; None: no code.

    `recorded` is what the checkpoint's card says of its code.
    The file of the user, --trust-model and the checkpoint must have one digest. Raises ModelError
    where they have not or one is missing, and ConfigError for terms that the checkpoint does not
    need; nothing of the file has run then.
    """
    if recorded is None:
        if terms != ExternalModelTerms():
            raise ConfigError(
                f"{path}: holds no {CONFIG_JSON} and no code of its maker; leave out --trust-model,"
                " --positive-class and --arch, which are for such models only"
            )
        return None
    if terms.positive_class is not None:
        raise ConfigError(f"{path}: names its positive class itself; leave out --positive-class")
    function = architecture.rpartition(":")[2]
    wanted = f"sha256:{recorded.get('sha256')}"
    if terms.code is None or terms.trust is None:
        raise ModelError(
            f"{path}: its network is built by code of its maker, {architecture}, which would"
            f" run with your rights; if you trust it, add --arch FILE.py:{function} --trust-model"
            f" {wanted}; `wsi model info --json` shows the code"
        )
    code, trust = read_code(terms.code), terms.trust.strip().lower()
    found = f"sha256:{code.sha256}"
    if code.function != function:
        raise ModelError(f"{path}: was trained with the function {function}, not {code.function}")
    if not found == trust == wanted:
        raise ModelError(
            f"{code.path}: has the digest {found}, --trust-model says {trust[:80]}, and {path} was"
            f" trained with {wanted}; all three must be the same"
        )
    return code
