"""Choice of the images of a TIFF that are pictures of a slide, by the kind of their pixels."""

from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.core.errors import SlideError
from wsi_pipeline.slides.tiff_structure import (
    BITS,
    COMPRESSION,
    PHOTOMETRIC,
    SAMPLE_FORMAT,
    SAMPLES,
    SUBFILE,
    BrokenTiff,
    TiffPage,
    TiffStructure,
    read_structure,
)

PAGE_VENDORS = ("aperio", "generic-tiff")
"""OpenSlide's formats whose levels are whole pages of tiles, without overlap or padding."""
PHOTOMETRICS = (0, 1, 2, 6)
"""Grey (either way), RGB, YCbCr."""
OTHER_PHOTOMETRICS = {3: "with a palette", 4: "of a mask", 5: "of CMYK", 8: "of CIELab"}
UNSIGNED = (1, 4)
"""Whole numbers, or not stated."""
REDUCED, MASK = 1, 4
"""Bits of the kind of image: it is a smaller one, or a mask, of another."""
DEEP_CODECS = (1, 5, 8, 32946, 50000)
"""Uncompressed, LZW, deflate and Zstandard: those whose 16 bits OpenSlide reads."""


LOSSY_CODECS = (6, 7, 33003, 33005, 50001, 50002, 52546)
"""JPEG (old and new), JPEG 2000 of Aperio, WebP, JPEG XL."""


def describe_other(page: TiffPage) -> str | None:
    """Return what an image's pixels are where they are no 8-bit grey or colours, else None."""
    bits = page.numbers.get(BITS, (1,))
    photometric = page.number(PHOTOMETRIC, 2)
    forms = page.numbers.get(SAMPLE_FORMAT, (1,))
    samples = page.number(SAMPLES, 1)
    if any(form not in UNSIGNED for form in forms):
        return "of floating point" if 3 in forms else "with a sign"
    if photometric in OTHER_PHOTOMETRICS:
        return OTHER_PHOTOMETRICS[photometric]
    if page.number(SUBFILE, 0) & MASK:
        return "of a mask"
    if is_deep(page):
        return None
    if set(bits) != {8}:
        return f"of {max(bits)} bits"
    if photometric not in PHOTOMETRICS or not 1 <= samples <= 4:
        return f"of {samples} samples and interpretation {photometric}"
    return None


def is_deep(page: TiffPage) -> bool:
    """Return whether pixels are RGB of 16 bits in tiles, which OpenSlide reads as 8."""
    return (
        page.is_tiled
        and page.numbers.get(BITS) == (16, 16, 16)
        and page.number(PHOTOMETRIC, 2) == 2
        and page.number(COMPRESSION, 1) in DEEP_CODECS
    )


def find_page(structure: TiffStructure, size: tuple[int, int]) -> TiffPage | None:
    """Return the one tiled image of that size; None where there are none or several."""
    pages = [page for page in structure.pages if page.is_tiled and not page.is_sub]
    matching = [page for page in pages if page.size == size and describe_other(page) is None]
    return matching[0] if len(matching) == 1 else None


def list_pages(path: Path) -> list[TiffPage]:
    """Return the images of a TIFF; none of another file, or one that `check_slide_file` refuses."""
    if not path.is_file():  # a pipe would be waited for
        return []
    try:
        return read_structure(path).pages
    except (BrokenTiff, OSError):
        return []


def is_photograph(path: Path) -> bool:
    """Return whether the first image of a TIFF is compressed with losses, as scans are."""
    return any(page.number(COMPRESSION, 1) in LOSSY_CODECS for page in list_pages(path)[:1])


def find_others(
    path: Path, pages: Sequence[TiffPage], vendor: str | None, sizes: Sequence[tuple[int, int]]
) -> set[int]:
    """Return the levels that may be images of other pixels than level 0's. Raises SlideError."""
    row = [page for page in pages if page.is_tiled and not page.is_sub]
    others = [page for page in row[1:] if describe_other(page) is not None]
    if not others:
        return set()
    taken = {page.size for page in others}
    numbers = {number for number, size in enumerate(sizes) if size in taken}
    is_first = row[0].size == sizes[0] and sizes.count(sizes[0]) == 1
    if vendor not in PAGE_VENDORS or (0 in numbers and not is_first):
        raise SlideError(
            f"{path}: pixels {describe_other(others[0])} are not 8-bit grey or RGB, in an image"
            " beside level 0; convert it to 8-bit RGB"
        )
    return numbers - {0}
