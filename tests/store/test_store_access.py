"""Reading stores at random, looking into them, and writing their patches for other programs."""

import errno
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.builders import folder_bytes, make_patches, make_store, make_table
from tests.commands import run
from tests.strangers import edit_json, vouch
from wsi_pipeline.core.errors import ConfigError, StoreError
from wsi_pipeline.core.patch_table import PatchBlock
from wsi_pipeline.stages.export_patches import export_png, export_stores, export_webdataset
from wsi_pipeline.store.codecs import PixelCodec, decode_patches, encode_patches
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.files import file_checksum
from wsi_pipeline.store.manifest import find_damage
from wsi_pipeline.store.patches import (
    PatchStore,
    finish_patch_store,
    prepare_patch_store,
    write_patch_block,
)
from wsi_pipeline.store.zarr_io import (
    chunk_file,
    create_array,
    create_group,
    open_array,
    write_rows,
)

CELLS = [(index // 5, index % 5) for index in range(23)]


def write_store(path: Path, codec: PixelCodec) -> np.ndarray:
    table, pixels = make_table(CELLS, side_px=20, block_size=8), make_patches(23, side_px=20)
    staging = Staging(path, {"codec": codec.to_json()})
    prepare_patch_store(staging, table, {}, codec)
    for block in range(3):
        part = pixels[block * 8 : block * 8 + 8]
        write_patch_block(
            staging, table, block, PatchBlock(part, np.ones(len(part), dtype=np.bool_))
        )
    finish_patch_store(staging, table)
    return pixels


@pytest.mark.parametrize("name", ["none", "zstd"])
def test_any_patches_in_any_order(name: str, tmp_path: Path) -> None:
    pixels = write_store(tmp_path / "s.patches.zarr", PixelCodec(name))
    store = PatchStore(tmp_path / "s.patches.zarr")
    wanted = [22, 0, 7, 8, 7, 15]
    assert np.array_equal(store.read_patches(wanted), pixels[wanted])
    assert np.array_equal(store.read_patches(np.arange(23)), pixels)
    assert store.read_patches([]).shape == (0, 20, 20, 3)


def test_the_map_and_zarr_agree(tmp_path: Path) -> None:
    write_store(tmp_path / "s.patches.zarr", PixelCodec())
    wanted = np.random.default_rng(0).integers(0, 23, 50)
    assert np.array_equal(
        PatchStore(tmp_path / "s.patches.zarr").read_patches(wanted),
        open_array(tmp_path / "s.patches.zarr", "patches").oindex[wanted],
    )


@pytest.mark.parametrize("wanted", [[23], [-1]])
def test_patches_that_are_none_are_refused(wanted: list[int], tmp_path: Path) -> None:
    write_store(tmp_path / "s.patches.zarr", PixelCodec())
    with pytest.raises(IndexError, match="0 to 22"):
        PatchStore(tmp_path / "s.patches.zarr").read_patches(wanted)


def test_a_chunk_cut_short_after_opening_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s.patches.zarr", PixelCodec())
    store = PatchStore(tmp_path / "s.patches.zarr")
    chunk = tmp_path / "s.patches.zarr" / "patches" / "c" / "1" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(StoreError, match="another size"):
        store.read_patches([9])


@pytest.mark.parametrize("codec", [PixelCodec("zstd"), PixelCodec("jpeg", 90)])
def test_a_flipped_bit_in_a_compressed_store_is_found(codec: PixelCodec, tmp_path: Path) -> None:
    write_store(tmp_path / "s.patches.zarr", codec)
    chunk = tmp_path / "s.patches.zarr" / "patches" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        PatchStore(tmp_path / "s.patches.zarr").read_block(0)
    assert find_damage(tmp_path / "s.patches.zarr") == ["patches/c/0/0/0/0"]


def test_any_zarr_library_reads_a_jpeg_store_where_ours_is_installed(tmp_path: Path) -> None:
    import zarr

    write_store(tmp_path / "s.patches.zarr", PixelCodec("jpeg", 95))
    stored = zarr.open_group(tmp_path / "s.patches.zarr", mode="r")["patches"]
    pixels = np.asarray(stored[3:5])  # type: ignore[index]
    assert np.array_equal(pixels, PatchStore(tmp_path / "s.patches.zarr").read_patches([3, 4]))


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 100))
@settings(max_examples=25)
def test_jpeg_chunks_go_round(count: int, side: int, quality: int) -> None:
    patches = (
        np.full((count, side, side, 3), 128, dtype=np.uint8)
        + np.arange(count, dtype=np.uint8)[:, None, None, None]
    )
    decoded = decode_patches(encode_patches(patches, quality), patches.shape)
    assert np.abs(decoded.astype(int) - patches).max() <= 40


@pytest.mark.parametrize("wrong", [b"", b"\xff\xff\xff\x7f", b"\x04\0\0\0abcd"])
def test_a_chunk_that_contradicts_itself_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_patches(wrong, (1, 8, 8, 3))


@pytest.mark.parametrize(
    "wrong", [("bzip2", None), ("jpeg", None), ("none", 90), ("jpeg", 0), ("jpeg", 101)]
)
def test_impossible_codecs_are_refused(wrong: tuple[str, int | None]) -> None:
    with pytest.raises(ConfigError):
        PixelCodec(*wrong)


def make_labelled_store(tmp_path: Path) -> tuple[Path, np.ndarray]:
    table = make_table(CELLS[:6], labels=[0, 1, -1, 1, 0, 1], side_px=20, slide_id="p1")
    pixels = make_patches(6, side_px=20)
    return make_store(tmp_path / "p1.patches.zarr", table, pixels, unreadable=[5]), pixels


def test_export_as_png_loses_nothing(tmp_path: Path) -> None:
    store, pixels = make_labelled_store(tmp_path)
    assert export_png(PatchStore(store), tmp_path / "out") == 5
    names = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")
    )
    assert names == [
        "negative/p1_r00000_c00000.png",
        "negative/p1_r00000_c00004.png",
        "positive/p1_r00000_c00001.png",
        "positive/p1_r00000_c00003.png",
        "unknown/p1_r00000_c00002.png",
    ]
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "out" / "positive" / "p1_r00000_c00003.png")), pixels[3]
    )


def test_export_as_webdataset_keeps_keys_together(tmp_path: Path) -> None:
    store, pixels = make_labelled_store(tmp_path)
    assert export_webdataset(PatchStore(store), tmp_path / "out") == 5
    with tarfile.open(tmp_path / "out" / "p1-000000.tar") as tar:
        names = tar.getnames()
        assert names[:3] == [
            "p1_r00000_c00000.png",
            "p1_r00000_c00000.cls",
            "p1_r00000_c00000.json",
        ]
        assert len(names) == 15
        content = {name: tar.extractfile(name).read() for name in names[3:6]}  # type: ignore[union-attr]
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(content["p1_r00000_c00001.png"]))), pixels[1]
    )
    assert content["p1_r00000_c00001.cls"] == b"1"
    assert json.loads(content["p1_r00000_c00001.json"])["class"] == "positive"


def test_an_export_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    store, _ = make_labelled_store(tmp_path)
    for name in ("a", "b"):
        export_webdataset(PatchStore(store), tmp_path / name)
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_store_info_and_export_on_the_command_line(tmp_path: Path) -> None:
    make_labelled_store(tmp_path)
    shown = run("store", "info", str(tmp_path))
    assert shown.exit_code == 0, shown.output
    for fact in (
        "6, 1 of them unreadable",
        "1 unknown, 2 negative, 3 positive",
        "codec          none",
        "0.5 µm/px",
    ):
        assert fact in shown.output
    done = run("store", "export", str(tmp_path), "--to", "webdataset", "-o", str(tmp_path / "out"))
    assert "5 patches, 1 unreadable left out" in done.output
    assert run("store", "info", str(tmp_path / "out")).exit_code == 1


def test_an_export_is_a_product(tmp_path: Path) -> None:
    store, _ = make_labelled_store(tmp_path)
    command = ["store", "export", str(store), "-o", str(tmp_path / "out")]
    assert run(*command).exit_code == 0
    assert find_damage(tmp_path / "out") == []
    before = folder_bytes(tmp_path / "out")
    assert "5 patches, 1 unreadable left out" in run(*command).output
    assert folder_bytes(tmp_path / "out") == before
    assert "made from another to" in run(*command, "--to", "webdataset").output
    assert run(*command, "--to", "webdataset", "--force").exit_code == 0
    assert [
        path.suffix
        for path in (tmp_path / "out").iterdir()
        if path.name not in ("manifest.json", "run.yaml")
    ] == [".tar"]


def test_an_export_that_stops_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = make_labelled_store(tmp_path)
    monkeypatch.setattr("wsi_pipeline.stages.export_patches.TAR_PATCHES", 2)
    written = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        if path.name.endswith("000001.tar"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    done = run("store", "export", str(store), "--to", "webdataset", "-o", str(tmp_path / "out"))
    assert done.exit_code == 5
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".wsi").exists()


def test_stores_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    stores = [str(make_labelled_store(tmp_path / folder)[0]) for folder in ("a", "b")]
    done = run("store", "export", *stores, "-o", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "2 stores have this name" in done.output


def test_opening_reads_no_pixels(tmp_path: Path) -> None:
    write_store(tmp_path / "s.patches.zarr", PixelCodec())
    chunk = tmp_path / "s.patches.zarr" / "patches" / "c" / "0" / "0" / "0" / "0"
    chunk.write_bytes(bytes(chunk.stat().st_size))  # damaged, of the same size
    assert PatchStore(tmp_path / "s.patches.zarr").table.patches == 23


@pytest.mark.parametrize("rows", [4, 3])
def test_a_chunk_has_the_bytes_that_zarr_writes(tmp_path: Path, rows: int) -> None:
    create_group(tmp_path / "group", {})
    for name in ("ours", "theirs"):
        create_array(tmp_path / "group", name, (rows, 2, 2, 3), (4, 2, 2, 3), "uint8")
    values = np.random.default_rng(0).integers(0, 256, (rows, 2, 2, 3), dtype=np.uint8)
    write_rows(tmp_path / "group", "ours", slice(0, rows), values)
    open_array(tmp_path / "group", "theirs", mode="r+")[...] = values
    ours, theirs = (
        chunk_file(tmp_path / "group", name, 0, 4).read_bytes() for name in ("ours", "theirs")
    )
    assert ours == theirs


@pytest.mark.parametrize("rows", [4, 3])
def test_a_chunks_checksum_is_known_when_it_is_written(tmp_path: Path, rows: int) -> None:
    create_group(tmp_path, {})
    create_array(tmp_path, "array", (rows, 2), (4, 2), "float32")
    checksum = write_rows(tmp_path, "array", slice(0, rows), np.ones((rows, 2), np.float32))
    assert checksum == file_checksum(chunk_file(tmp_path, "array", 0, 2))


def test_rows_of_several_chunks_have_no_one_checksum(tmp_path: Path) -> None:
    create_group(tmp_path, {})
    create_array(tmp_path, "array", (8, 2), (4, 2), "float32")
    assert write_rows(tmp_path, "array", slice(0, 8), np.ones((8, 2), np.float32)) is None


@pytest.mark.parametrize("codec", [PixelCodec(), PixelCodec("zstd"), PixelCodec("jpeg", 90)])
def test_a_manifest_has_the_checksums_of_the_files(tmp_path: Path, codec: PixelCodec) -> None:
    write_store(tmp_path / "s.patches.zarr", codec)
    assert find_damage(tmp_path / "s.patches.zarr") == []


def rename_classes(store: Path, *names: str) -> Path:
    edit_json("zarr.json", "attributes", "class_names", value=list(names))(store)
    vouch(store)
    return store


@pytest.mark.parametrize("names", [("a/b", "a_b"), ("a", "unknown"), ("A", "a")])
def test_classes_that_would_share_a_folder_are_not_exported(
    names: tuple[str, str], tmp_path: Path
) -> None:
    store = rename_classes(make_store(tmp_path / "s.patches.zarr", make_table(CELLS)), *names)
    with pytest.raises(StoreError, match="would share a folder"):
        export_stores([PatchStore(store)], "png", tmp_path / "out")


def test_classes_of_two_stores_that_would_share_a_folder_are_not_exported(tmp_path: Path) -> None:
    stores = [
        make_store(tmp_path / f"{name}.patches.zarr", make_table(CELLS, slide_id=name))
        for name in "xy"
    ]
    rename_classes(stores[0], "none", "a/b")
    rename_classes(stores[1], "none", "a_b")
    with pytest.raises(
        StoreError, match=r"y\.patches\.zarr: its class 'a_b' would share a folder with 'a/b'"
    ):
        export_stores([PatchStore(store) for store in stores], "png", tmp_path / "out")


def test_a_class_with_too_long_a_name_for_a_folder_is_the_stores_fault(tmp_path: Path) -> None:
    store = rename_classes(
        make_store(tmp_path / "s.patches.zarr", make_table(CELLS)), "none", "x" * 400
    )
    with pytest.raises(StoreError, match="too long a name"):
        export_stores([PatchStore(store)], "png", tmp_path / "out")
