"""Every example runs as its first lines say, on small made data."""

import ast
import re
import runpy
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from tests import ROOT
from tests.builders import write_png, write_slide
from wsi_pipeline.models.checkpoint import load_checkpoint

pytestmark = pytest.mark.system

EXAMPLES = ROOT / "examples"
MAX_STATEMENTS = 66


def run_example(name: str, *arguments: object) -> list[str]:
    """The lines that an example prints; it must end well."""
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def last_number(line: str) -> float:
    return float(re.findall(r"[-+]?\d+\.\d+", line)[-1])


def write_patches(folder: Path, patients: int) -> None:
    """Twelve patches of each patient in the IDC set's layout; positive ones are violet, negative
    ones pink.
    """
    rng = np.random.default_rng(0)
    for patient in range(patients):
        for index in range(12):
            label = index % 2
            base = np.array([(225, 140, 200), (120, 60, 150)][label])
            pixels = np.clip(base + rng.integers(-20, 21, (50, 50, 3)), 0, 255).astype(np.uint8)
            x, y = 1 + 50 * (index % 4), 1 + 50 * (index // 4)
            write_png(
                folder / str(patient) / str(label) / f"{patient}_idx5_x{x}_y{y}_class{label}.png",
                pixels,
            )


def test_idc_end_to_end(tmp_path: Path) -> None:
    write_patches(tmp_path / "patches", patients=6)
    slide = np.full((400, 400, 3), (225, 140, 200), dtype=np.uint8)
    slide[:, 200:] = (120, 60, 150)
    write_slide(tmp_path / "slides" / "5.tiff", slide, mpp=4.0)
    mask = np.full((400, 400), 100, dtype=np.uint8)
    mask[:, 200:] = 200
    write_png(tmp_path / "labels" / "5_labels.png", mask)
    command = [
        sys.executable,
        EXAMPLES / "idc_end_to_end.py",
        tmp_path / "patches",
        tmp_path / "out",
        "--test-patients",
        "5",
    ]
    places = ["--slides", tmp_path / "slides", "--labels", tmp_path / "labels", "--epochs", "3"]
    done = subprocess.run(
        [*map(str, command), *map(str, places)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "72 patches of 6 patients, 0 files left out"
    assert "1 slide: 1 ok" in lines
    assert lines[-1].startswith("all slides: AUROC 1.000")


def write_idx(
    folder: Path, part: str, pictures: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(
        struct.pack(">4i", 0x803, *pictures.shape) + pictures.tobytes()
    )
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(
        struct.pack(">2i", 0x801, len(labels)) + labels.tobytes()
    )


def enlarge_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Real digits of 8 × 8 pixels, as large as MNIST's: 24 × 24 with a border."""
    digits = load_digits()
    pictures = np.kron(digits.images * 15, np.ones((3, 3))).astype(np.uint8)
    return np.pad(pictures, ((0, 0), (2, 2), (2, 2))), digits.target.astype(np.uint8)


def test_mnist_learns_digits_of_idx_files(tmp_path: Path) -> None:
    pictures, labels = enlarge_digits()
    write_idx(tmp_path / "mnist", "train", pictures[:1500], labels[:1500])
    write_idx(tmp_path / "mnist", "t10k", pictures[1500:], labels[1500:])
    lines = run_example("mnist_cnn.py", tmp_path / "mnist", tmp_path / "out", "--epochs", 5)
    assert lines[-1].startswith("accuracy on 297 held-out digits: 0.")
    assert last_number(lines[-1]) > 0.7
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.png",
        "history.svg",
    }


def test_mnist_is_right_on_95_of_100_held_out_digits(shared_data: Path, tmp_path: Path) -> None:
    lines = run_example("mnist_cnn.py", shared_data / "mnist", tmp_path / "out", "--epochs", 2)
    assert lines[-1].startswith("accuracy on 2000 held-out digits: ")
    assert last_number(lines[-1]) >= 0.95


def write_biopsies(path: Path, rows: int) -> Path:
    """Benign rows have low grades, malignant ones high; every 50th row has a question mark."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(rows):
        is_malignant = number % 3 == 0
        grades = [str(grade) for grade in rng.integers(5, 11, 9) if is_malignant] or [
            str(grade) for grade in rng.integers(1, 6, 9)
        ]
        if number % 50 == 49:
            grades[5] = "?"
        lines.append(",".join([str(1000 + number), *grades, "4" if is_malignant else "2"]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_wisconsin_leaves_out_rows_with_question_marks_and_learns(tmp_path: Path) -> None:
    table = write_biopsies(tmp_path / "table.data", 700)
    lines = run_example(
        "wisconsin_mlp.py", table, tmp_path / "out", "--rate", 0.5, "--iterations", 400
    )
    assert lines[0].startswith("686 rows")
    accuracies = re.findall(r"validation threshold 0.5: accuracy ([\d.]+)", "\n".join(lines))
    assert float(accuracies[0]) > 0.98
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cost.png", "confusion.png"}


@pytest.mark.parametrize(
    ("rate", "iterations", "training", "validation"),
    [(0.01, 15_000, 0.96, 1.0), (0.07, 65_000, 0.998, 0.995)],
)
def test_wisconsin_comes_to_the_published_figures(
    rate: float,
    iterations: int,
    training: float,
    validation: float,
    shared_data: Path,
    tmp_path: Path,
) -> None:
    """Within 0.01: five of the 500 training rows, two of the 183 others."""
    table = shared_data / "wisconsin" / "breast-cancer-wisconsin.data"
    lines = run_example(
        "wisconsin_mlp.py", table, tmp_path / "out", "--rate", rate, "--iterations", iterations
    )
    assert lines[0].startswith("683 rows")
    differences = [float(value) for value in re.findall(r"\d\.\de-\d+", "\n".join(lines[:2]))]
    assert len(differences) == 2
    assert max(differences) < 1e-6
    found = dict(re.findall(r"(\w+) +threshold 0.5: accuracy ([\d.]+)", "\n".join(lines)))
    assert float(found["training"]) == pytest.approx(training, abs=0.01)
    assert float(found["validation"]) == pytest.approx(validation, abs=0.01)


def test_the_guides_first_number_is_the_share_of_negatives(tmp_path: Path) -> None:
    write_patches(tmp_path / "idc", patients=8)
    lines = run_example("idc_cnn_guide.py", tmp_path / "idc", tmp_path / "out", "--epochs", 2)
    published, corrected = lines[1:3], lines[4:6]
    assert all("loss 0.6931, validation loss 0.6931, AUROC 0.500" in line for line in published)
    assert all("loss 0.6931, validation loss 0.6931" not in line for line in corrected)
    assert "as published: accuracy 0.500; negatives among these patches: 0.500" in lines
    assert lines[-1].startswith("corrected: AUROC")
    assert (tmp_path / "out" / "losses.png").is_file()
    assert (tmp_path / "out" / "model" / "report.html").is_file()


def test_the_wide_resnet_answers_over_rest(tmp_path: Path) -> None:
    write_patches(tmp_path / "idc", patients=6)
    lines = run_example(
        "idc_wide_resnet.py",
        tmp_path / "idc",
        tmp_path / "out",
        "--arch",
        "wide_resnet_10_1",
        "--epochs",
        2,
    )
    assert any(line.startswith("to watch: tensorboard --logdir ") for line in lines)
    assert re.fullmatch(r"served: http://127\.0\.0\.1:\d+/", lines[-2])
    assert re.fullmatch(r"24 patches of validation patients sent, \d+ answers right", lines[-1])
    assert (tmp_path / "out" / "answers.png").is_file()


def write_stained_patients(folder: Path, patients: int) -> None:
    """Every patient has a colour and a class of their own, and the colour says nothing of the
    class.
    """
    rng = np.random.default_rng(0)
    for patient in range(patients):
        colour, rare = rng.integers(60, 220, 3), patient % 2
        for index in range(12):
            label = rare if index else 1 - rare
            pixels = np.clip(colour + rng.integers(-10, 11, (50, 50, 3)), 0, 255).astype(np.uint8)
            write_png(
                folder
                / str(patient)
                / str(label)
                / f"{patient}_idx5_x{1 + 50 * index}_y1_class{label}.png",
                pixels,
            )


def test_folds_of_patches_claim_what_folds_of_patients_do_not_show(tmp_path: Path) -> None:
    write_stained_patients(tmp_path / "idc", patients=12)
    lines = run_example("leak.py", tmp_path / "idc", tmp_path / "out", "--epochs", 4, "--folds", 2)
    assert lines[-5].startswith("144 patches of 12 patients, each evaluated by both")
    claimed, honest, inflation = (
        float(value) for value in re.findall(r"[-+]?\d\.\d+", lines[-4])[:3]
    )
    assert lines[-4].startswith("auroc")
    assert claimed > 0.7
    assert inflation == pytest.approx(claimed - honest, abs=0.0015)
    assert inflation > 0.1
    assert (tmp_path / "out" / "leak.png").is_file()


def test_the_model_in_the_box_is_trained_again_with_its_card(tmp_path: Path) -> None:
    write_patches(tmp_path / "idc", patients=6)
    for old, new in (("0", "8863"), ("1", "8865")):
        (tmp_path / "idc" / old).rename(tmp_path / "idc" / new)
        for path in (tmp_path / "idc" / new).rglob("*.png"):
            path.rename(path.with_name(path.name.replace(f"{old}_idx5", f"{new}_idx5")))
    lines = run_example("train_boxed_model.py", tmp_path / "idc", "--out", tmp_path)
    card = load_checkpoint(tmp_path / "idc.safetensors")
    assert card.training["about"]["seed"] == 0
    assert card.training["split"]["test"] == ["8863", "8865"]
    assert card.scores["held-out slide 8863"]["true"] == 6
    assert sum(line.startswith("held-out slide 8865: auroc ") for line in lines) == 1


def test_learning_rates_draws_every_way(tmp_path: Path) -> None:
    lines = run_example("learning_rates.py", tmp_path / "out", "--epochs", 2, "--grid", 3)
    assert len(lines) == 14
    lowest = {line[:28].strip(): float(line[28:].split()[3].rstrip(",")) for line in lines[:13]}
    assert lowest["momentum"] < lowest["SGD, constant"]
    assert lines[-1].startswith("learning rate finder: ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "curves.png",
        "lr_find.png",
        "landscape.png",
    }


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mnist_cnn.py", "--download"),
        ("wisconsin_mlp.py", "archive.ics.uci.edu"),
        ("idc_cnn_guide.py", "kaggle.com"),
        ("idc_wide_resnet.py", "kaggle.com"),
        ("idc_end_to_end.py", "kaggle.com"),
        ("leak.py", "kaggle.com"),
    ],
)
def test_without_the_data_one_line_says_where_they_are(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (
        ["--test-patients", "1", "--slides", "s", "--labels", "l"]
        if name == "idc_end_to_end.py"
        else []
    )
    monkeypatch.setattr(
        sys, "argv", [name, str(tmp_path / "nothing"), str(tmp_path / "out"), *more]
    )
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    message = str(stopped.value.code)
    assert message.startswith(str(tmp_path / "nothing"))
    assert told in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    """Statements, whatever the length of a line, without imports and docstrings."""
    statements = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom)
    ]
    texts = [
        node
        for node in statements
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    assert len(statements) - len(texts) <= MAX_STATEMENTS


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_the_page_of_examples_links_every_example(path: Path) -> None:
    if path.name not in ("__pycache__", ".ipynb_checkpoints", "README.md"):
        assert f"({path.name})" in (EXAMPLES / "README.md").read_text()
