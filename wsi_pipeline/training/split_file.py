"""Published splits: three lists of patients in a folder, or the split.json of an earlier training run."""

import json
from pathlib import Path

from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.training.split import PatientSplit

SIDES = ("train", "val", "test")


def read_split_file(path: Path) -> PatientSplit:
    """Who is on which side, whether they have patches or not.

    A folder holds one text file per side whose name ends in train, val or test, with a patient per line; the test list may be absent.
    Raises ConfigError where a list is missing, empty or unreadable, or a patient is on two sides.
    """
    try:
        lists = _read_folder(path) if path.is_dir() else _read_json(path)
        return PatientSplit(**{side: tuple(dict.fromkeys(names)) for side, names in lists.items()})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a split ({error}); give a folder of three lists, or a split.json") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_folder(folder: Path) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for side in SIDES:
        found = sorted(file for file in folder.glob("*.txt") if file.stem.lower().endswith(side))
        if len(found) > 1 or (not found and side != "test"):
            raise ConfigError(f"{len(found)} files end in {side}.txt; there must be one list for each of {', '.join(SIDES)}")
        lists[side] = [line.strip() for line in found[0].read_text(encoding="utf-8").splitlines() if line.strip()] if found else []
        if not lists[side] and side != "test":
            raise ConfigError(f"its {side} list is empty; name at least one patient")
    return lists


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        lists = {side: [str(name) for name in value[side]] for side in SIDES}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"no split by patient in it ({type(error).__name__}: {error}); it must have lists train, val and test") from error
    return lists
