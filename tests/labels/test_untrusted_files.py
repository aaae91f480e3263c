"""Annotations and settings that strangers made to harm: one line each, at once."""

import json
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from wsi_pipeline.core.errors import ConfigError, LabelError
from wsi_pipeline.labels.asap_xml import read_asap
from wsi_pipeline.labels.geojson import read_geojson
from wsi_pipeline.labels.halo_xml import is_halo
from wsi_pipeline.labels.label_image import read_mask
from wsi_pipeline.labels.rules import read_label_map
from wsi_pipeline.scheduling.clusters import read_slurm_config

LAUGHS = (
    '<!DOCTYPE l [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + k)} "{f"&{chr(97 + k)};" * 10}">' for k in range(9))
    + "]>"
)
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(9)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS + "<ASAP_Annotations>&j;</ASAP_Annotations>",
        (
            "<!DOCTYPE l [<!ENTITY a SYSTEM"
            ' "file:///etc/passwd">]><ASAP_Annotations>&a;</ASAP_Annotations>'
        ),
        '<!DOCTYPE l SYSTEM "http://127.0.0.1:9/x.dtd"><ASAP_Annotations/>',
        '<!DOCTYPE l [<!ENTITY % a SYSTEM "http://127.0.0.1:9/x">%a;]><ASAP_Annotations/>',
    ],
    ids=["billion laughs", "a file", "a document type", "a parameter"],
)
def test_xml_with_entities_is_not_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(LabelError, match="declares a document type or entities") as caught:
        read_asap(tmp_path / "a.xml", False)
    assert "\n" not in str(caught.value)


GEOJSON = {
    "200,000 brackets": ("[" * 200_000, "nest too deep"),
    "a geometry in words": (
        '{"type": "Feature", "geometry": "here", "properties": {}}',
        "a broken Feature",
    ),
    "coordinates in one number": (
        '{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": 7}}',
        "a broken Feature",
    ),
    "corners at NaN": (
        (
            '{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[NaN, 0], [1, 1],'
            " [2, 0]]]}}"
        ),
        "a corner is not finite",
    ),
    "corners beyond any number": (
        (
            '{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1e999, 0], [1,'
            " 1], [2, 0]]]}}"
        ),
        "a corner is not finite",
    ),
    "properties in a list": (
        '{"type": "Feature", "geometry": {}, "properties": [1]}',
        "a broken Feature",
    ),
    "a number": ("7", "not GeoJSON Features"),
    "deep coordinates": (
        json.dumps(
            {
                "type": "Feature",
                "geometry": {"type": "MultiPolygon", "coordinates": [[[[[[[1]]]]]]]},
            }
        ),
        "a corner is not a pair of numbers",
    ),
}


@pytest.mark.parametrize("case", GEOJSON)
def test_geojson_that_is_none_is_one_line(case: str, tmp_path: Path) -> None:
    text, fault = GEOJSON[case]
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(LabelError, match=fault) as caught:
        read_geojson(tmp_path / "a.geojson", False)
    assert "\n" not in str(caught.value)


def test_an_annotation_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.geojson").open("wb") as stream:
        stream.truncate(10**10)
    with pytest.raises(LabelError, match="larger than 512 MB"):
        read_geojson(tmp_path / "a.geojson", False)


def write_boastful_png(path: Path, width: int, height: int) -> None:
    """So many pixels by its header, a few bytes by its content."""
    Image.new("L", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4) + height.to_bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    path.write_bytes(content)


def test_a_label_image_of_175_million_pixels_is_refused_by_its_size(tmp_path: Path) -> None:
    write_boastful_png(tmp_path / "a.png", 17_500, 10_000)
    with pytest.raises(LabelError, match="17500 × 10000 px is too large for a label image"):
        read_mask(tmp_path / "a.png")


def test_a_label_image_of_ten_billion_pixels_is_not_decoded(tmp_path: Path) -> None:
    write_boastful_png(tmp_path / "a.png", 100_000, 100_000)
    with pytest.raises(LabelError, match=r"too large for a label image|not a readable label image"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("key", ["map: {Tumor: *j}", "classes: [*j, b]", "outside: *j"])
def test_a_label_map_that_would_unfold_for_ever_is_refused_at_once(
    key: str, tmp_path: Path
) -> None:
    # Inside an entry of the map, for at the top only four entries may stand.
    (tmp_path / "map.yaml").write_text(ALIASES.replace("\n", "\n") + key)
    text = "classes: [a, b]\nmap:\n" + "".join(f"  {line}\n" for line in ALIASES.splitlines())
    (tmp_path / "nested.yaml").write_text(text)
    started = time.process_time()
    for name in ("map.yaml", "nested.yaml"):
        with pytest.raises(LabelError):
            read_label_map(tmp_path / name)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "[" * 5_000,
        "a: b: c",
    ],
)
def test_yaml_of_code_or_nonsense_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(LabelError, match="not YAML"):
        read_label_map(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_slurm_config(tmp_path / "a.yaml")


def test_a_slurm_configuration_that_would_unfold_for_ever_is_refused_at_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.yaml").write_text(ALIASES + "jobs: *j\n")
    with pytest.raises(ConfigError, match="jobs is 'a list'"):
        read_slurm_config(tmp_path / "a.yaml")


@pytest.mark.timeout(60)
def test_annotations_of_very_many_open_regions_cost_little(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(f"<Annotations>{'<Region ' * 60_000}")
    began = time.process_time()
    assert not is_halo(tmp_path / "a.xml")
    assert time.process_time() - began < 1
