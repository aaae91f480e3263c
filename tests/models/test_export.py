"""Exports give the checkpoint's probabilities in other programs; model folders of others run where
they are trusted.
"""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders import make_checkpoint, make_patches, paint_noise, write_model, write_slide
from tests.commands import HERE, PLAIN, infer, run
from wsi_pipeline.core.calibration import Calibration, ModelTerms, Terms
from wsi_pipeline.core.errors import ConfigError, ModelError, StoreError
from wsi_pipeline.core.geometry import PatchSpec
from wsi_pipeline.models import export
from wsi_pipeline.models.architectures import build_network
from wsi_pipeline.models.architectures.network import positive_logit
from wsi_pipeline.models.checkpoint import Checkpoint
from wsi_pipeline.models.choice import ExternalModelTerms
from wsi_pipeline.models.loading import load_model, load_unchanged
from wsi_pipeline.models.model import normalise
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.models.predictor import Predictor
from wsi_pipeline.models.zoo import load_external, parse_zoo_config
from wsi_pipeline.scheduling import Workers
from wsi_pipeline.stages import export_model as exporting
from wsi_pipeline.stages.export_model import export_model
from wsi_pipeline.store.commit import Staging
from wsi_pipeline.store.manifest import find_damage
from wsi_pipeline.store.slide_results import open_result

ONNX = pytest.param("onnx", marks=pytest.mark.system)


def varied() -> np.ndarray:
    """Patches of noise, from black to bright."""
    return (make_patches(40) * np.linspace(0, 1, 40)[:, None, None, None]).astype(np.uint8)


def lively(logits: int = 1, temperature: float = 1.7) -> Checkpoint:
    """A checkpoint whose probabilities differ from patch to patch: its logits of `varied` have a
    mean of 0 and a deviation of 2.
    """
    torch.manual_seed(3)
    on_grid = Terms(Calibration(2.0, 0.5), context_um=25)  # which no other program knows
    alone = Terms(Calibration(1 / temperature, -0.3))
    plain = make_checkpoint(terms=ModelTerms(on_grid, alone))
    network = build_network("wide_resnet_10_1", 50, NetworkOptions(logits=logits)).eval()
    weights = network.state_dict()
    weights["classifier.bias"].zero_()
    weights["classifier.weight"][: logits - 1] = -weights["classifier.weight"][
        -1
    ]  # no large logits whose difference loses digits
    with torch.inference_mode():
        logit = positive_logit(network(normalise(torch.from_numpy(varied()), plain.normalisation)))
    scale = 2 / float(logit.std())
    weights["classifier.weight"] *= scale
    weights["classifier.bias"][-1] = -scale * float(logit.mean())
    changes = {
        "architecture": "wide_resnet_10_1",
        "weights": weights,
        "options": NetworkOptions(logits=logits),
    }
    return Checkpoint(**plain.__dict__ | changes)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model" / "model.safetensors", lively())


def trust(folder: Path) -> str:
    return "sha256:" + hashlib.sha256((folder / "torchscript_model.pt").read_bytes()).hexdigest()


def probabilities(model: Path, terms: ExternalModelTerms | None = None) -> np.ndarray:
    return Predictor(load_model(model, terms))(varied())


def test_the_compared_patches_tell_networks_apart(model: Path) -> None:
    assert np.ptp(probabilities(model)) > 0.1


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("logits", [1, 2])
def test_torchscript_read_back_as_a_foreign_folder_gives_the_same_probabilities(
    is_inside: bool, logits: int, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m.safetensors", lively(logits))
    export_model(model, ["torchscript"], tmp_path / "zoo", is_normalised_inside=is_inside)
    foreign = probabilities(tmp_path / "zoo", ExternalModelTerms(trust(tmp_path / "zoo")))
    assert np.abs(foreign - probabilities(model)).max() < 1e-6


@pytest.mark.parametrize("name", [ONNX, "pt2"])
def test_other_formats_are_compared_when_they_are_written(
    name: str, model: Path, tmp_path: Path
) -> None:
    done = export_model(model, [name], tmp_path / "out")
    assert 0 <= done.differences[name] < 1e-5
    assert done.files[0].is_file()
    assert find_damage(tmp_path / "out") == []


@pytest.mark.system
def test_the_script_runs_without_this_package(model: Path, tmp_path: Path) -> None:
    export_model(model, ["torchscript"], tmp_path / "zoo", is_normalised_inside=True)
    np.save(tmp_path / "patches.npy", make_patches(6))
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.modules['wsi_pipeline'] = None;"
        " import json, numpy, torch; network = torch.jit.load('zoo/torchscript_model.pt'); x ="
        " torch.from_numpy(numpy.load('patches.npy')).permute(0, 3, 1, 2) / 255;"
        " print(json.dumps(network(x).softmax(1)[:, 1].tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == pytest.approx(
        Predictor(load_model(model))(make_patches(6)).tolist(), abs=1e-6
    )


def read_everything(path: Path) -> bytes:
    """A file's bytes, with those of its members where it is a zip."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return path.read_bytes() + b"".join(archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("name", ["torchscript", ONNX, "pt2"])
def test_an_export_does_not_tell_where_it_was_made_and_comes_out_the_same_again(
    name: str, model: Path, tmp_path: Path
) -> None:
    file = export_model(model, [name], tmp_path / "one").files[0]
    content = read_everything(file)
    for place in (
        Path.cwd(),
        Path(export.__file__).parents[1],
        Path(torch.__file__).parents[1],
        Path(sys.prefix),
        tmp_path,
    ):
        assert str(place).encode() not in content
    if name != "torchscript":  # whose classes are numbered on within a process
        assert (
            export_model(model, [name], tmp_path / "two").files[0].read_bytes() == file.read_bytes()
        )


def test_the_configuration_is_the_zoos(model: Path, tmp_path: Path) -> None:
    export_model(model, ["torchscript"], tmp_path / "zoo")
    assert json.loads((tmp_path / "zoo" / "config.json").read_text()) == {
        "spec_version": "1.0",
        "architecture": "wide_resnet_10_1",
        "num_classes": 2,
        "class_names": ["negative", "positive"],
        "patch_size_pixels": 50,
        "spacing_um_px": 0.5,
        "transform": [
            {"name": "Resize", "arguments": {"size": 50}},
            {"name": "ToTensor"},
            {
                "name": "Normalize",
                "arguments": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            },
        ],
    }


def test_an_export_keeps_the_mark_of_a_leak_and_the_hashes_of_its_patients(tmp_path: Path) -> None:
    split = {
        "random": True,
        "patients_on_both_sides": ["anna"],
        "train": ["anna", "bert"],
        "val": ["carl"],
        "test": ["dora"],
    }
    checkpoint = Checkpoint(
        **make_checkpoint().__dict__ | {"is_leaky": True, "training": {"split": split}}
    )
    export_model(
        write_model(tmp_path / "m.safetensors", checkpoint), ["torchscript"], tmp_path / "zoo"
    )
    foreign = load_external(tmp_path / "zoo", trust(tmp_path / "zoo"))
    assert foreign.is_leaky
    assert foreign.to_json()["is_leaky"] is True
    assert foreign.to_json()["seen_patients"] == sorted(
        hashlib.sha256(name).hexdigest()[:16] for name in (b"anna", b"bert", b"carl")
    )
    assert "anna" not in (tmp_path / "zoo" / "config.json").read_text()
    assert "LEAKY" in run("model", "info", tmp_path / "zoo").output
    write_slide(tmp_path / "slides" / "s.tiff", paint_noise(100, 100))
    arguments = (
        "--slides",
        tmp_path / "slides",
        "--results-dir",
        tmp_path / "r",
        "--trust-model",
        trust(tmp_path / "zoo"),
        *PLAIN,
        "--workers",
        0,
    )
    assert "LEAKY: split at random" in run("infer", "--model", tmp_path / "zoo", *arguments).output
    assert open_result(tmp_path / "r" / "s").attributes["model"]["is_leaky"] is True


def test_an_export_that_differs_is_not_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = export.FORMATS["torchscript"]

    def write_another(_network: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
        other = export.ExportedNetwork(lively(temperature=1.0), None).eval()
        honest.write(other, example, path)

    monkeypatch.setitem(
        export.FORMATS, "torchscript", export.ExportFormat(honest.file, write_another, honest.read)
    )
    with pytest.raises(ModelError, match="differ from the checkpoint's by"):
        export_model(model, ["torchscript"], tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()
    assert list(tmp_path.rglob("torchscript_model.pt")) == []


def test_no_number_is_no_agreement() -> None:
    with pytest.raises(ModelError, match="nothing was kept"):
        exporting._check_difference("onnx", float("nan"))


def test_the_same_export_is_not_made_twice_and_another_does_not_mix_in(
    model: Path, tmp_path: Path
) -> None:
    export_model(model, ["torchscript"], tmp_path / "zoo")
    assert export_model(model, ["torchscript"], tmp_path / "zoo").is_resumed_whole
    with pytest.raises(StoreError, match="is_normalised_inside"):
        export_model(model, ["torchscript"], tmp_path / "zoo", is_normalised_inside=True)


def test_an_unknown_format_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format 'pickle'"):
        export_model(model, ["pickle"], tmp_path / "zoo")


def test_force_does_not_put_an_export_in_the_models_place(model: Path) -> None:
    staging = Staging(model.parent, {"a": "training"})
    staging.begin()
    model.rename(staging.product / model.name)
    staging.commit("wsi training", {})
    with pytest.raises(StoreError, match="is a wsi training, no wsi export"):
        export_model(model.parent, ["torchscript"], model.parent, force=True)
    assert find_damage(model.parent) == []
    with pytest.raises(StoreError, match="lies inside a finished wsi training"):
        export_model(model.parent, ["torchscript"], model.parent / "exported", force=True)


def test_without_onnx_the_remedy_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"pip install 'wsi-pipeline\[export\]'"):
        export_model(model, ["onnx"], tmp_path / "zoo")


class Constant(torch.nn.Module):
    """Red channel of the first pixel, spread over `outputs` as 0, 1, 2 … times itself."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            x[:, 0, 0, 0, None] * torch.arange(self.outputs, dtype=torch.float32)
            if self.outputs > 1
            else x[:, 0, 0, :1]
        )


def make_zoo(folder: Path, names: list[str], outputs: int | None = None, **changes: object) -> Path:
    """A model folder of somebody else, whose network is a `Constant`."""
    import warnings

    folder.mkdir(parents=True)
    config = {
        "spec_version": "1.0",
        "architecture": "constant",
        "num_classes": len(names),
        "class_names": names,
        "patch_size_pixels": 4,
        "spacing_um_px": 0.5,
        "transform": [{"name": "ToTensor"}],
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Constant(outputs or len(names)), torch.rand(2, 3, 4, 4)).save(
            folder / "torchscript_model.pt"
        )
    return folder


def of_red(folder: Path, positive: str | None = None) -> float:
    """The probability of a patch that is all red."""
    pixels = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    return float(Predictor(load_external(folder, trust(folder), positive))(pixels)[0])


def test_one_output_goes_through_a_sigmoid(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["Tumor"])
    assert of_red(folder) == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert load_external(folder, trust(folder)).class_names == ("not Tumor", "Tumor")


def test_two_outputs_go_through_a_softmax_and_the_last_is_positive(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["Other", "Tumor"])
    assert of_red(folder) == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert of_red(folder, "Other") == pytest.approx(1 / (1 + np.exp(1)), abs=1e-6)
    assert load_external(folder, trust(folder), "Other").class_names == ("Tumor", "Other")


def test_of_three_classes_one_must_be_called_positive(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b", "c"])
    with pytest.raises(ModelError, match="name the positive one with --positive-class"):
        load_external(folder, trust(folder))
    assert of_red(folder, "b") == pytest.approx(np.exp(1) / (1 + np.exp(1) + np.exp(2)), abs=1e-6)
    with pytest.raises(ModelError, match="no class 'd'"):
        load_external(folder, trust(folder), "d")


@pytest.mark.parametrize("positive", ["a", "b", "c"])
def test_the_sigmoid_of_the_logit_is_the_softmax_of_three_classes(
    positive: str, tmp_path: Path
) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b", "c"])
    model = load_external(folder, trust(folder), positive)
    output = torch.tensor([[0.3, -1.0, 2.0], [-40.0, 30.0, 35.0], [0.0, 0.0, 0.0]])
    expected = torch.softmax(output, dim=1)[:, model.positive_index]
    assert torch.sigmoid(model.logit(output)) == pytest.approx(expected, rel=1e-5)


def test_the_positive_class_is_part_of_the_digest(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b"])
    assert (
        load_external(folder, trust(folder), "a").digest
        != load_external(folder, trust(folder), "b").digest
    )


def test_torchscript_is_refused_with_its_digest(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b"])
    with pytest.raises(ModelError, match=f"--trust-model {trust(folder)}$"):
        load_external(folder, None)


def test_another_file_than_the_trusted_one_is_refused_unrun(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b"])
    before = trust(folder)
    (folder / "torchscript_model.pt").write_bytes(b"something else")
    with pytest.raises(ModelError, match="not the one given with --trust-model"):
        load_external(folder, before)


@pytest.mark.parametrize("text", ["yes", "sha256:abc", "md5:" + "0" * 64, ""])
def test_trust_needs_a_whole_digest(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a digest"):
        load_external(make_zoo(tmp_path / "zoo", ["a", "b"]), text)


def test_a_model_swapped_during_a_run_is_found(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="has changed since the run began"):
        load_unchanged(path, "0" * 64)


def test_outputs_that_contradict_the_configuration_are_refused(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b"], outputs=3)
    with pytest.raises(ModelError, match=r"gives \(2, 3\) for 2 patches and 2 classes"):
        Predictor(load_external(folder, trust(folder)))


def test_a_trusted_file_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b"])
    (folder / "torchscript_model.pt").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="cannot be loaded as TorchScript"):
        Predictor(load_external(folder, trust(folder)))


def test_patches_are_resized_as_the_configuration_says(tmp_path: Path) -> None:
    steps = [{"name": "Resize", "arguments": {"size": 2}}, {"name": "ToTensor"}]
    config = load_external(
        make_zoo(tmp_path / "zoo", ["a", "b"], transform=steps), trust(tmp_path / "zoo")
    ).config
    assert config.prepare(
        torch.full((1, 4, 4, 3), 51, dtype=torch.uint8)
    ).flatten().tolist() == pytest.approx([0.2] * 12)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"spec_version": "2.0"}, "spec_version is '2.0'"),
        ({"num_classes": 3}, "they must agree"),
        ({"class_names": []}, "list of different names"),
        ({"class_names": ["a", "a"]}, "list of different names"),
        ({"architecture": None}, "architecture must be a name"),
        ({"patch_size_pixels": "50"}, "whole number"),
        ({"patch_size_pixels": 10**6}, "patch size is 1000000"),
        ({"spacing_um_px": None}, "a number"),
        ({"spacing_um_px": -1}, "mpp is -1"),
        ({"wsi": {"is_leaky": "no"}}, "wsi must hold is_leaky"),
        ({"wsi": None}, "wsi must hold is_leaky"),
        ({"transform": None}, "list of steps"),
        ({"transform": [{"name": "CenterCrop"}]}, "it must be ToTensor"),
        (
            {"transform": [{"name": "Resize", "arguments": {"size": 10**6}}, {"name": "ToTensor"}]},
            "Resize has the size 1000000",
        ),
        (
            {
                "transform": [
                    {"name": "ToTensor"},
                    {"name": "Normalize", "arguments": {"mean": [0.5]}},
                ]
            },
            "lists mean and std",
        ),
        (
            {
                "transform": [
                    {"name": "ToTensor"},
                    {"name": "Normalize", "arguments": {"mean": [0, 0, 0], "std": [1, 0, 1]}},
                ]
            },
            "positive dev",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(
    changes: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b"], **changes)
    with pytest.raises(ModelError, match=fault) as caught:
        load_external(folder, trust(folder))
    assert "config.json" in str(caught.value)


def test_the_plain_configuration_is_read() -> None:
    value = {
        "spec_version": "1.0",
        "architecture": "r",
        "num_classes": 1,
        "class_names": ["x"],
        "patch_size_pixels": 350,
        "spacing_um_px": 0.25,
        "transform": [{"name": "ToTensor"}],
    }
    config = parse_zoo_config(value)
    assert (config.spec, config.resized_px, config.normalisation) == (
        PatchSpec(350, 350, 0.25),
        None,
        None,
    )


@pytest.mark.parametrize(
    "workers",
    [HERE, pytest.param(Workers(count=1), marks=pytest.mark.system)],
    ids=["loop", "process"],
)
def test_a_foreign_folder_gives_the_slides_of_its_checkpoint(
    workers: Workers, model: Path, tmp_path: Path
) -> None:
    write_slide(tmp_path / "slides" / "s.tiff", paint_noise(300, 300))
    export_model(model, ["torchscript"], tmp_path / "zoo")
    infer(tmp_path / "slides", model, tmp_path / "own")
    account = infer(
        tmp_path / "slides",
        tmp_path / "zoo",
        tmp_path / "foreign",
        trust_model=trust(tmp_path / "zoo"),
        workers=workers,
    )
    assert account.exit_code == 0
    one, other = (open_result(tmp_path / name / "s").alone for name in ("own", "foreign"))
    assert len(one) == 36
    assert np.abs(one - other).max() < 1e-6


def test_infer_refuses_an_untrusted_folder_before_any_slide(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b"])
    write_slide(tmp_path / "slides" / "s.tiff", paint_noise(100, 100))
    done = run(
        "infer",
        "--slides",
        tmp_path / "slides",
        "--model",
        folder,
        "--results-dir",
        tmp_path / "results",
    )
    assert done.exit_code == 1
    assert trust(folder) in done.output
    assert not (tmp_path / "results" / "s").exists()


def test_trust_is_for_foreign_folders_alone(model: Path) -> None:
    done = run("model", "check", model, "--trust-model", "sha256:" + "0" * 64)
    assert done.exit_code == 1
    assert "are for such models only" in " ".join(done.output.split())


def test_export_prints_the_difference(model: Path, tmp_path: Path) -> None:
    done = run("export", model.parent, "--to", "torchscript", "--out", tmp_path / "zoo")
    assert done.exit_code == 0
    assert "torchscript: largest difference from the checkpoint" in done.output


def test_model_info_says_what_the_card_holds(tmp_path: Path) -> None:
    model = write_model(
        tmp_path / "m.safetensors", Checkpoint(**lively().__dict__ | {"is_leaky": True})
    )
    text = run("model", "info", model).output
    for part in (
        "wide_resnet_10_1",
        "50 px at 0.5 µm/px",
        "positive: positive",
        "77,265",
        "context 25 µm, slope 2.000, offset +0.500, counted from 0.500, detected from 0.500",
        "slope 0.588, offset -0.300, counted from 0.500, detected from 0.500",
        "set by a test",
        "LEAKY",
    ):
        assert part in text
    facts = json.loads(run("model", "info", model, "--json").output)
    assert (facts["parameters"], facts["is_leaky"], facts["digest"]) == (
        77265,
        True,
        load_model(model).digest,
    )


def test_model_info_of_a_foreign_folder_names_its_digest_and_runs_nothing(tmp_path: Path) -> None:
    folder = make_zoo(tmp_path / "zoo", ["a", "b"])
    (folder / "torchscript_model.pt").write_bytes(b"no zip")
    assert trust(folder) in run("model", "info", folder).output


def test_model_check_says_ok_or_the_fault(model: Path) -> None:
    assert "ok: wide_resnet_10_1" in run("model", "check", model).output
    content = bytearray(model.read_bytes())
    content[-50] ^= 1
    model.write_bytes(content)
    done = run("model", "check", model)
    assert done.exit_code == 1
    assert "damaged (checksum)" in done.output


def test_infer_says_that_a_model_is_leaky(tmp_path: Path) -> None:
    model = write_model(
        tmp_path / "m.safetensors", Checkpoint(**make_checkpoint().__dict__ | {"is_leaky": True})
    )
    write_slide(tmp_path / "slides" / "s.tiff", paint_noise(100, 100))
    done = run(
        "infer",
        "--slides",
        tmp_path / "slides",
        "--model",
        model,
        "-o",
        tmp_path / "r",
        *PLAIN,
        "--workers",
        0,
    )
    assert "LEAKY: split at random" in done.output
    assert json.loads((tmp_path / "r" / "run.json").read_text())["model"]["is_leaky"] is True
