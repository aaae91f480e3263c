"""Data sets of patches in other layouts than the public IDC set's."""

from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_patches, write_png
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.runs.tile import IngestAccount, ingest_patches
from wsi_pipeline.stages.ingest_layouts import LayoutOptions
from wsi_pipeline.store.patches import PatchStore

SPEC = PatchSpec(50, 50, 0.5)
PIXELS = make_patches(6)


def ingest(place: Path, out: Path, layout: str, **options: object) -> IngestAccount:
    return ingest_patches(place, out, IngestOptions(mpp=0.5, layout=layout, **options))  # type: ignore[arg-type]


def store_of(out: Path, patient: str) -> PatchStore:
    return PatchStore(out / f"{patient}.patches.zarr")


def test_class_folders(tmp_path: Path) -> None:
    for index in range(6):
        write_png(
            tmp_path / "in" / ("benign", "tumour")[index % 2] / f"P{index // 4}_{index}.png",
            PIXELS[index],
        )
    account = ingest(tmp_path / "in", tmp_path / "out", "folders", patient_regex=r"(P\d+)_")
    one = store_of(tmp_path / "out", "P0")
    assert account.patches == 6
    assert one.table.class_names == ("benign", "tumour")
    assert one.table.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(one.read_block(0).pixels, PIXELS[[0, 2, 1, 3]])
    assert len(np.unique(one.positions, axis=0)) == 4


def test_class_folders_without_a_patient_are_refused_or_named(tmp_path: Path) -> None:
    write_png(tmp_path / "in" / "a" / "P1_x.png", PIXELS[0])
    write_png(tmp_path / "in" / "b" / "nobody.png", PIXELS[1])
    with pytest.raises(ConfigError, match="--patient-regex"):
        ingest(tmp_path / "in", tmp_path / "out", "folders")
    account = ingest(tmp_path / "in", tmp_path / "out", "folders", patient_regex=r"(P\d+)")
    assert [entry.file for entry in account.left_out] == ["b/nobody.png"]


def test_three_class_folders_are_refused(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="two classes are needed"):
        ingest(tmp_path, tmp_path / "out", "folders", patient_regex="(x)")


def test_an_npz_with_patients(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.savez(
        tmp_path / "in" / "all.npz",
        images=PIXELS,
        labels=np.array([0, 1, 0, 1, 0, 1]),
        patients=np.array(["p", "p", "q", "q", "q", "q"]),
    )
    ingest(tmp_path / "in", tmp_path / "out", "stacks")
    assert np.array_equal(store_of(tmp_path / "out", "q").read_block(0).pixels, PIXELS[2:])
    assert store_of(tmp_path / "out", "p").table.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("images", "labels", "patient"),
    [("X.npy", "Y.npy", "in"), ("p7_images.npy", "p7_labels.npy", "p7")],
)
def test_a_pair_of_npy_files(images: str, labels: str, patient: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / images, PIXELS)
    np.save(tmp_path / "in" / labels, np.array([0, 1, 0, 1, 0, 1]))
    ingest(tmp_path / "in", tmp_path / "out", "stacks")
    assert np.array_equal(store_of(tmp_path / "out", patient).read_block(0).pixels, PIXELS)


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"images": PIXELS}, "has no labels"),
        ({"images": PIXELS, "labels": np.zeros(5)}, "not one 0 or 1"),
        ({"images": PIXELS, "labels": np.full(6, 2)}, "not one 0 or 1"),
        ({"images": PIXELS.astype(np.float32), "labels": np.zeros(6)}, "must be uint8"),
        ({"images": np.array([None, None]), "labels": np.zeros(2)}, "without pickled objects"),
    ],
)
def test_stacks_that_do_not_fit_together_are_refused(
    arrays: dict[str, np.ndarray], fault: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=fault):
        ingest(tmp_path, tmp_path / "out", "stacks")


def write_table(path: Path, *lines: str, header: str = "path,patient,label,x,y") -> Path:
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def test_a_table_places_patches(tmp_path: Path) -> None:
    for index in range(2):
        write_png(tmp_path / f"{index}.png", PIXELS[index])
    table = write_table(tmp_path / "t.csv", "0.png,p,0,100,50", "1.png,p,positive,0,0")
    ingest(table, tmp_path / "out", "csv")
    store = store_of(tmp_path / "out", "p")
    assert store.positions.tolist() == [[0, 0], [1, 2]]
    assert store.table.labels.tolist() == [1, 0]
    assert np.array_equal(store.read_block(0).pixels, PIXELS[[1, 0]])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("a.png,,0,,", "line 2: path or patient is empty"),
        ("a.png,p,7,,", "line 2: label is '7'"),
        ("a.png,p,0,1,", "line 2: x and y must both be there"),
        ("a.png,p,0,a,b", "line 2: x or y is no whole number"),
        ("a.png,p", "line 2: has another number of values"),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_its_line(
    line: str, fault: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=fault):
        ingest(write_table(tmp_path / "t.csv", line), tmp_path / "out", "csv")


def test_a_missing_file_of_a_table_is_left_out_by_name(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", PIXELS[0])
    account = ingest(
        write_table(tmp_path / "t.csv", "a.png,p,0,,", "b.png,p,1,,"), tmp_path / "out", "csv"
    )
    assert [(entry.file, entry.reason) for entry in account.left_out] == [("b.png", "is missing")]


def test_missing_empty_and_broken_files_are_told_apart(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", PIXELS[0])
    (tmp_path / "empty.png").touch()
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    names = ("a", "empty", "broken", "link")
    table = write_table(tmp_path / "t.csv", *(f"{name}.png,p,0,," for name in names))
    assert dict(ingest(table, tmp_path / "out", "csv").left_out) == {
        "empty.png": "is empty",
        "broken.png": "cannot be decoded",
        "link.png": "is missing",
    }


def test_a_table_as_excel_saves_it_in_europe(tmp_path: Path) -> None:
    write_png(tmp_path / "sub" / "0.png", PIXELS[0])
    (tmp_path / "t.csv").write_text(
        "\ufeffpath;patient;label;x;y;;\nsub\\0.png;p;1;50;0;;\n;;;;;;\n", encoding="utf-8"
    )
    ingest(tmp_path / "t.csv", tmp_path / "out", "csv")
    store = store_of(tmp_path / "out", "p")
    assert (store.positions.tolist(), store.table.labels.tolist()) == ([[0, 1]], [1])


@pytest.mark.parametrize("odd", ["__MACOSX", "@eaDir", ".ipynb_checkpoints"])
def test_folders_of_systems_are_no_classes(odd: str, tmp_path: Path) -> None:
    for place in ("benign/p1_a.png", "malign/p1_b.png", f"{odd}/x.png", f"benign/{odd}/p1_c.png"):
        write_png(tmp_path / "in" / place, PIXELS[0])
    (tmp_path / "in" / "benign" / "._p1_a.png").write_bytes(b"Mac OS X")
    account = ingest(tmp_path / "in", tmp_path / "out", "folders", patient_regex=r"(p\d)_")
    assert (account.patches, account.left_out) == (2, ())


def test_a_class_folders_other_files_are_named(tmp_path: Path) -> None:
    for place in ("benign/p1_a.png", "malign/p1_b.png"):
        write_png(tmp_path / "in" / place, PIXELS[0])
    (tmp_path / "in" / "malign" / "p1_c.webp").touch()
    account = ingest(tmp_path / "in", tmp_path / "out", "folders", patient_regex=r"(p\d)_")
    assert [entry.file for entry in account.left_out] == ["malign/p1_c.webp"]


def test_a_patient_of_whom_nothing_is_whole_has_failed(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", PIXELS[0][:40])
    account = ingest(write_table(tmp_path / "t.csv", "a.png,p,0,,"), tmp_path / "out", "csv")
    assert account.run.exit_code == 4
    assert "none of its 1 files is a whole patch" in account.run.outcomes[0].message


@pytest.mark.parametrize("regex", ["(", "P"])
def test_an_expression_without_a_patient_is_refused(regex: str) -> None:
    with pytest.raises(ConfigError, match="patient regex"):
        LayoutOptions(patient_regex=regex)
