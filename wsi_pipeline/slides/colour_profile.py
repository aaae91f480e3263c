"""Colour profiles of slides (ICC), and pixels in sRGB by them.

Scanners differ by their colours; some attach the profile that undoes the difference. LittleCMS
converts through Pillow, by the perceptual intent, which is what viewers show.
"""

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from wsi_pipeline.core.errors import SlideError

Conversion = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""RGB (h, w, 3) to RGB of the same shape."""
WITHOUT = "without a colour profile"
logger = logging.getLogger(__name__)
UNREADABLE = "unreadable"
MAX_NAME = 80
PROFILE_FAULTS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


class ColourProfile(NamedTuple):
    """Name and digest of a slide's ICC profile."""

    name: str
    """As the profile calls itself."""
    digest: str
    """SHA-256 of its bytes."""


def describe_profile(content: bytes | None) -> ColourProfile | None:
    """Return name and digest of a profile's bytes; None where there are none."""
    if not content:
        return None
    try:
        name = ImageCms.getProfileDescription(_open(content))
    except PROFILE_FAULTS:
        name = UNREADABLE
    shown = "".join(letter for letter in name if letter.isprintable()).strip()
    return ColourProfile(shown[:MAX_NAME] or "without a name", hashlib.sha256(content).hexdigest())


def warn_of_mixture(profiles: Iterable[str | None], icc: str) -> None:
    """Name the profiles of a run's slides where not all are alike; `icc` are the patches' colours.

    A profile is its name with the beginning of its digest; None: the slide has none.
    """
    counts = Counter(profiles)
    if len(counts) < 2:
        return
    kinds = sorted(counts.items(), key=lambda kind: (kind[0] is None, kind[0]))
    named = [
        f"{number} slide{'' if number == 1 else 's'} {f'with {name}' if name else WITHOUT}"
        for name, number in kinds
    ]
    logger.warning("colours differ between slides (patches are %s): %s", icc, ", ".join(named))


def make_conversion(path: Path, content: bytes) -> Conversion:
    """Return the conversion from a profile to sRGB. Raises SlideError where it is not of RGB."""
    try:
        transform = ImageCms.buildTransform(
            _open(content),
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
            flags=ImageCms.Flags.NOCACHE,  # one transform serves several threads
        )
    except PROFILE_FAULTS as error:
        raise SlideError(
            f"{path}: its colour profile cannot be used ({error}); leave --icc srgb out, or take"
            " the profile out of the file"
        ) from error

    def convert(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not pixels.size:
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        ImageCms.applyTransform(image, transform, inPlace=True)
        return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(pixels.shape)

    return convert


def _open(content: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(content))
