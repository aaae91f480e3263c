"""Networks of users: FILE.py:FUNCTION in training, inference and export, and its conformance."""

import re
from pathlib import Path

import pytest

from tests.builders import make_training_stores, tissue, write_slide
from tests.commands import run
from tests.strangers import rewrite_card
from wsi_pipeline.core.errors import ConfigError, ModelError
from wsi_pipeline.models.architectures import build_network, find_architecture
from wsi_pipeline.models.choice import ExternalModelTerms
from wsi_pipeline.models.conformance import check_conformance
from wsi_pipeline.models.loading import describe_model, load_model
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.models.own_code import read_code

GOOD = """
from torch import nn


def build(side_px, classes, options):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, options["logits"]),
    )
"""
TRAIN = ("--epochs", 1, "--batch-size", 16, "--device", "cpu", "--precision", "fp32")


def write(folder: Path, text: str = GOOD, name: str = "net.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def build_with(line: str) -> str:
    """GOOD with another last line of its function."""
    return f"import torch\nfrom torch import nn\n\n\ndef build(side_px, classes, options):\n{line}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.py and a model that was trained with it."""
    folder = tmp_path_factory.mktemp("own")
    stores, code = make_training_stores(folder / "stores"), write(folder)
    done = run("train", stores, "--arch", f"{code}:build", "--out", folder / "model", *TRAIN)
    assert done.exit_code == 0, done.output
    return folder


def name_in(folder: Path) -> str:
    return f"{folder / 'net.py'}:build"


def digest_of(folder: Path) -> str:
    return f"sha256:{read_code(name_in(folder)).sha256}"


def terms_of(folder: Path, **changes: str | None) -> ExternalModelTerms:
    given = {"trust": digest_of(folder), "code": name_in(folder)} | changes
    return ExternalModelTerms(**given)


def test_a_checkpoint_states_its_code(trained: Path) -> None:
    facts = describe_model(trained / "model")
    assert facts["architecture"] == "net.py:build"
    assert facts["training"]["code"]["text"] == GOOD


def test_the_same_line_has_nothing_to_do(trained: Path) -> None:
    words = ("--arch", name_in(trained), "--out", trained / "model", *TRAIN)
    assert "nothing to do" in run("train", trained / "stores", *words).output


def test_a_named_and_trusted_model_runs_on_slides(trained: Path, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tiff", tissue(300, 200))
    named = ("--arch", name_in(trained), "--trust-model", digest_of(trained))
    where = ("--model", trained / "model", "--out", tmp_path / "results", "--workers", 0)
    done = run("infer", slide, *where, *named, "--device", "cpu", "--allow-upsample")
    assert done.exit_code == 0, done.output


def test_it_is_refused_where_it_is_not_named(trained: Path) -> None:
    remedy = f"add --arch FILE.py:build --trust-model {digest_of(trained)}"
    with pytest.raises(ModelError, match=remedy):
        load_model(trained / "model")


@pytest.mark.parametrize("missing", ["trust", "code"])
def test_both_the_file_and_its_digest_are_needed(trained: Path, missing: str) -> None:
    with pytest.raises(ModelError, match="would run with your rights"):
        load_model(trained / "model", terms_of(trained, **{missing: None}))


def test_a_changed_file_is_refused_and_does_not_run(trained: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    changed = write(tmp_path, f"open({str(mark)!r}, 'w')\n{GOOD}")
    with pytest.raises(ModelError, match="all three must be the same"):
        load_model(trained / "model", terms_of(trained, code=f"{changed}:build"))
    assert not mark.exists()


def test_another_digest_is_refused(trained: Path) -> None:
    with pytest.raises(ModelError, match="all three must be the same"):
        load_model(trained / "model", terms_of(trained, trust="sha256:" + "0" * 64))


def test_another_function_is_refused(trained: Path) -> None:
    with pytest.raises(ModelError, match="was trained with the function build, not other"):
        load_model(trained / "model", terms_of(trained, code=f"{trained / 'net.py'}:other"))


def test_the_text_in_a_checkpoint_is_never_run(trained: Path, tmp_path: Path) -> None:
    """A card of a stranger whose code and digest agree with each other, not with the user's."""
    mark = tmp_path / "ran"
    hostile = f"open({str(mark)!r}, 'w')\n{GOOD}"
    code = read_code(f"{write(tmp_path, hostile)}:build")

    model = tmp_path / "m.safetensors"
    model.write_bytes((trained / "model" / "model.safetensors").read_bytes())
    training = describe_model(model)["training"] | {"code": code.to_json()}
    rewrite_card(model, training=training)
    with pytest.raises(ModelError):
        load_model(model, terms_of(trained))
    assert not mark.exists()


def test_a_name_in_a_card_is_no_reason_to_run_a_file(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    file = write(tmp_path, f"open({str(mark)!r}, 'w')\n{GOOD}")
    with pytest.raises(ModelError, match="runs only where its file is named"):
        find_architecture(f"{file}:build")
    assert not mark.exists()


def test_a_known_network_takes_no_code(tmp_path: Path, trained: Path) -> None:
    from tests.builders import write_model

    with pytest.raises(ConfigError, match="leave out --trust-model"):
        load_model(write_model(tmp_path / "m.safetensors"), terms_of(trained))


def test_export_needs_the_file_too(trained: Path, tmp_path: Path) -> None:
    words = ("export", trained / "model", "--to", "torchscript", "--out", tmp_path / "zoo")
    assert run(*words).exit_code == 1
    named = ("--arch", name_in(trained), "--trust-model", digest_of(trained))
    done = run(*words, *named)
    assert done.exit_code == 0, done.output


def test_verify_does_not_run_the_code(trained: Path) -> None:
    assert run("verify", trained / "model" / "model.safetensors").exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (build_with("    return 3"), "gives a int; return a nn.Module"),
        (build_with("    raise KeyError('depth')"), "build fails: KeyError"),
        (build_with("    raise SystemExit(0)"), "build fails: SystemExit: 0"),
        ("import sys; sys.exit(0)", "build fails: SystemExit: 0"),
        ("def other(): pass", "has no function build"),
        ("def build(:", "build fails: SyntaxError"),
        (build_with("    return nn.Flatten()"), "gives (2, 7500) for 2 patches and --logits 1"),
        (build_with("    return nn.Linear(7, 1)"), "does not take patches"),
    ],
)
def test_files_that_give_no_network_are_refused(tmp_path: Path, text: str, said: str) -> None:
    code = read_code(f"{write(tmp_path, text)}:build")
    with pytest.raises(ModelError, match=re.escape(said)):
        build_network(code.name, 50, NetworkOptions(), code)


def test_a_group_is_held_out_from_an_own_network(trained: Path) -> None:
    stores = sorted(
        path.name.removesuffix(".patches.zarr") for path in (trained / "stores").iterdir()
    )
    for name in stores:
        (trained / f"{name}.tif").touch()
    lines = [f"{name}.tif,{'north' if index % 2 else 'south'}" for index, name in enumerate(stores)]
    (trained / "sheet.csv").write_text("\n".join(["wsi,site", *lines]))
    sites = ("--hold-out-by", "site", "--sheet", trained / "sheet.csv")
    words = ("train", trained / "stores", "--arch", name_in(trained), *sites, *TRAIN)
    done = run(*words, "--out", trained / "sites")
    assert done.exit_code == 0, done.output
    assert (trained / "sites" / "summary" / "held_out.csv").is_file()


def test_a_check_of_a_file_that_ends_the_program_fails(tmp_path: Path) -> None:
    checked = run("model", "check", f"{write(tmp_path, 'raise SystemExit(0)')}:build")
    assert checked.exit_code == 1
    assert "build fails: SystemExit: 0" in checked.output


def test_a_file_without_the_name_of_its_function_is_refused_with_the_remedy(
    tmp_path: Path,
) -> None:
    file = write(tmp_path, "x = 1")
    assert f"is named {file}:FUNCTION" in run("model", "check", file).output


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read as Python"):
        read_code(f"{tmp_path / 'none.py'}:build")


def faults(folder: Path, text: str) -> dict[str, str | None]:
    return dict(check_conformance(read_code(f"{write(folder, text)}:build"), 50))


def test_a_good_network_conforms(tmp_path: Path) -> None:
    assert {key: fault for key, fault in faults(tmp_path, GOOD).items() if fault} == {}


FORWARD = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)
        self.unused = {unused}

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        {line}
        return {returned}


def build(side_px, classes, options):
    return Net()
"""


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"line": "x = x + torch.rand(4)"}, "the same logits again"),
        ({"line": "x = x - x.mean(0)"}, "each patch by itself"),
        ({"unused": "nn.Linear(1, 1)"}, "a gradient for every weight"),
        ({"line": "x = x / 0 * 0"}, "finite logits"),
        ({"line": "x = x * 2 if x.sum() > 0 else x"}, "captured whole, for torch.compile"),
        ({"returned": "torch.tanh(self.last(x)) * torch.relu(self.last(x)).sum(1, True)"}, ""),
    ],
)
def test_what_does_not_fit_is_found(tmp_path: Path, parts: dict[str, str], name: str) -> None:
    text = FORWARD.format(**{"unused": "None", "line": "", "returned": "self.last(x)"} | parts)
    found = {key for key, fault in faults(tmp_path, text).items() if fault}
    assert name in found or (not name and "features, to tell slides unlike it" in found)


def test_the_check_is_one_page_with_an_exit_code(tmp_path: Path) -> None:
    good = run("model", "check", f"{write(tmp_path)}:build")
    assert good.exit_code == 0
    assert good.output.splitlines()[0] == "ok  builds, and gives (4,) for 4 patches of 50 px"
    bad = run("model", "check", f"{write(tmp_path, build_with('    return 3'))}:build")
    assert bad.exit_code == 1
