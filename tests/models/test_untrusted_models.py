"""Models that strangers made to harm: refused in one line, before memory is taken, before code is
run, and before a slide is opened.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.builders import make_checkpoint, write_model
from tests.commands import PLAIN, run
from tests.strangers import rewrite_card
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.core.recipe import canonical_json, recipe_digest
from wsi_pipeline.models.architectures.network import read_weights
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.loading import load_model
from wsi_pipeline.stages.ingest_layouts import read_stack_table

Send = Callable[[Path], Path]
MEMORY_LIMIT_MB = 700
"""What refusing a bomb may take beyond what the libraries take; a network of a billion weights
takes 4,000.
"""


def put_header(path: Path, header: bytes, length: int | None = None, data: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + data)
    return path


def giant_tensor(folder: Path) -> Path:
    """A tensor of 4 TB that the file does not hold."""
    entry = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    return put_header(
        folder / "m.safetensors", json.dumps({"__metadata__": {"wsi": "{}"}, "a": entry}).encode()
    )


def giant_sparse_tensor(folder: Path) -> Path:
    """A tensor of 400 GB in a file that takes no room on disk, under a card that is whole."""
    path = write_model(folder / "whole.safetensors", make_checkpoint(architecture="idc_cnn"))
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    entry = {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}
    text = json.dumps({"__metadata__": header["__metadata__"], "features.0.weight": entry}).encode()
    return put_header(folder / "m.safetensors", text, data=4 * 10**11)


def endless_header(folder: Path) -> Path:
    return put_header(folder / "m.safetensors", b"{}", length=2**62)


def giant_header(folder: Path) -> Path:
    return put_header(folder / "m.safetensors", b"{" + b" " * 50_000_000 + b"}")


def card_of(text: str) -> Send:
    def send(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        save_file({"a": torch.zeros(2)}, folder / "m.safetensors", metadata={"wsi": text})
        return folder / "m.safetensors"

    return send


def absurd_patch(folder: Path) -> Path:
    """950 million weights, in the card alone."""
    path = write_model(folder / "m.safetensors", make_checkpoint(architecture="idc_cnn"))
    rewrite_card(path, patch={"side_px": 480, "stride_px": 480, "mpp": 0.5})
    return path


def absurd_network(folder: Path) -> Path:
    path = write_model(folder / "m.safetensors")
    rewrite_card(path, architecture="wide_resnet_28_32")
    return path


def endless_self_test(folder: Path) -> Path:
    checkpoint = make_checkpoint()
    tensors = dict(checkpoint.weights) | {
        "self_test.pixels": torch.zeros((5000, 50, 50, 3), dtype=torch.uint8),
        "self_test.probability": torch.zeros(5000),
    }
    path = write_model(folder / "m.safetensors", checkpoint)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
    save_file(tensors, path, metadata=metadata)
    return path


def eight_bit_floats(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(
        {"a": torch.zeros(2).to(torch.float8_e4m3fn)},
        folder / "m.safetensors",
        metadata={"wsi": "{}"},
    )
    return folder / "m.safetensors"


BOMBS: dict[str, tuple[Send, str]] = {
    "a tensor of 4 TB that is not there": (giant_tensor, "not a whole safetensors file"),
    "a tensor of 400 GB in a sparse file": (giant_sparse_tensor, "weights do not fit idc_cnn"),
    "a header of 2^62 bytes": (endless_header, "a header of 4611686018427387904 bytes"),
    "a header of 50 MB": (giant_header, "more than 16777216"),
    "a card 200,000 brackets deep": (card_of("[" * 200_000), "nest too deep"),
    "a card of NaN": (card_of('{"format": NaN}'), "NaN is not JSON"),
    "a card of a number beyond any": (card_of('{"format": 1e999}'), "beyond any number"),
    "a card that is a list": (card_of("[]"), "not a JSON object"),
    "patches of 480 px": (absurd_patch, "weights do not fit idc_cnn"),
    "a network of 1.5 billion weights": (
        absurd_network,
        "weights do not fit wide_resnet_28_32|would have",
    ),
    "a self-test of 5,000 patches": (endless_self_test, "more than 256"),
    "weights of eight bits": (eight_bit_floats, "is of type F8_E4M3"),
}

LOAD_ALL = """
import json, resource, sys
from pathlib import Path
from wsi_pipeline.core.errors import WsiError
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.architectures import outline_network
def used(name):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))
outline_network("idc_cnn", 50)
before = used("VmHWM:")
for path in sys.argv[1:]:
    try:
        load_checkpoint(Path(path))
        print(json.dumps("opened"))
    except WsiError as error:
        print(json.dumps(str(error)))
print(used("VmHWM:") - before)
"""


@pytest.mark.system
def test_bombs_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    sent = [send(tmp_path / str(number)) for number, (send, _) in enumerate(BOMBS.values())]
    answer = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, *map(str, sent)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    *lines, grown = answer.stdout.splitlines()
    refusals = dict(zip(BOMBS, map(json.loads, lines), strict=True))
    unexpected = {
        bomb: refusals[bomb]
        for bomb, (_, fault) in BOMBS.items()
        if not any(part in refusals[bomb] for part in fault.split("|"))
    }
    assert not unexpected
    assert all("\n" not in line and len(line) < 600 for line in refusals.values())
    assert int(grown) < MEMORY_LIMIT_MB


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.proof, "ran"))


def zip_of(
    content: bytes, name: str = "archive/data.pkl", compression: int = zipfile.ZIP_STORED
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.pth", "m.bin", "m.pkl", "m.ckpt"])
@pytest.mark.parametrize("is_zipped", [False, True])
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_is_never_run_whatever_it_is_called(
    name: str, is_zipped: bool, protocol: int, tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    content = pickle.dumps(Payload(proof), protocol)
    (tmp_path / name).write_bytes(zip_of(content) if is_zipped else content)
    for read in (load_model, load_checkpoint, read_weights):
        with pytest.raises(ModelError):
            read(tmp_path / name)
    assert not proof.exists()
    pickle.loads(content)  # the proof that the payload works
    assert proof.exists()


def test_compressed_weights_are_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(zip_of(bytes(10_000_000), compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ModelError, match="compressed entries"):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_pickled_objects_in_numpy_files_are_never_run(kind: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    objects = np.array([Payload(proof)], dtype=object)
    if kind == "npz":
        np.savez(tmp_path / "a.npz", images=objects, labels=objects)
        proof.unlink(missing_ok=True)
        path = tmp_path / "a.npz"
    else:
        np.save(tmp_path / "a_images.npy", objects, allow_pickle=True)
        path = tmp_path / "a_images.npy"
    with pytest.raises(ConfigError, match="without pickled objects"):
        read_stack_table(path)
    assert not proof.exists()


def test_a_numpy_header_of_10_12_images_takes_no_memory(tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**12}, 50, 50, 3), }}"
    padded = header.ljust(117) + "\n"
    (tmp_path / "a_images.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()
    )
    with pytest.raises(ConfigError, match="its images cannot be read"):
        read_stack_table(tmp_path / "a_images.npy")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "other keys": (lambda path: save_file({"a": torch.zeros(2)}, path), "not a checkpoint of wsi"),
    "another patch size": (
        lambda path: rewrite_card(path, patch={"side_px": 64, "stride_px": 64, "mpp": 0.5}),
        "weights do not fit idc_cnn",
    ),
    "a scale of minus one": (
        lambda path: rewrite_card(path, patch={"side_px": 50, "stride_px": 50, "mpp": -1}),
        "mpp is -1",
    ),
    "another network": (
        lambda path: rewrite_card(path, architecture="wide_resnet_16_2"),
        "weights do not fit wide_resnet_16_2",
    ),
    "weights that are NaN": (lambda path: put_nan(path), "not finite"),
    "a cut file": (
        lambda path: os.truncate(path, path.stat().st_size - 1000),
        "not a whole safetensors file",
    ),
    "a flipped bit": (flip, "weights are damaged (checksum)"),
    "a format to come": (
        lambda path: rewrite_card(path, format=99),
        "card format 99, this version of wsi reads 2 to 5; update wsi",
    ),
    "a pickle": (
        lambda path: torch.save(make_checkpoint().weights, path),
        "not a whole safetensors file",
    ),
    "nothing": (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
}


def put_nan(path: Path) -> None:
    checkpoint = make_checkpoint()
    checkpoint.weights["classifier.bias"][0] = float("nan")
    write_model(path, checkpoint)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_model_ends_infer_before_a_slide_is_opened(fault: str, tmp_path: Path) -> None:
    """The slide is a pipe that nobody writes to: whoever opens it waits for ever."""
    spoil, message = FAULTS[fault]
    model = write_model(tmp_path / "m.safetensors", make_checkpoint(architecture="idc_cnn"))
    spoil(model)
    os.mkfifo(tmp_path / "slide.svs")
    results = tmp_path / "results"
    arguments = [
        "infer",
        "--slides",
        tmp_path / "slide.svs",
        "--model",
        model,
        "--results-dir",
        results,
        *PLAIN,
        "--workers",
        0,
    ]
    answer = run(*arguments)
    assert answer.exit_code == 1
    assert message in answer.stderr
    taken, fault = answer.stderr.splitlines()
    assert taken.startswith("taking ")
    assert fault.startswith("wsi: ")
    assert not results.exists()


def test_a_card_is_checked_as_a_whole() -> None:
    card = {"format": 3}
    assert recipe_digest(card) == recipe_digest(json.loads(canonical_json(card)))
