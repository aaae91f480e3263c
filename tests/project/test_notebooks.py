"""Every notebook of examples/ runs from its first cell to its last, on data that it makes itself;
committed, it holds no outputs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from tests import ROOT
from wsi_pipeline.models.checkpoint import load_checkpoint

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
EXECUTE = "from nbclient.cli import main; main()"


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text())
    return notebook


def list_code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_notebook(name: str, place: Path) -> tuple[Path, str]:
    """Run a notebook by this Python with this tree's package; return the folder that it made and
    all that it printed. A warning, or anything else on stderr, is a fault.
    """
    copy = Path(shutil.copy(ROOT / "examples" / name, place))
    folders = ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")
    for folder in folders:
        (place / folder).mkdir()
    environment = {folder: str(place / folder) for folder in folders} | {
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this Python, whatever else is installed
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(":"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, "--inplace", "--kernel_name=python3", str(copy)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = [output for cell in list_code(read(copy)) for output in cell["outputs"]]
    streams = [output for output in outputs if output["output_type"] == "stream"]
    text = dict.fromkeys(("stdout", "stderr"), "")
    for stream in streams:
        text[stream["name"]] += "".join(stream["text"])
    assert text["stderr"] == ""
    (made,) = (place / "TMPDIR").glob("wsi-*")
    return made, text["stdout"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_committed_notebook_holds_no_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = list_code(notebook)
    assert len(code) > 5
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert all(re.fullmatch(r"[a-z-]+", cell["id"]) for cell in notebook["cells"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_says_where_its_reader_puts_a_study_and_leads_to_pages(path: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in read(path)["cells"])
    assert "or yours: Path(" in text
    assert "For research, not for diagnosis." in text
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (path.parent / link).is_file()] == []


@pytest.mark.system
def test_results_in_python(tmp_path: Path) -> None:
    made, printed = run_notebook("results_in_python.ipynb", tmp_path)
    assert printed.startswith("4 slides: 3 ok, 1 empty\n")
    joined = pd.read_csv(made / "joined.csv").set_index("patient")
    assert joined.index.tolist() == ["P1", "P1", "P2", "P3", "P4"]
    assert joined["found_in"].tolist() == ["both", "both", "both", "left_only", "right_only"]
    assert joined.loc["P3", "positives_estimate":"positives_high"].isna().all()
    patients = pd.read_csv(made / "patients.csv", index_col="patient")
    assert patients["slides"].tolist() == [2, 1, 1, 0]
    assert patients["positive_share"].isna().tolist() == [False, False, True, True]
    assert patients["grade"].isna().tolist() == [False, True, True, False]


@pytest.mark.system
def test_from_a_qupath_export_to_a_model(tmp_path: Path) -> None:
    made, printed = run_notebook("qupath_to_model.ipynb", tmp_path)
    assert printed.startswith("6 slides: 6 ok\n")
    assert load_checkpoint(made / "model" / "model.safetensors").class_names == ("benign", "tumour")
    split = json.loads((made / "model" / "split.json").read_text())
    assert split["test"] == ["P5"]
    assert sorted(split["train"] + split["val"]) == ["P1", "P2", "P3", "P4"]
    evaluation = json.loads((made / "results" / "evaluation.json").read_text())
    assert evaluation["scores"]["auroc"] > 0.9
