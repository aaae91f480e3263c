"""Status of a folder of results or stores: finished, in progress, failed, the last run."""

import csv
import io
import re
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import FAILURES_CSV, HIDDEN, PREDICTIONS, RUN_JSON, STORE_SUFFIX
from wsi_pipeline.core.csv_io import unshield
from wsi_pipeline.core.errors import DAMAGES, EnvironmentFault, StoreError, damage_error
from wsi_pipeline.core.geometry import count_blocks
from wsi_pipeline.core.json_io import MAX_RECORD_BYTES, read_bounded, read_json
from wsi_pipeline.core.outcome import SlideState, describe_counts, state_of
from wsi_pipeline.outputs.summary_json import read_summary
from wsi_pipeline.runs.events import read_events, read_progress
from wsi_pipeline.store.commit import STAGED
from wsi_pipeline.store.files import is_process_alive
from wsi_pipeline.store.lock import read_owner
from wsi_pipeline.store.manifest import is_product, read_manifest
from wsi_pipeline.store.patches import KIND as STORE_KIND
from wsi_pipeline.store.predictions import LOGIT
from wsi_pipeline.store.slide_results import RESULT_KIND, find_results
from wsi_pipeline.store.zarr_io import open_array

OWNER = re.compile(r"process (\d+) on (.+)")


@dataclass(frozen=True, slots=True)
class Finished:
    """A product that is there and whole by its manifest, or says why it is not."""

    slide_id: str
    state: SlideState
    patches: int
    unreadable: int = 0
    fault: str = ""
    """Reason for which it counts as failed although it is there."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A product that somebody began."""

    slide_id: str
    blocks_done: int
    blocks: int | None
    """None: its patches have not been chosen yet."""
    owner: str | None
    """The holder of its lock, or None."""
    is_alive: bool | None
    """True if that process lives; None: cannot be seen from here."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A slide of the last run that a person should look at."""

    slide_id: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last run that wrote into the folder."""

    began: str
    """Time in UTC."""
    command: str
    ending: str
    """"ended", "stopped", "under way" or "killed"; "begun" if it cannot be seen from here."""
    account: str
    """The line that adds up, where it came to its end."""
    slides: int
    slides_ended: int
    reason: str = ""
    """The reason why it stopped."""

    @property
    def sentence(self) -> str:
        """The account as people read it."""
        counts = re.findall(r"\b([a-z]++) (\d{1,18})\b", self.account.partition("=")[2])
        known = {state.value: state.word for state in SlideState}
        return describe_counts({known[s]: int(count) for s, count in counts if s in known})


@dataclass(frozen=True, slots=True)
class LiveRun:
    """The last run of a folder as a page shows it, while it is under way and afterwards."""

    is_under_way: bool
    ending: str
    """As in `LastRun`."""
    slides: int
    slides_ended: int
    patches_done: int | None
    """None unless the run is under way, as the rest of the figures."""
    patches_expected: float | None
    rate: float | None
    """Patches per second, over the last five minutes."""
    seconds_left: float | None
    slides_under_way: tuple[UnderWay, ...]
    failures: tuple[Failure, ...]
    """In the order in which they came."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of one folder of products."""

    finished: tuple[Finished, ...]
    under_way: tuple[UnderWay, ...]
    failures: tuple[Failure, ...]
    last_run: LastRun | None

    @property
    def counts(self) -> Mapping[str, int]:
        """Finished slides by state."""
        found = Counter(slide.state.value for slide in self.finished)
        return {state.value: found[state.value] for state in SlideState}

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self) | {"counts": dict(self.counts)}


def read_status(folder: Path) -> Status:
    """Return the status of a folder; reads only. Raises StoreError if there was no run."""
    finished = [_read_finished(path) for path in _list_products(folder)]
    under_way = _list_under_way(folder)
    last_run = _read_last_run(folder)
    if not finished and not under_way and last_run is None and not (folder / RUN_JSON).is_file():
        raise StoreError(
            f"{folder}: no run of wsi has written here; name a folder of `wsi infer` or `wsi tile`"
        )
    return Status(
        tuple(slide for slide in finished if slide is not None),
        under_way,
        _read_failures(folder),
        last_run,
    )


def _list_products(folder: Path) -> list[Path]:
    """Return the products in a folder, whole or not, and those that the last run names."""
    there = {
        path
        for path in folder.iterdir()
        if path.name != HIDDEN and (is_product(path) or path.name.endswith(STORE_SUFFIX))
    }
    results = {path for path in find_results([folder]) if path.parent == folder}
    return sorted(there | results)


def _read_finished(product: Path) -> Finished | None:
    """One product by its manifest; None for products that are no slide's."""
    slide_id = product.name.removesuffix(STORE_SUFFIX)
    try:
        manifest = read_manifest(product)
        if manifest.kind not in (STORE_KIND, RESULT_KIND):
            return None
        patches, unreadable = (int(manifest.counts[name]) for name in ("patches", "unreadable"))
        is_store = manifest.kind == STORE_KIND
        state = state_of(patches, unreadable) if is_store else read_summary(product).state
        return Finished(slide_id, state, patches, unreadable)
    except StoreError as error:
        return Finished(slide_id, SlideState.FAILED, 0, fault=str(error))
    except DAMAGES as error:
        fault = str(damage_error(product, f"its counts are no counts ({error})"))
        return Finished(slide_id, SlideState.FAILED, 0, fault=fault)
    except MemoryError:
        fault = f"{product}: needs more memory than there is; look at it on a larger machine"
        return Finished(slide_id, SlideState.FAILED, 0, fault=fault)
    except OSError as error:
        fault = f"{product}: cannot be read ({error.strerror or error}); ask its owner to let you"
        return Finished(slide_id, SlideState.FAILED, 0, fault=fault)


def _list_under_way(folder: Path) -> tuple[UnderWay, ...]:
    """List the hidden folder: unfinished work, and locks that are held before there is any."""
    hidden = folder / HIDDEN
    staged = {
        match[1]: path
        for path in sorted((hidden / "staging").glob("*"))
        if (match := STAGED.fullmatch(path.name))
    }
    locked = {path.stem for path in (hidden / "locks").glob("[!.]*.lock")}
    found = []
    for name in sorted(staged.keys() | locked):
        owner = read_owner(folder / name)
        is_alive = is_owner_alive(owner)
        if name in staged or is_alive is not False:
            blocks = _count_blocks(staged[name]) if name in staged else (0, None)
            found.append(UnderWay(name.removesuffix(STORE_SUFFIX), *blocks, owner, is_alive))
    return tuple(found)


def _count_blocks(folder: Path) -> tuple[int, int | None]:
    """Blocks done and blocks of all; None while that is not known."""
    product = folder / "product"
    try:
        if not (folder / "prepared").exists():
            return 0, None
        is_prediction = (product / PREDICTIONS).is_dir()
        place = (product / PREDICTIONS, LOGIT) if is_prediction else (product, "patches")
        array = open_array(*place)
        blocks = count_blocks(int(array.shape[0]), int(array.chunks[0]))
    except (StoreError, EnvironmentFault, OSError, *DAMAGES):
        return 0, None  # finished or thrown away while we looked, damaged, or for others' eyes
    return sum(1 for _ in (folder / "blocks").glob("*.json")), blocks


def is_owner_alive(owner: str | None) -> bool | None:
    """Return True if the process that owns a lock lives; None if it is on another machine."""
    match = OWNER.fullmatch(owner or "")
    if not match:
        return False if owner is None else None
    return is_process_alive(int(match[1])) if match[2] == socket.gethostname() else None


def _read_failures(folder: Path) -> tuple[Failure, ...]:
    stem, _, suffix = FAILURES_CSV.rpartition(".")
    found: list[Failure] = []
    for path in sorted(folder.glob(f"{stem}*.{suffix}")):
        with suppress(OSError, ValueError, csv.Error, KeyError):
            text = read_bounded(path, MAX_RECORD_BYTES).decode()
            found += [
                Failure(unshield(row["slide_id"]), row["state"], unshield(row["reason"]))
                for row in csv.DictReader(io.StringIO(text, newline=""), restval="")
            ]
    return tuple(found)


def read_live(folder: Path, events: Sequence[Mapping[str, Any]]) -> LiveRun | None:
    """Return the last run of a folder by its log of `events`; None where there was none.

    The shares of an array job that are under way count as one run.
    """
    if (last := _find_last_run(events)) is None:
        return None
    begun, run = last
    shares = read_progress(folder)
    runs = {str(share.get("run")) for share in shares} or {begun["run"]}
    failures = [
        _take_failure(str(event.get("slide")), str(event.get("message", "")))
        for event in events
        if event["run"] in runs
        and event["event"] == "slide ended"
        and event.get("state") == SlideState.FAILED
    ]
    return LiveRun(
        is_under_way=bool(shares),
        ending=run.ending,
        slides=int(_add_up(shares, "slides") or run.slides),
        slides_ended=sum(e["run"] in runs and e["event"] == "slide ended" for e in events),
        patches_done=int(_add_up(shares, "patches_done") or 0) if shares else None,
        patches_expected=_add_up(shares, "patches_expected"),
        rate=_add_up(shares, "rate"),
        seconds_left=max(_list_numbers(shares, "seconds_left"), default=None),
        slides_under_way=_list_under_way(folder) if shares else (),
        failures=tuple(failures),
    )


def _take_failure(slide_id: str, message: str) -> Failure:
    return Failure(slide_id, SlideState.FAILED, message.removeprefix(f"{slide_id}: "))


def _list_numbers(shares: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = [share.get(name) for share in shares]
    return [value for value in values if isinstance(value, int | float)]


def _add_up(shares: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the sum over the shares that know the figure; None where none does."""
    known = _list_numbers(shares, name)
    return sum(known) if known else None


def _read_last_run(folder: Path) -> LastRun | None:
    """By the log of events; where there is none, by run.json."""
    found = _find_last_run(read_events(folder))
    return _read_run_json(folder) if found is None else found[1]


def _find_last_run(
    events: Sequence[Mapping[str, Any]],
) -> tuple[Mapping[str, Any], LastRun] | None:
    """Return the event with which the last run began, and the run; None where none did."""
    begun = next((event for event in reversed(events) if event["event"] == "run begun"), None)
    if begun is None:
        return None
    own = [event for event in events if event["run"] == begun["run"]]
    last = own[-1]
    return begun, LastRun(
        began=begun["time"],
        command=str(begun.get("command", "")),
        ending={"run ended": "ended", "run stopped": "stopped"}.get(last["event"])
        or _guess_ending(begun),
        account=str(last.get("account", "")),
        slides=slides if isinstance(slides := begun.get("slides"), int) else 0,
        slides_ended=sum(event["event"] == "slide ended" for event in own),
        reason=str(last.get("reason", "")),
    )


def _guess_ending(begun: Mapping[str, Any]) -> str:
    """Return the ending of a run that did not record it."""
    if begun.get("host") != socket.gethostname() or not isinstance(begun.get("process"), int):
        return "begun"
    return "under way" if is_process_alive(begun["process"]) else "killed"


def _read_run_json(folder: Path) -> LastRun | None:
    try:
        record = read_json(folder / RUN_JSON, MAX_RECORD_BYTES)
        outcomes = len(record["outcomes"])
        return LastRun("", "infer", "ended", str(record["account"]), outcomes, outcomes)
    except (OSError, ValueError, KeyError, TypeError):
        return None
