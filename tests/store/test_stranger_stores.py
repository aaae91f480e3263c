"""Harmful stores: refused in one line, before memory is taken or a codec or a link is followed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import (
    make_patches,
    make_store,
    make_table,
    rewrite_manifest,
    write_probabilities,
)
from tests.strangers import BIG, Change, attribute, declare, edit_json, put_values, several, vouch
from tests.written_results import write_result
from wsi_pipeline.core.calibration import ModelTerms
from wsi_pipeline.core.choices import PREDICTIONS
from wsi_pipeline.core.errors import StoreError
from wsi_pipeline.core.patch_table import PatchBlock, PatchTable
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.store.codecs import PixelCodec, read_zstd_size
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import check_whole, read_manifest
from wsi_pipeline.store.patches import (
    PatchStore,
    describe_store,
    finish_patch_store,
    prepare_patch_store,
    write_patch_block,
)
from wsi_pipeline.store.predictions import Predictions, prepare_predictions
from wsi_pipeline.store.predictions import write_probabilities as write_shown
from wsi_pipeline.store.slide_results import RESULT_KIND, open_result

CELLS = [(row, col) for row in range(3) for col in range(3)]
MEMORY_LIMIT_MB = 300
"""What opening a bomb may take beyond what the libraries take."""

PICKLE = [{"name": "numcodecs.pickle"}, {"name": "crc32c"}]
OBJECTS = [{"name": "vlen-utf8"}, {"name": "crc32c"}]
SHARDED = [
    {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, 2],
            "codecs": [{"name": "bytes"}],
            "index_codecs": [{"name": "bytes"}],
        },
    }
]


def deep_json(product: Path) -> None:
    (product / "zarr.json").write_text("[" * 200_000)


def sparse_rows(product: Path) -> None:
    """9 rows become 10^11, in a file that takes no room on disk."""
    declare("row", [10**11])(product)
    os.truncate(product / "row" / "c" / "0", 4 * 10**11 + 4)


BOMBS: dict[str, tuple[Change, str]] = {
    "rows of 10^12 patches": (declare("row", [BIG]), "patches on a grid of 3 × 3"),
    "all arrays of 10^12 patches": (
        several(
            *[declare(name, [BIG]) for name in ("row", "col", "x_um", "labels")],
            declare("patches", [BIG, 50, 50, 3]),
        ),
        "patches on a grid of 3 × 3",
    ),
    "a file of 10^11 rows without content": (sparse_rows, "patches on a grid of 3 × 3"),
    "a grid of 10^18 cells": (
        several(attribute("grid", "rows", value=10**9), attribute("grid", "cols", value=10**9)),
        "more than 268,435,456",
    ),
    "labels of 10^12 patches": (declare("labels", [BIG]), "'labels' has the shape"),
    "a thumbnail of 10^12 pixels": (
        declare("thumbnail", [10**6, 10**6, 3]),
        "'thumbnail' is not as long as its values",
    ),
    "pixels in one chunk of 10^15 bytes": (
        declare("patches", [9, 50, 50, 3], [BIG, 50, 50, 3]),
        "'patches' has the chunks",
    ),
    "pixels of 10^12 patches": (
        declare("patches", [BIG, 50, 50, 3], [4, 50, 50, 3]),
        "'patches' has the shape",
    ),
    "pixels in chunks of one byte": (
        declare("patches", [9, 50, 50, 3], [1, 1, 1, 1]),
        "'patches' has the chunks",
    ),
    "blocks of 10^12 patches": (attribute("block_size", value=BIG), "beyond any slide"),
    "blocks that fill the memory": (attribute("block_size", value=10**8), "too large for memory"),
    "a downsample with 10^9 digits": (
        attribute("grid", "downsample", value="1e999999999"),
        "not a downsample",
    ),
    "a thumbnail's downsample with 10^9 digits": (
        attribute("thumbnail", "downsample", value="1e999999999"),
        "not a downsample",
    ),
    "a level's downsample with 10^9 digits": (
        attribute("slide", "level_downsamples", value=["1e999999999"]),
        "not a downsample",
    ),
    "a number of 10^5 digits": (
        lambda product: (product / "zarr.json").write_text('{"attributes": ' + "9" * 100_000 + "}"),
        "damaged",
    ),
    "brackets 200,000 deep": (deep_json, "nest too deep"),
    "metadata of 100 MB": (
        lambda product: os.truncate(product / "zarr.json", 10**8),
        "more than 67108864",
    ),
}

LIES: dict[str, tuple[Change, str]] = {
    "a label of no class": (
        put_values("labels", np.array([2] + [0] * 8, dtype=np.int8)),
        "not one of its classes",
    ),
    "a label below unknown": (
        put_values("labels", np.array([-2] + [0] * 8, dtype=np.int8)),
        "not one of its classes",
    ),
    "a label fraction above 1": (
        put_values("label_fraction", np.full(9, 1.5, np.float32)),
        "label fraction lies outside",
    ),
    "an infinite tissue fraction": (
        put_values("tissue_fraction", np.full(9, np.inf, np.float32)),
        "tissue fraction lies outside",
    ),
    "a position twice": (put_values("row", np.zeros(9, dtype=np.int32)), "occurs twice"),
    "a row outside": (
        put_values("row", np.array([*range(8), 9], dtype=np.int32)),
        "outside the grid",
    ),
    "a negative column": (
        put_values("col", np.full(9, -1, dtype=np.int32)),
        "outside the grid",
    ),
    "places as whole numbers": (
        edit_json("x_um/zarr.json", "data_type", value="int32"),
        "'x_um' has the dtype",
    ),
    "columns of fewer patches than rows": (
        several(declare("col", [8]), put_values("col", np.zeros(8, np.int32))),
        "'col' has the shape 8",
    ),
    "labels of fewer patches": (
        several(declare("labels", [8]), put_values("labels", np.zeros(8, np.int8))),
        "'labels' has the shape 8",
    ),
    "fractions as whole numbers": (
        edit_json("label_fraction/zarr.json", "data_type", value="int32"),
        "'label_fraction' has the dtype",
    ),
    "a slide at minus half a µm": (attribute("slide", "mpp", value=-0.5), "the slide has -0.5"),
    "patches at minus half a µm": (attribute("grid", "spec", "mpp", value=-0.5), "mpp is -0.5"),
    "a slide at NaN µm": (attribute("slide", "mpp", value=float("nan")), "NaN is not JSON"),
    "a slide at 10^999 µm": (
        lambda product: (
            (product / "zarr.json").write_text(
                (product / "zarr.json").read_text().replace('"mpp": 0.5', '"mpp": 1e999')
            )
            and None
        ),
        "beyond any number",
    ),
    "a scale in words": (attribute("slide", "mpp", value="half"), "damaged"),
    "a slide called like a way out": (
        attribute("slide", "slide_id", value="../../etc/passwd"),
        "cannot be the name of a slide",
    ),
    "a slide called like the parent": (
        attribute("slide", "slide_id", value=".."),
        "cannot be the name of a slide",
    ),
    "a slide without a name": (
        attribute("slide", "slide_id", value=""),
        "cannot be the name of a slide",
    ),
    "classes that are no texts": (
        attribute("class_names", value=[{"a": 1}, []]),
        "not a list of texts",
    ),
    "a pickling codec": (
        edit_json("row/zarr.json", "codecs", value=PICKLE),
        "'row' has the codecs numcodecs.pickle",
    ),
    "a pickling codec for pixels": (
        edit_json("patches/zarr.json", "codecs", value=PICKLE),
        "'patches' has the codecs numcodecs.pickle",
    ),
    "an object codec": (
        edit_json("labels/zarr.json", "codecs", value=OBJECTS),
        "'labels' has the codecs vlen-utf8",
    ),
    "shards": (
        edit_json("row/zarr.json", "codecs", value=SHARDED),
        "'row' has the codecs sharding_indexed",
    ),
    "texts for labels": (
        edit_json("labels/zarr.json", "data_type", value="string"),
        "does not have a layout that wsi writes",
    ),
    "a transformer": (
        edit_json("row/zarr.json", "storage_transformers", value=[{"name": "x"}]),
        "does not have a layout that wsi writes",
    ),
    "another codec than it says": (
        attribute("codec", value={"name": "zstd"}),
        "'patches' has the codecs bytes × crc32c",
    ),
    "a codec that nobody knows": (attribute("codec", value={"name": "pickle"}), "codec is unknown"),
    "a future format": (
        attribute("format_version", value=99),
        "has format 99, this version of wsi reads up to 2; update wsi",
    ),
    "another kind": (attribute("kind", value="wsi predictions"), "holds 'wsi predictions'"),
}


def send(folder: Path, change: Change, name: str = "s") -> Path:
    """A store with a change in it, for which its manifest vouches."""
    store = make_store(folder / f"{name}.patches.zarr", make_table(CELLS, labels=[0, 1, -1] * 3))
    change(store)
    vouch(store)
    return store


OPEN_ALL = """
import json, resource, sys
from pathlib import Path
from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.store.patches import PatchStore
def used(name):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))
limit = (used("VmSize:") + int(sys.argv[1])) * 1024 * 1024
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[2:]:
    try:
        PatchStore(Path(path))
        print(json.dumps("opened"))
    except WsiError as error:
        print(json.dumps(str(error)))
print(used("VmHWM:"))
"""


def test_bombs_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    sent = [
        send(tmp_path, change, f"bomb{number}") for number, (change, _) in enumerate(BOMBS.values())
    ]
    answer = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, str(MEMORY_LIMIT_MB), *map(str, sent)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    *lines, _ = answer.stdout.splitlines()
    refusals = dict(zip(BOMBS, map(json.loads, lines), strict=True))
    unexpected = {
        bomb: refusals[bomb] for bomb, (_, fault) in BOMBS.items() if fault not in refusals[bomb]
    }
    assert not unexpected
    assert all("\n" not in line and len(line) < 600 for line in refusals.values())


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_is_refused(lie: str, tmp_path: Path) -> None:
    change, fault = LIES[lie]
    store = send(tmp_path, change)
    with pytest.raises(StoreError) as caught:
        PatchStore(store)
    assert fault in str(caught.value)


JSON: st.SearchStrategy[object] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(), max_size=4)
    | st.just({})
)
PLACES = [
    ("block_size",), ("patient_id",), ("class_names",), ("class_names", 0), ("codec",),
    ("codec", "name"), ("codec", "quality"), ("slide",), ("slide", "slide_id"), ("slide", "path"),
    ("slide", "size_l0"), ("slide", "size_l0", 0), ("slide", "mpp"), ("slide", "level_downsamples"),
    ("slide", "level_downsamples", 0), ("slide", "bounds_l0", 2), ("slide", "fingerprint"),
    ("slide", "magnification"), ("slide", "vendor"), ("grid",), ("grid", "spec"),
    ("grid", "spec", "side_px"), ("grid", "spec", "stride_px"), ("grid", "spec", "mpp"),
    ("grid", "rows"), ("grid", "cols"), ("grid", "downsample"), ("grid", "origin_xy_l0"),
    ("thumbnail",), ("thumbnail", "downsample"), ("thumbnail", "origin_xy_l0", 1), ("has_quality",),
    ("has_tissue",), ("provenance",), ("format_version",), ("kind",),
]  # fmt: skip


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from(PLACES), JSON)
def test_whatever_stands_in_an_attribute_a_store_is_opened_or_refused_in_one_line(
    tmp_path: Path, place: tuple[str | int, ...], value: object
) -> None:
    store = tmp_path / "s.patches.zarr"
    if not store.exists():
        send(tmp_path, lambda product: None)
        (tmp_path / "attributes").write_bytes((store / "zarr.json").read_bytes())
    (store / "zarr.json").write_bytes((tmp_path / "attributes").read_bytes())
    attribute(*place, value=value)(store)
    vouch(store)
    found = try_to_describe(store)
    assert found.startswith("9, ") or (found.startswith(str(store)) and len(found) < 600)


def try_to_describe(store: Path) -> str:
    try:
        return describe_store(PatchStore(store))["patches"]
    except StoreError as error:
        return str(error)


def test_a_store_that_nobody_changed_is_opened_after_the_same_treatment(tmp_path: Path) -> None:
    assert PatchStore(send(tmp_path, lambda product: None)).table.patches == 9


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../other/zarr.json", "patches/../../other", "", "a\0b"]
)
def test_a_manifest_never_names_a_file_outside(name: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    rewrite_manifest(store, lambda manifest: manifest["files"].update({name: [0, "0" * 32]}))
    with pytest.raises(StoreError, match="outside the product"):
        read_manifest(store)


def test_a_file_that_is_a_link_out_of_the_store_is_no_file_of_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    secret = (tmp_path / "secret").resolve()
    chunk = store / "patches" / "c" / "0" / "0" / "0" / "0"
    secret.write_bytes(chunk.read_bytes())
    chunk.unlink()
    chunk.symlink_to(secret)
    vouch(store)
    with pytest.raises(StoreError, match="c/0/0/0/0 is missing"):
        PatchStore(store)


@pytest.mark.parametrize("folder", ["patches", "patches/c/1", "row"])
def test_a_folder_that_is_a_link_out_of_the_store_is_refused(folder: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    (store / folder).rename(tmp_path / "elsewhere")
    (store / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"{folder} is a link"):
        PatchStore(store)


def test_metadata_in_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    (store / "row" / "zarr.json").unlink()
    os.mkfifo(store / "row" / "zarr.json")
    rewrite_manifest(store, lambda manifest: manifest["files"].pop("row/zarr.json"))
    with pytest.raises(StoreError, match="not a regular file"):
        PatchStore(store)


def test_pixels_that_the_manifest_leaves_out_are_missed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    (store / "patches" / "c" / "1" / "0" / "0" / "0").unlink()
    vouch(store)
    with pytest.raises(StoreError, match="block 1 of its pixels is missing"):
        PatchStore(store)


def test_a_manifest_of_the_future_says_to_update(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    rewrite_manifest(store, lambda manifest: manifest.update(format=99))
    with pytest.raises(StoreError, match=r"manifest of format 99, this wsi reads 3; update wsi"):
        read_manifest(store)


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"format": NaN}', "", "{", "7", '{"format": 2, "files": 7}']
)
def test_a_manifest_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.patches.zarr", make_table(CELLS))
    (store / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        check_whole(store)


def compress(path: Path, codec: PixelCodec, table: PatchTable) -> Path:
    staging = Staging(path, {"codec": codec.to_json()})
    prepare_patch_store(staging, table, {}, codec)
    pixels = make_patches(table.patches)
    for block in range(-(-table.patches // table.block_size)):
        rows = slice(block * table.block_size, (block + 1) * table.block_size)
        part = pixels[rows]
        write_patch_block(
            staging, table, block, PatchBlock(part, np.ones(len(part), dtype=np.bool_))
        )
    finish_patch_store(staging, table)
    return path


def replace_chunk(store: Path, content: bytes) -> None:
    chunk = store / "patches" / "c" / "0" / "0" / "0" / "0"
    chunk.write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    vouch(store)


def test_compressed_stores_are_still_read(tmp_path: Path) -> None:
    for codec in (PixelCodec("zstd"), PixelCodec("jpeg", 90)):
        store = PatchStore(
            compress(tmp_path / f"{codec.name}.patches.zarr", codec, make_table(CELLS))
        )
        assert store.read_block(2).pixels.shape == (1, 50, 50, 3)


def test_a_zstd_chunk_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    import imagecodecs

    store = compress(tmp_path / "s.patches.zarr", PixelCodec("zstd"), make_table(CELLS))
    replace_chunk(store, bytes(imagecodecs.zstd_encode(bytes(50_000_000))))
    with pytest.raises(StoreError, match="does not unpack to its pixels"):
        PatchStore(store).read_block(0)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 10**6, 5 * 10**9])
def test_the_size_in_a_zstd_header_is_the_one_that_the_library_wrote(size: int) -> None:
    import imagecodecs

    if size <= 10**6:
        assert read_zstd_size(bytes(imagecodecs.zstd_encode(bytes(size))[:18])) == size
    header = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + size.to_bytes(8, "little")
    assert read_zstd_size(header) == size


@pytest.mark.parametrize(
    "header", [b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x00\x58", b"PK\x03\x04aaaaaaaaaaaa"]
)
def test_a_zstd_frame_that_keeps_its_size_to_itself_has_none(header: bytes) -> None:
    assert read_zstd_size(header) is None


def test_a_jpeg_of_another_size_than_a_patch_is_not_decoded(tmp_path: Path) -> None:
    import imagecodecs

    store = compress(tmp_path / "s.patches.zarr", PixelCodec("jpeg", 90), make_table(CELLS))
    huge = bytes(imagecodecs.jpeg8_encode(np.zeros((8000, 8000, 3), dtype=np.uint8), level=1))
    lengths = np.array([len(huge)] * 4, dtype="<u4").tobytes()
    replace_chunk(store, lengths + huge * 4)
    with pytest.raises(StoreError, match="damaged"):
        PatchStore(store).read_block(0)


def make_result(
    folder: Path, probability: list[float], counts: dict[str, int] | None = None
) -> Path:
    staging = Staging(folder, {})
    table = make_table(CELLS[: len(probability)])
    prepare_predictions(
        staging,
        table,
        {"model": {"threshold": 0.5, "digest": "d", "class_names": ["negative", "positive"]}},
    )
    values = np.array(probability, dtype=np.float32)
    for block in range(-(-len(values) // table.block_size)):
        write_probabilities(staging, table, block, values[block * 4 : block * 4 + 4])
    predictions = Predictions(staging.product / PREDICTIONS)
    write_shown(predictions, predictions.alone)
    staging.commit(
        RESULT_KIND,
        counts or {"patches": len(probability), "unreadable": int(np.isnan(values).sum())},
    )
    return folder


def test_predictions_with_as_many_nan_as_were_unreadable_are_opened(tmp_path: Path) -> None:
    assert open_result(make_result(tmp_path / "s", [0.1, float("nan"), 0.9])).table.patches == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1])
def test_a_score_that_is_none_is_refused(value: float, tmp_path: Path) -> None:
    result = make_result(tmp_path / "s", [0.1, 0.2, 0.9])
    put_values(
        "predictions.zarr/probability", np.array([0.1, value, 0.9, np.nan], dtype=np.float32)
    )(result)
    vouch(result)
    fault = "logits have no probability" if np.isnan(value) else "outside 0 to 1"
    with pytest.raises(StoreError, match=fault):
        open_result(result)


def test_a_logit_that_was_readable_is_not_made_unreadable(tmp_path: Path) -> None:
    result = make_result(tmp_path / "s", [0.1, 0.2, 0.9])
    logits = np.array([-2, np.nan, 2, np.nan], dtype=np.float32)
    put_values("predictions.zarr/logit", logits)(result)
    vouch(result)
    with pytest.raises(StoreError, match="logits have no probability"):
        open_result(result)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_logit_is_refused(value: float, tmp_path: Path) -> None:
    result = make_result(tmp_path / "s", [0.1, 0.2, 0.9])
    put_values("predictions.zarr/logit", np.array([-2, value, 2, np.nan], dtype=np.float32))(result)
    vouch(result)
    with pytest.raises(StoreError, match="logits that are not finite"):
        open_result(result)


@pytest.mark.parametrize("name", ["logit", "raw_probability", "probability"])
def test_a_flipped_bit_in_any_array_is_found(name: str, tmp_path: Path) -> None:
    result = make_result(tmp_path / "s", [0.1] * 9)
    chunk = result / PREDICTIONS / name / "c" / "1"
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        open_result(result)


@pytest.mark.parametrize("name", ["logit", "raw_probability", "probability"])
def test_a_block_of_predictions_that_the_manifest_leaves_out_is_missed(
    name: str, tmp_path: Path
) -> None:
    result = make_result(tmp_path / "s", [0.1] * 9)
    (result / PREDICTIONS / name / "c" / "1").unlink()
    vouch(result)
    with pytest.raises(StoreError, match="block 1 of its predictions is missing"):
        open_result(result)


@pytest.mark.parametrize(
    "model",
    [
        None,
        7,
        {},
        {"threshold": "half"},
        {"threshold": 2},
        {"threshold": True, "digest": "d", "class_names": ["a", "b"]},
        {"terms": {}, "digest": "d", "class_names": ["a", "b"]},
        {"terms": ModelTerms().to_json(), "digest": "d", "class_names": ["a"]},
    ],
)
def test_predictions_of_no_model_are_refused(model: object, tmp_path: Path) -> None:
    result = make_result(tmp_path / "s", [0.1])
    attribute("model", value=model)(result / PREDICTIONS)
    vouch(result)
    with pytest.raises(StoreError, match="does not say which model"):
        open_result(result)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patches", "9"),
        ("patches", 1.5),
        ("positives", True),
        ("mpp", None),
        ("mpp", [1]),
        ("slide_id", 7),
        ("state", "fine"),
        ("threshold", "NaN"),
        ("threshold_source", "model"),
        ("interval_source", "luck"),
        ("positives_low", -1),
        ("prevalence", 2),
    ],
)
def test_a_summary_with_a_figure_that_is_none_is_refused(
    name: str, value: object, tmp_path: Path
) -> None:
    write_result(tmp_path / "s", [0.1, 0.9])
    edit_json("summary.json", name, value=value)(tmp_path / "s")
    vouch(tmp_path / "s")
    with pytest.raises(StoreError, match=r"summary\.json: missing or damaged"):
        read_summary(tmp_path / "s")


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert write_result(tmp_path / "s", [0.1, 0.9]) == read_summary(tmp_path / "s")
