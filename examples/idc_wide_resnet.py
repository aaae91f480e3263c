"""A wide residual network for IDC patches, from training to an answer over REST.

    python examples/idc_wide_resnet.py IDC OUT

IDC is the folder of the set's <patient>_idx5_x<X>_y<Y>_class<C>.png. WRN-16-2 with a Dense 20 ReLU
and one sigmoid behind it, 80/20 by patient, the set in memory; then `wsi serve` serves the model
and its results on one validation patient, and validation patches are sent to it. Writes OUT/model
with report.html and TensorBoard's events, OUT/results, and OUT/answers.png.
"""

import argparse
import json
import secrets
import subprocess
import sys
from functools import partial
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from matplotlib.figure import Figure

from wsi_pipeline.core.options import IngestOptions
from wsi_pipeline.core.progress import Listener
from wsi_pipeline.models.architectures.network import NetworkOptions
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.runs.infer import infer_slides, list_stores
from wsi_pipeline.runs.tile import ingest_patches
from wsi_pipeline.store.patches import find_stores
from wsi_pipeline.training.config import TrainConfig
from wsi_pipeline.training.data import load_labelled, read_pixels
from wsi_pipeline.training.optimise import Optimisation
from wsi_pipeline.training.report import encode_png
from wsi_pipeline.training.run import train
from wsi_pipeline.training.split import SplitChoice

SOURCE = "https://www.kaggle.com/datasets/paultimothymooney/breast-histopathology-images"


def ask(address: str, pictures: list[bytes]) -> dict:
    """Return the server's answer for PNG images: one form with a file for each."""
    url, _, token = address.partition("?token=")
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="images";'
        ' filename="patch.png"\r\nContent-Type: image/png\r\n\r\n'
    )
    body = (
        b"".join(head.encode() + picture + b"\r\n" for picture in pictures)
        + f"--{boundary}--\r\n".encode()
    )
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": f"multipart/form-data; boundary={boundary}",
    }
    with urlopen(Request(f"{url}api/v1/predict", body, headers)) as answer:
        return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("idc", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", default="wide_resnet_16_2")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    if not any(options.idc.rglob("*_idx5_*.png")):
        raise SystemExit(
            f"{options.idc}: no patches called <patient>_idx5_….png below it; the set is at"
            f" {SOURCE}"
        )
    stores, model = options.out / "stores", options.out / "model" / "model.safetensors"
    ingest_patches(options.idc, stores, IngestOptions(mpp=4.0))
    config = TrainConfig(
        architecture=options.arch,
        network=NetworkOptions(head="dense20"),
        epochs=options.epochs,
        optimisation=Optimisation(ema=0.99, initialisation="he"),
        cache="memory",
    )
    listener = Listener(say=partial(print, flush=True))
    train([stores], model.parent, config, SplitChoice(val_fraction=0.2), listener=listener)

    patches = load_labelled(find_stores([stores]))
    judged = np.flatnonzero(
        np.isin(patches.patients, load_checkpoint(model).training["split"]["val"])
    )
    judged = judged[:: max(1, len(judged) // 24)][:24]
    pixels = read_pixels(patches, judged)
    store = patches.paths[patches.places[judged[0], 0]]
    infer_slides(list_stores([store]), model, options.out / "results")
    command = [
        Path(sys.executable).with_name("wsi"),
        "serve",
        "--results",
        options.out / "results",
        "--model",
        model,
        "--port",
        "0",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        print(f"served: {address.partition('?')[0]}")
        answer = ask(address, [encode_png(patch) for patch in pixels])
        server.terminate()

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    probabilities = [image["probability"] for image in answer["images"]]
    for axes, patch, label, probability in zip(
        figure.subplots(3, 8).flat, pixels, patches.labels[judged], probabilities, strict=False
    ):
        axes.imshow(patch)
        axes.axis("off")
        is_right = (probability >= answer["threshold"]) == bool(label)
        axes.set_title(
            f"{probability:.2f}, is {label}", color="black" if is_right else "red", fontsize=9
        )
    figure.savefig(options.out / "answers.png")
    called = np.array(probabilities) >= answer["threshold"]
    print(
        f"{len(called)} patches of validation patients sent,"
        f" {np.sum(called == patches.labels[judged])} answers right"
    )


if __name__ == "__main__":
    main()
