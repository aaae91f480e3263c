"""`wsi pseudonymize`: a private folder of links under keyed names for the other commands."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import Result

from tests.builders import tissue, write_png, write_slide
from tests.commands import run
from wsi_pipeline.runs import pseudonymize
from wsi_pipeline.runs.pseudonym_key import MIN_KEY_BYTES, Pseudonyms, open_key
from wsi_pipeline.slides.selection import find_slides
from wsi_pipeline.slides.sheet import read_sheet
from wsi_pipeline.stages.ingest_layouts import LayoutOptions, find_patches
from wsi_pipeline.training.split import read_split_file

BOX = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
    "properties": {"objectType": "annotation", "classification": {"name": "positive"}},
}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def link(root: Path, *arguments: object, exit_code: int = 0) -> Result:
    """Run the command into root/links with root/key."""
    answer = run("pseudonymize", *arguments, "--out", root / "links", "--key", root / "key")
    assert answer.exit_code == exit_code, answer.output
    return answer


def names_of(root: Path) -> Pseudonyms:
    return open_key(root / "key", root / "links")


def list_links(root: Path) -> list[str]:
    """Every link below the folder."""
    folder = root / "links"
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink()
    )


def read_lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_name_is_the_same_under_the_same_key_however_its_letters_are_composed() -> None:
    names = Pseudonyms(b"k" * 32)
    assert names.name("Müller") == names.name("Mu\u0308ller")
    assert names.name("Müller") != Pseudonyms(b"l" * 32).name("Müller")


def test_a_pseudonym_is_the_one_that_earlier_versions_gave() -> None:
    """HMAC-SHA256 of the name, 16 hexadecimal digits: stores and models of then still fit."""
    assert Pseudonyms(b"k" * 32).name("s1") == "anon-bafa0f3c99f9abea"


def test_labels_masks_and_patients_come_along(tmp_path: Path) -> None:
    touch(
        tmp_path / "s" / "p1_a.svs", tmp_path / "s" / "p1_a.xml", tmp_path / "m" / "p1_a_mask.png"
    )
    touch(tmp_path / "s" / "p2_b.tif")
    link(tmp_path, tmp_path / "s", "--patient-regex", "^([^_]+)", "--mask", tmp_path / "m")
    names = names_of(tmp_path)
    a, b = names.name("p1_a"), names.name("p2_b")
    assert list_links(tmp_path) == sorted([f"{a}.svs", f"{a}.xml", f"{b}.tif", f"masks/{a}.png"])
    rows = {row.slide.slide_id: row for row in read_sheet(tmp_path / "links" / "slides.csv")}
    assert rows[a].slide.path == tmp_path / "links" / f"{a}.svs"
    assert rows[a].slide.label_file == tmp_path / "links" / f"{a}.xml"
    assert (rows[a].patient_id, rows[b].patient_id) == (names.name("p1"), names.name("p2"))


def test_a_label_image_is_not_taken_for_a_slide(tmp_path: Path) -> None:
    touch(tmp_path / "s" / "a.svs", tmp_path / "labels" / "a_labels.png")
    link(tmp_path, tmp_path / "s", "--labels", tmp_path / "labels")
    name = names_of(tmp_path).name("a")
    assert list_links(tmp_path) == [f"{name}.svs", f"labels/{name}_labels.png"]
    assert [slide.slide_id for slide in find_slides([tmp_path / "links"])] == [name]


def test_a_sheet_keeps_its_scales_splits_and_labels(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    (tmp_path / "sheet.csv").write_text("wsi,mpp,patient_id,split,label\na.svs,0.5,p,test,+\n")
    link(tmp_path, "--sheet", tmp_path / "sheet.csv")
    (row,) = read_sheet(tmp_path / "links" / "slides.csv")
    assert (row.slide.slide_mpp, row.split, row.slide.slide_label) == (0.5, "test", "+")
    assert row.patient_id == names_of(tmp_path).name("p")


def test_a_mirax_is_linked_with_its_folder_and_a_dicom_with_its_series(tmp_path: Path) -> None:
    touch(tmp_path / "a.mrxs", tmp_path / "a" / "Slidedat.ini")
    touch(tmp_path / "series" / "1.dcm", tmp_path / "series" / "2.dcm")
    link(tmp_path, tmp_path / "a.mrxs", tmp_path / "series" / "1.dcm")
    names = names_of(tmp_path)
    a, one = names.name("a"), names.name("1")
    other = names.name("2.dcm")
    assert list_links(tmp_path) == sorted(
        [a, f"{a}.mrxs", f"{one}/{one}.dcm", f"{one}/{other}.dcm"]
    )
    assert (tmp_path / "links" / a / "Slidedat.ini").is_file()
    assert {row.slide.slide_id for row in read_sheet(tmp_path / "links" / "slides.csv")} == {a, one}


def test_a_format_whose_files_name_one_another_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.vms")
    printed = link(tmp_path, tmp_path / "a.vms", exit_code=1).stderr
    assert "convert the slide to TIFF" in printed
    assert not (tmp_path / "links").exists()


def test_the_mapping_says_who_is_who_to_the_owner_alone(tmp_path: Path) -> None:
    touch(tmp_path / "p_a.svs")
    link(tmp_path, tmp_path / "p_a.svs", "--patient-regex", "^([^_]+)")
    names, mapping = names_of(tmp_path), tmp_path / "links" / "mapping.csv"
    assert read_lines(mapping) == [
        {"kind": "patient", "name": "p", "pseudonym": names.name("p"), "path": ""},
        {
            "kind": "slide",
            "name": "p_a",
            "pseudonym": names.name("p_a"),
            "path": str(tmp_path / "p_a.svs"),
        },
    ]
    modes = [path.stat().st_mode & 0o777 for path in (mapping, mapping.parent, tmp_path / "key")]
    assert modes == [0o600, 0o700, 0o600]


def test_what_is_printed_names_no_slide(tmp_path: Path) -> None:
    touch(tmp_path / "QZMARK_a.svs")
    assert "QZMARK" not in link(tmp_path, tmp_path / "QZMARK_a.svs").output


def test_a_further_run_adds_slides_and_keeps_the_others(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "b.svs")
    link(tmp_path, tmp_path / "a.svs")
    before = (tmp_path / "links" / f"{names_of(tmp_path).name('a')}.svs").lstat().st_ino
    link(tmp_path, tmp_path / "b.svs")
    link(tmp_path, tmp_path / "a.svs")
    assert before == (tmp_path / "links" / f"{names_of(tmp_path).name('a')}.svs").lstat().st_ino
    assert len(read_sheet(tmp_path / "links" / "slides.csv")) == 2
    assert [line["name"] for line in read_lines(tmp_path / "links" / "mapping.csv")] == ["a", "b"]


def test_a_slide_that_has_moved_is_linked_where_it_is_now(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    link(tmp_path, tmp_path / "a.svs")
    (tmp_path / "new").mkdir()
    (tmp_path / "a.svs").rename(tmp_path / "new" / "a.svs")
    link(tmp_path, tmp_path / "new")
    (name,) = list_links(tmp_path)
    assert (tmp_path / "links" / name).readlink() == tmp_path / "new" / "a.svs"


def test_another_slide_of_the_same_name_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.svs", tmp_path / "y" / "a.svs")
    link(tmp_path, tmp_path / "x")
    printed = link(tmp_path, tmp_path / "y", exit_code=1).stderr
    assert f"{tmp_path / 'x' / 'a.svs'} is already linked" in printed


def test_a_folder_of_another_key_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    link(tmp_path, tmp_path / "a.svs")
    (tmp_path / "key").unlink()
    assert "made with another key" in link(tmp_path, tmp_path / "a.svs", exit_code=1).stderr


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    touch(tmp_path / "links" / "mine.txt", tmp_path / "a.svs")
    mode = (tmp_path / "links").stat().st_mode
    assert "holds other files" in link(tmp_path, tmp_path / "a.svs", exit_code=1).stderr
    assert (tmp_path / "links").stat().st_mode == mode
    assert list_links(tmp_path) == []


def test_a_killed_run_leaves_whole_tables_and_the_next_one_completes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(*(tmp_path / "s" / f"{name}.svs" for name in "abc"))
    make_link = pseudonymize._make_link
    made: list[Path] = []

    def die_at_the_second(link: Path, target: Path) -> None:
        if made:
            raise KeyboardInterrupt
        made.append(link)
        make_link(link, target)

    with monkeypatch.context() as patch:
        patch.setattr(pseudonymize, "_make_link", die_at_the_second)
        link(tmp_path, tmp_path / "s", exit_code=130)
    assert len(read_lines(tmp_path / "links" / "mapping.csv")) == 3
    assert not (tmp_path / "links" / "slides.csv").exists()
    link(tmp_path, tmp_path / "s")
    assert len(read_sheet(tmp_path / "links" / "slides.csv")) == len(list_links(tmp_path)) == 3
    assert list((tmp_path / "links").glob(".*")) == []


def test_links_are_not_the_slides_once_more_from_the_folder_above(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    link(tmp_path, tmp_path / "a.svs")
    assert [slide.slide_id for slide in find_slides([tmp_path], recursive=True)] == ["a", "key"]
    touch(tmp_path / "mine" / "b.svs")
    (tmp_path / "mine" / "mapping.csv").write_text("old,new\n")
    assert len(find_slides([tmp_path], recursive=True)) == 3


def test_a_published_split_is_translated(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    for side, text in (("train", "a\nb\n"), ("val", "c\n"), ("test", "d\n")):
        (tmp_path / f"{side}.txt").write_text(text)
    link(tmp_path, tmp_path / "a.svs", "--split-file", tmp_path)
    names = names_of(tmp_path)
    split = read_split_file(tmp_path / "links" / "split.json")
    assert split.train == (names.name("a"), names.name("b"))
    assert (split.val, split.test) == ((names.name("c"),), (names.name("d"),))


def test_patches_of_the_idc_layout_keep_it_with_pseudonyms_as_patients(tmp_path: Path) -> None:
    for name in ("p/0/p_idx5_x1_y51_class0.png", "p/1/p_idx5_x51_y1_class1.png"):
        write_png(tmp_path / "data" / name, tissue(50, 50))
    link(tmp_path, tmp_path / "data", "--layout", "idc")
    found = find_patches(tmp_path / "links", "idc", LayoutOptions())
    (patient,) = found.patients
    assert patient.patient_id == names_of(tmp_path).name("p")
    assert {(entry.label, entry.x, entry.y) for entry in patient.entries} == {
        (0, 0, 50),
        (1, 50, 0),
    }
    stored = run("ingest", tmp_path / "links", "--mpp", 4, "--out", tmp_path / "stores")
    assert stored.exit_code == 0, stored.output


@pytest.mark.parametrize("copy", ["Copy of {}", "{} (1)", "{} - Copy"])
def test_a_renamed_copy_of_a_patch_keeps_no_name_of_its_patient(copy: str, tmp_path: Path) -> None:
    name = "smith_idx5_x1_y51_class0"
    for stem in (name, copy.format(name)):
        write_png(tmp_path / "data" / f"{stem}.png", tissue(50, 50))
    link(tmp_path, tmp_path / "data", "--layout", "idc")
    found = find_patches(tmp_path / "links", "idc", LayoutOptions())
    assert [patient.patient_id for patient in found.patients] == [names_of(tmp_path).name("smith")]
    assert not any("smith" in path.name for path in (tmp_path / "links").rglob("*"))


def test_two_patches_of_one_name_in_two_folders_are_both_linked(tmp_path: Path) -> None:
    touch(*(tmp_path / "data" / place / "p_idx5_x1_y1_class0.png" for place in "ab"))
    link(tmp_path, tmp_path / "data", "--layout", "idc")
    assert len(list_links(tmp_path)) == 2


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_other_layouts_become_a_table_of_patches(layout: str, tmp_path: Path) -> None:
    for name in ("no/p1_a.png", "yes/p1_b.png", "yes/p2_a.png"):
        write_png(tmp_path / "data" / name, tissue(50, 50))
    (tmp_path / "data" / "all.csv").write_text(
        "path,patient,label,x,y\nno/p1_a.png,p1,no,0,50\nyes/p1_b.png,p1,yes,50,0\n"
        "yes/p2_a.png,p2,yes,,\n"
    )
    place = tmp_path / "data" / ("all.csv" if layout == "csv" else "")
    regex = ("--patient-regex", "(p.)_") if layout == "folders" else ()
    link(tmp_path, place, "--layout", layout, "--class-names", "no", "yes", *regex)
    names = names_of(tmp_path)
    found = find_patches(tmp_path / "links" / "patches.csv", "csv", LayoutOptions())
    labels = {each.patient_id: [entry.label for entry in each.entries] for each in found.patients}
    assert {name: sorted(each) for name, each in labels.items()} == {
        names.name("p1"): [0, 1],
        names.name("p2"): [1],
    }
    if layout == "csv":
        places = {entry[2:4] for each in found.patients for entry in each.entries}
        assert places == {(0, 50), (50, 0), (None, None)}


def test_the_folder_is_read_by_tile_with_labels_beside_the_slides(tmp_path: Path) -> None:
    write_slide(tmp_path / "s" / "a.tif", tissue(200, 200), mpp=0.5)
    text = json.dumps({"type": "FeatureCollection", "features": [BOX]})
    (tmp_path / "s" / "a.geojson").write_text(text)
    link(tmp_path, tmp_path / "s")
    tile = ("tile", tmp_path / "links", "--labels", "auto", "--mpp", 0.5, "--workers", 0)
    stored = run(*tile, "--out", tmp_path / "stores")
    assert stored.exit_code == 0, stored.output
    name = names_of(tmp_path).name("a")
    assert (tmp_path / "stores" / f"{name}.patches.zarr").is_dir()


def test_a_copy_under_another_key_has_other_names(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    for root in (tmp_path / "one", tmp_path / "two"):
        root.mkdir()
        link(root, tmp_path / "a.svs")
    assert list_links(tmp_path / "one") != list_links(tmp_path / "two")


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("links/key", "would lie in the folder of links"),
        ("open", "others may read this key; make it yours alone: chmod 600"),
        ("short", f"a key of 3 bytes can be guessed; it must have {MIN_KEY_BYTES} or more"),
        ("nowhere/key", "no key could be made there"),
    ],
)
def test_a_key_that_protects_nobody_is_refused(key: str, fault: str, tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    for name, content, mode in (("open", "k" * 40, 0o644), ("short", "abc", 0o600)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    line = (
        "pseudonymize",
        tmp_path / "a.svs",
        "--out",
        tmp_path / "links",
        "--key",
        tmp_path / key,
    )
    answer = run(*line)
    assert answer.exit_code == 1
    assert fault in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert not (tmp_path / "links").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("{0}", "--sheet", "{0}/sheet.csv"),
        ("--sheet", "{0}/sheet.csv", "--patient-regex", "(a)"),
        ("{0}", "--layout", "idc", "--mpp-csv", "{0}/sheet.csv"),
        ("{0}", "--class-names", "a", "b"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    touch(tmp_path / "sheet.csv")
    link(tmp_path, *(argument.format(tmp_path) for argument in arguments), exit_code=2)


def test_a_mask_of_the_sheet_is_linked_and_named(tmp_path: Path) -> None:
    touch(tmp_path / "anna.svs", tmp_path / "drawn" / "tissue-of-anna.png")
    (tmp_path / "sheet.csv").write_text("wsi,mask\nanna.svs,drawn/tissue-of-anna.png\n")
    assert " and 1 masks" in link(tmp_path, "--sheet", tmp_path / "sheet.csv").output
    (line,) = read_lines(tmp_path / "links" / "slides.csv")
    assert line["mask"] == f"masks/{names_of(tmp_path).name('anna')}.png"
    target = (tmp_path / "links" / line["mask"]).readlink()
    assert target == tmp_path / "drawn" / "tissue-of-anna.png"
