import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import make_store, make_table, paint, write_slide
from tests.commands import run
from wsi_pipeline.core.choices import (
    AGGREGATE_JSON,
    COMPARISON_CSV,
    EVALUATION_CSV,
    EVALUATION_HTML,
    EVALUATION_JSON,
    EVENTS_JSONL,
    FAILURES_CSV,
    INDEX_HTML,
    LABELS_SUFFIX,
    LEFT_OUT_CSV,
    LOG,
    MANIFEST,
    MASK_SUFFIX,
    RUN_JSON,
    SLIDES_CSV,
    SLIDES_PARQUET,
    WRITTEN,
)
from wsi_pipeline.core.errors import ConfigError, EnvironmentFault
from wsi_pipeline.outputs.run_files import RUN_FILES
from wsi_pipeline.slides.found_slide import name_slides, safe_name
from wsi_pipeline.slides.selection import (
    Shard,
    find_slides,
    is_work_of_wsi,
    is_written,
)
from wsi_pipeline.slides.sheet import read_mpp_csv, read_sheet

NAMES = st.text(
    alphabet=st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1
)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_gives_its_files_in_order_without_sidecars(tmp_path: Path) -> None:
    touch(
        tmp_path / "b.svs",
        tmp_path / "a.tiff",
        tmp_path / "notes.txt",
        tmp_path / "a.geojson",
        tmp_path / ".hidden",
        tmp_path / "sub" / "c.svs",
    )
    assert [slide.path.name for slide in find_slides([tmp_path])] == [
        "a.tiff",
        "b.svs",
    ]


def test_a_file_named_twice_is_tried_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    assert len(find_slides([tmp_path, tmp_path / "a.svs"])) == 1


def test_the_stem_is_the_name(tmp_path: Path) -> None:
    touch(tmp_path / "CMU-1 (2).svs")
    assert find_slides([tmp_path])[0].slide_id == "CMU-1 (2)"


def test_equal_stems_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "s.svs", tmp_path / "two" / "s.svs", tmp_path / "two" / "t.svs")
    names = [slide.slide_id for slide in find_slides([tmp_path / "one", tmp_path / "two"])]
    assert len(set(names)) == 3
    assert names[2] == "t"
    assert all(name.startswith("s-") for name in names[:2])


def test_names_do_not_depend_on_where_the_tree_lies() -> None:
    one = name_slides([Path("/x/a/s.svs"), Path("/x/b/s.svs")])
    two = name_slides([Path("/y/z/a/s.svs"), Path("/y/z/b/s.svs")])
    assert one == two


def test_names_that_differ_in_case_only_are_told_apart() -> None:
    assert len({name.casefold() for name in name_slides([Path("/x/S.svs"), Path("/x/s.tif")])}) == 2


@pytest.mark.parametrize(
    "name", ["a\nb", "../up", "-rf", "a/b", 'q"uote', "<script>", "x" * 300, " ", ".."]
)
def test_unsafe_names_become_safe(name: str) -> None:
    safe = safe_name(name)
    assert safe
    assert not safe.startswith(("-", "."))
    assert "/" not in safe
    assert "\n" not in safe
    assert len(safe.encode()) <= 120


@given(st.lists(NAMES, min_size=1, unique=True))
def test_every_slide_has_a_name_of_its_own(names: list[str]) -> None:
    paths = [Path("/slides") / f"{name}.svs" for name in names]
    given_names = name_slides(paths)
    assert len({name.casefold() for name in given_names}) == len(set(paths))


@given(
    st.lists(
        st.sampled_from(["-rf", "a\n", "A", "a", "\uac00", "\u1100\u1161", " "]) | NAMES,
        min_size=1,
        unique=True,
    ),
    st.randoms(),
)
def test_a_slide_really_called_like_anothers_name_and_hash_has_a_name_of_its_own(
    names: list[str], order: Any
) -> None:
    for _ in range(2):  # the second time after names that were drawn again, too
        names = list(
            dict.fromkeys(
                [*names, *name_slides([Path("/slides") / f"{name}.svs" for name in names])]
            )
        )
    paths = [Path("/slides") / f"{name}.svs" for name in names]
    slide_ids = name_slides(paths)
    assert len({slide_id.casefold() for slide_id in slide_ids}) == len(set(paths))
    shuffled = order.sample(paths, len(paths))
    assert dict(zip(paths, slide_ids, strict=True)) == dict(
        zip(shuffled, name_slides(shuffled), strict=True)
    )


def test_a_slide_called_like_anothers_name_and_hash_keeps_its_name() -> None:
    first, second = name_slides([Path("/x/-rf.tiff"), Path("/x/_rf-e439de39.tiff")])
    assert second == "_rf-e439de39"
    assert first.startswith("_rf-")
    assert first != second


def test_the_same_path_twice_has_two_names() -> None:
    assert len(set(name_slides([Path("/x/a_b.patches"), Path("/x/a_b.patches")]))) == 2


def test_names_that_differ_only_in_how_letters_are_composed_are_told_apart() -> None:
    whole, parts = name_slides(
        [Path("/x/\uac00.svs"), Path("/x/\u1100\u1161.svs")]
    )  # one Korean syllable
    assert whole.startswith("\uac00-")
    assert parts.startswith("\u1100\u1161-")


def test_names_are_those_that_products_on_disk_carry() -> None:
    names = [
        "-rf.tiff",
        "S.svs",
        "s.tif",
        "d/s.tif",
        "run.json.svs",
        "a b.svs",
        "café.svs",
        "d/a\nb.svs",
    ]
    assert name_slides([Path("/x") / name for name in names]) == [
        "_rf-e439de39",
        "S-37b20089",
        "s-72cb9ec5",
        "s-c4e11a15",
        "run.json_-bf81e89c",
        "a b",
        "café",
        "a_b-b727a5a3",
    ]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no slide files"):
        find_slides([tmp_path])


def test_a_place_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        find_slides([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("out", "options"), [("", ()), ("", ("--recursive",)), ("products", ("--recursive",))]
)
def test_a_run_among_the_slides_finds_nothing_to_do_the_second_time(
    out: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    write_slide(tmp_path / "a.tiff", paint(60, 60), mpp=4.0)
    line = ("tile", tmp_path, *options, "-o", tmp_path / out, "--workers", 0, "--mpp", 4)
    assert run(*line).exit_code == 0
    touch(tmp_path / out / "wsi.log")  # where something was to be said
    again = run(*line)
    assert (again.exit_code, "nothing to do" in again.output) == (0, True), again.output
    assert "1 slide: 1 ok" in again.output


def test_a_pattern_passes_over_what_wsi_wrote(tmp_path: Path) -> None:
    touch(
        tmp_path / "a.png",
        tmp_path / "a.mask.png",
        tmp_path / "index.html",
        tmp_path / "events.1-of-2.jsonl",
    )
    make_store(tmp_path / "a.patches.zarr", make_table([(0, 0)]))
    for pattern in ("*", "**/*"):
        assert [
            slide.path.name for slide in find_slides([f"{tmp_path}/{pattern}"], recursive=True)
        ] == ["a.png"]


def test_no_slide_is_called_as_the_folder_of_reviews() -> None:
    one, other = name_slides([Path("/x/Reviews.svs"), Path("/x/reviews2.svs")])
    assert one.startswith("Reviews_-")
    assert other == "reviews2"


def test_a_file_named_itself_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    touch(tmp_path / "x.mask.png", tmp_path / "y.png")
    found = find_slides([tmp_path / "x.mask.png", tmp_path / "y.png"])
    assert [slide.path.name for slide in found] == ["x.mask.png", "y.png"]


def test_a_product_named_as_a_folder_holds_no_slides(tmp_path: Path) -> None:
    make_store(tmp_path / "a.patches.zarr", make_table([(0, 0)]))
    with pytest.raises(ConfigError, match="no slide files"):
        find_slides([tmp_path / "a.patches.zarr"])


def test_work_under_way_holds_no_slides(tmp_path: Path) -> None:
    touch(tmp_path / ".wsi" / "staging" / "a.tiff")
    assert is_work_of_wsi(tmp_path / ".wsi")
    with pytest.raises(ConfigError, match="no slide files"):
        find_slides([tmp_path], recursive=True)


def test_a_folder_with_a_manifest_of_somebody_else_is_no_product(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    (tmp_path / MANIFEST).write_text('{"tool": "downloader 2", "files": {}}')
    assert len(find_slides([tmp_path])) == 1


def test_links_beside_their_key_are_not_the_slides_once_more(tmp_path: Path) -> None:
    touch(
        tmp_path / "a.svs",
        tmp_path / "my.key",
        tmp_path / "my.key.links" / "anon-0123456789abcdef.svs",
        tmp_path / "b.links" / "b.svs",
    )
    assert [slide.path.name for slide in find_slides([tmp_path], recursive=True)] == [
        "a.svs",
        "b.svs",
        "my.key",
    ]


def test_files_that_are_passed_over_are_those_that_runs_write() -> None:
    run_files = {
        SLIDES_CSV,
        SLIDES_PARQUET,
        FAILURES_CSV,
        RUN_JSON,
        INDEX_HTML,
        *RUN_FILES,
        AGGREGATE_JSON,
        EVENTS_JSONL,
        LEFT_OUT_CSV,
    }
    evaluations = {EVALUATION_CSV, EVALUATION_JSON, EVALUATION_HTML, COMPARISON_CSV}
    pictures = {f"a{suffix}" for suffix in (MASK_SUFFIX, LABELS_SUFFIX)}
    assert run_files | evaluations | {LOG} == WRITTEN
    assert all(map(is_written, WRITTEN | pictures))


@pytest.mark.parametrize("name", [FAILURES_CSV, RUN_JSON, EVENTS_JSONL])
def test_tables_of_shards_are_passed_over_too(name: str) -> None:
    path = Path(name)
    assert is_written(path.with_stem(path.stem + Shard(2, 8).suffix).name)


@pytest.mark.parametrize(
    "name", ["a.tiff", "events.tiff", "a.2-of-8.tiff", "my.index.html", "mask.png"]
)
def test_files_of_other_names_are_taken(name: str) -> None:
    assert not is_written(name)


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that may not be entered, not even by root."""
    locked, scan = tmp_path / "slides" / "locked", os.scandir

    def refuse(place: Any = ".") -> Any:
        if Path(os.fsdecode(place)) == locked:
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    touch(tmp_path / "slides" / "a.svs", locked / "b.svs")
    monkeypatch.setattr(os, "scandir", refuse)
    return locked


@pytest.mark.parametrize(
    ("place", "options"), [("slides", ("--recursive",)), ("slides/locked", ())]
)
def test_a_folder_that_may_not_be_entered_ends_the_run_by_name(
    place: str, options: tuple[str, ...], locked: Path, tmp_path: Path
) -> None:
    result = run("tile", tmp_path / place, *options, "-o", tmp_path / "out")
    assert (result.exit_code, f"{locked}: Permission denied" in result.stderr) == (
        5,
        True,
    ), result.output


def test_infer_names_a_folder_that_may_not_be_entered(locked: Path) -> None:
    with pytest.raises(EnvironmentFault, match="locked: Permission denied"):
        find_slides([locked])


def test_a_folder_that_nobody_asked_to_enter_may_be_locked(locked: Path) -> None:
    assert [slide.path.name for slide in find_slides([locked.parent])] == ["a.svs"]


def test_the_file_systems_own_folder_holds_no_slides(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "lost+found" / "b.svs")
    assert len(find_slides([tmp_path], recursive=True)) == 1


def test_slides_of_nested_folders_come_in_order_without_hidden_ones_and_links_to_folders(
    tmp_path: Path,
) -> None:
    touch(
        *(
            tmp_path / name
            for name in (
                "b/z.svs",
                "b/a/y.svs",
                "b.svs",
                "a/x.svs",
                ".trash/w.svs",
                "b/.v.svs",
                "a/notes.xml",
            )
        )
    )
    (tmp_path / "c").symlink_to(tmp_path / "b")
    found = [
        slide.path.relative_to(tmp_path).as_posix()
        for slide in find_slides([tmp_path], recursive=True)
    ]
    assert found == ["a/x.svs", "b/a/y.svs", "b/z.svs", "b.svs"]


@pytest.fixture
def spellings(tmp_path: Path) -> list[Path]:
    """One slide by three paths."""
    touch(tmp_path / "src" / "a.tiff")
    (tmp_path / "link").symlink_to(tmp_path / "src")
    return [
        tmp_path / "src" / "a.tiff",
        tmp_path / "src" / ".." / "src" / "a.tiff",
        tmp_path / "link" / "a.tiff",
    ]


def test_a_file_by_several_spellings_is_tried_once_by_the_first(spellings: list[Path]) -> None:
    for order in (spellings, spellings[::-1], [spellings[2].parent, *spellings]):
        assert [slide.path for slide in find_slides(order)] == [
            order[0] if order[0].suffix else spellings[2]
        ]


@pytest.mark.parametrize("other", ["src/../src/a.tiff", "link/a.tiff", "./src/a.tiff"])
def test_a_sheet_names_a_slide_once_however_it_is_spelled(
    other: str, spellings: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "sheet.csv").write_text(f"wsi\nsrc/a.tiff\n{other}\n")
    with pytest.raises(
        ConfigError,
        match=r"line 3: .*a\.tiff is named more than once, first in line 2; keep one line",
    ):
        read_sheet(tmp_path / "sheet.csv")


def test_links_of_other_names_are_slides_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    (tmp_path / "b.svs").symlink_to(tmp_path / "a.svs")
    (tmp_path / "c.svs").hardlink_to(tmp_path / "a.svs")
    assert [slide.slide_id for slide in find_slides([tmp_path])] == ["a", "b", "c"]


def test_links_in_a_circle_and_names_that_are_no_text_are_found_like_others(tmp_path: Path) -> None:
    (tmp_path / "loop.svs").symlink_to(tmp_path / "loop.svs")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    touch(tmp_path / os.fsdecode(b"\xff.svs"))
    for places in (
        [tmp_path],
        [tmp_path, tmp_path / "loop.svs", tmp_path / os.fsdecode(b"\xff.svs")],
    ):
        assert len(find_slides(places)) == 3


@pytest.mark.parametrize("header", ["wsi,mpp,mpp", "mpp,wsi,mpp", "wsi,mpp, mpp"])
def test_a_column_that_stands_twice_is_refused(header: str, tmp_path: Path) -> None:
    touch(tmp_path / "a.tiff")
    (tmp_path / "table.csv").write_text(f"{header}\na.tiff,0.5,0.25\n")
    with pytest.raises(
        ConfigError,
        match=r"table\.csv: line 1: the column mpp appears more than once; keep one",
    ):
        read_mpp_csv(tmp_path / "table.csv")


def test_a_column_that_stands_twice_in_a_sheet_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.tiff")
    (tmp_path / "sheet.csv").write_text("wsi,label,label\na.tiff,one,two\n")
    with pytest.raises(
        ConfigError, match=r"sheet\.csv: line 1: the column label appears more than once"
    ):
        read_sheet(tmp_path / "sheet.csv")


def test_columns_without_a_name_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("wsi,mpp,,\na.tiff,0.5,,\n")
    assert read_mpp_csv(tmp_path / "table.csv") == {"a.tiff": 0.5}
