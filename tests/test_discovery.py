from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.slides.discovery import find_slides, name_slides, safe_name


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
    assert [slide.path.name for slide in find_slides([tmp_path])] == ["a.tiff", "b.svs", "notes.txt"]


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


@pytest.mark.parametrize("name", ["a\nb", "../up", "-rf", "a/b", 'q"uote', "<script>", "x" * 300, " ", ".."])
def test_unsafe_names_become_safe(name: str) -> None:
    safe = safe_name(name)
    assert safe
    assert not safe.startswith(("-", "."))
    assert "/" not in safe
    assert "\n" not in safe
    assert len(safe.encode()) <= 120


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True))
def test_every_slide_has_a_name_of_its_own(names: list[str]) -> None:
    paths = [Path("/slides") / f"{name}.svs" for name in names]
    given_names = name_slides(paths)
    assert len({name.casefold() for name in given_names}) == len(set(paths))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no slide files"):
        find_slides([tmp_path])


def test_a_place_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        find_slides([tmp_path / "nowhere"])
