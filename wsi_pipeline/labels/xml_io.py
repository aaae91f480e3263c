"""Reading XML from strangers: no document types, no entities, nothing fetched."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from wsi_pipeline.core.errors import LabelError
from wsi_pipeline.labels.annotation import read_text

ROOT_ELEMENT = re.compile(rb"<([A-Za-z_][\w.-]*)[\s>/]")
PEEK_BYTES = 4096


def read_xml(path: Path, root_tag: str) -> Element:
    """The root of an XML file. Raises LabelError where it is no whole XML, dangerous, or has another root."""
    try:
        root: Element = fromstring(read_text(path), forbid_dtd=True)
    except DefusedXmlException as error:
        raise LabelError(
            f"{path}: its XML declares a document type or entities, which no annotation needs; it"
            " was not read"
        ) from error
    except (ParseError, ValueError) as error:
        raise LabelError(f"{path}: not whole XML ({error}); export it again") from error
    if root.tag != root_tag:
        raise LabelError(
            f"{path}: XML of <{root.tag}>, expected <{root_tag}>; this is another program's file"
        )
    return root


def peek_root(path: Path) -> str | None:
    """The first element's name in an XML file; None where the file is none."""
    if path.suffix.lower() != ".xml":
        return None
    with path.open("rb") as stream:
        found = ROOT_ELEMENT.search(stream.read(PEEK_BYTES))
    return found[1].decode() if found else None


def read_corners(path: Path, elements: list[Element]) -> list[tuple[float, float]]:
    """(x, y) of elements with attributes X and Y. Raises LabelError."""
    try:
        return [(float(element.attrib["X"]), float(element.attrib["Y"])) for element in elements]
    except (KeyError, ValueError) as error:
        raise LabelError(
            f"{path}: a corner without numbers X and Y ({error}); export the annotation again"
        ) from error
