"""Names of files and of choices that several rooms, or a command and its table, share.

Nothing heavy is imported here, so that `wsi --help` stays fast. Where a room has a table of what a
choice does, a test compares its keys with the names here.
"""

AUTO = "auto"
DEVICES = (AUTO, "cpu", "cuda")
FP32, BF16, FP16 = "fp32", "bf16", "fp16"
PRECISIONS = (FP32, BF16, FP16)
ENGINE_NAMES = ("torch", "torch-compile", "openvino")
CLUSTERS = ("local", "slurm", "cuda")

READER_NAMES = ("imagecodecs", "tiff", "openslide", "image", "fastslide")
LAYOUT_NAMES = ("idc", "folders", "stacks", "csv")
CODECS = ("none", "zstd", "jpeg")
RAW, SRGB = "raw", "srgb"
COLOURS = (RAW, SRGB)
"""Colours of patches: as they stand in the file, or by its profile in sRGB."""
QUALITY_FLAGS = {"pen": 1, "blur": 2, "fold": 4, "bubble": 8}
"""Faults of a patch by name; a patch's flags are the sum of their values."""
LOCAL, OTSU = "local", "otsu"
TISSUE_DETECTORS = (LOCAL, OTSU)
AREAS = ("glass", "tissue", "pen", "border", "fill", "uncertain", "dark")
"""Areas that pixels of a thumbnail are taken for, by their number."""
ROLES = ("tissue", "area", "context")
"""Reasons why a patch was predicted, by their number.

It lies on tissue or in the mask; or only in a drawn area; or it is only the context of a sample's
patches, and does not count.
"""
SCALE_TOLERANCE = 0.05
"""Patches whose scale differs by no more than this share are of one scale to a model."""

DEFAULT_CLASS_NAMES = ("negative", "positive")
OUTSIDE = ("unknown", "negative")
PRIORITIES = ("positive", "negative")
ORIGINS = (AUTO, "slide", "bounds")

ARCHITECTURE_NAMES = (
    *("idc_cnn", "wide_resnet", "wide_resnet_16_2", "wide_resnet_16_4", "wide_resnet_16_8"),
    *("wide_resnet_28_10", "wide_resnet50_2"),
)
DEFAULT_ARCHITECTURE = "wide_resnet_16_2"
HEADS = ("linear", "dense20")
SPLIT_PARTS = ("train", "val", "test")
"""Parts that patients are divided into."""
SPLITS = ("patient", "random")
LEAK_WARNING = (
    "split at random: the same patients are in training and validation, metrics are inflated"
)
"""The text about models of such a split, wherever they are shown."""
INITIALISATION_NAMES = ("default", "xavier", "he")
OPTIMIZER_NAMES = ("sgd", "adam", "adamw", "rmsprop", "adagrad")
SCHEDULE_NAMES = ("constant", "step", "exponential", "1/t", "cosine", "sgdr", "one-cycle")
SAMPLINGS = ("shuffle", "class", "patient", "class-patient")
"""Every patch once; or as many draws with replacement, evenly between the classes, between the
patients, or between the classes and within each class between its patients."""
CACHES = (AUTO, "device", "memory", "stores")
LAST = "last"
STOP_METRICS = ("auroc", "average_precision", "balanced_accuracy", "f1", "loss")
"""Metrics of the validation patients by which the best epoch is chosen.

f1 and balanced accuracy are taken at a threshold of 0.5.
"""
PRESET_NAMES = ("article-cnn", "article-wideresnet")
KEPT_EPOCHS = (LAST, *STOP_METRICS)
"""Epochs whose weights a training may keep: the last one, or the best one by a metric."""

COLORMAPS = (
    *("orange-red", "blue-white-red", "turbo"),
    *("viridis", "cividis", "magma", "inferno", "plasma", "gray"),
)
"""The first three are made for maps over tissue; the others are perceptually even. All but turbo
are readable with every kind of colour blindness."""
BY_PROBABILITY, POSITIVE_ONLY, EVERYTHING = "probability", "positive", "everything"
MAP_MODES = (BY_PROBABILITY, POSITIVE_ONLY, EVERYTHING)
"""Ways to lay a map on its slide: opaque by probability or evenly from the threshold on; or all."""
OUTPUT_GROUPS = {
    "all": (
        *("heatmap", "overlay", "spread", "gallery", "report", "summary", "csv", "parquet"),
        *("regions", "geojson", "tissue", "ome-zarr", "ome-tiff"),
    ),
    "png": ("heatmap", "overlay", "spread", "gallery"),
}
"""Names for several outputs at once."""
ON_REQUEST = {
    "geojson-patches": "huge",
    "dicom": "slides in DICOM; needs the extra of that name",
}
"""Outputs that are written only where they are named, and why."""
MODEL_FORMATS = ("torchscript", "onnx", "pt2")
PATCH_FORMATS = ("png", "webdataset")
NORMALISATIONS = ("transform", "inside")

MANIFEST = "manifest.json"
HIDDEN = ".wsi"
"""Folder beside products that holds locks and work under way."""
ZARR_JSON = "zarr.json"
STORE_SUFFIX = ".patches.zarr"
PREDICTIONS = "predictions.zarr"
SUMMARY_JSON = "summary.json"
MODEL_FILE = "model.safetensors"
FOLD, FOLDS_SUMMARY, FOLDS_JSON = "fold-", "summary", "folds.json"
"""Folders of a cross-validation, `fold-1` …, and the summary that lists their models."""
HISTORY_CSV = "history.csv"
REPORT_HTML = "report.html"

SLIDES_CSV = "slides.csv"
SLIDES_PARQUET = "slides.parquet"
PATIENTS_CSV = "patients.csv"
FAILURES_CSV = "failures.csv"
RUN_JSON = "run.json"
RUN_FILE = "run.yaml"
"""Settings of the command that wrote a folder, beside its product."""
INDEX_HTML = "index.html"
AGGREGATE_JSON = "aggregate.json"
EVALUATION_CSV = "evaluation.csv"
EVALUATION_PATIENTS_CSV = "evaluation_patients.csv"
EVALUATION_GROUPS_CSV = "evaluation_groups.csv"
EVALUATION_JSON = "evaluation.json"
EVALUATION_HTML = "evaluation.html"
COMPARISON_CSV = "comparison.csv"
EVENTS_JSONL = "events.jsonl"
PROGRESS_JSON = "progress.json"
LEFT_OUT_CSV = "left_out.csv"
LOG = "wsi.log"
REVIEWS = "reviews"
"""Folder in a results folder with what people have called: `<slide_id>.json`."""
TRUTH = "truth"
"""Folder in a results folder with the labels that it was evaluated by."""
CORRECTIONS = "corrections"
"""Folder in a results folder with regions that people drew in the viewer: `<slide_id>.geojson`."""
DRAWN = "drawn"
"""Folder in a results folder with drawn areas, which are assessed as well as a slide's tissue:
`<slide_id>.geojson`."""
FOLDERS = frozenset({REVIEWS, TRUTH, CORRECTIONS, DRAWN})
RESERVED = frozenset(
    {
        *FOLDERS,
        *(SLIDES_CSV, FAILURES_CSV, RUN_JSON, INDEX_HTML, EVENTS_JSONL, LEFT_OUT_CSV, LOG),
        *(EVALUATION_CSV, EVALUATION_JSON, EVALUATION_HTML, COMPARISON_CSV),
        *(PATIENTS_CSV, EVALUATION_PATIENTS_CSV, EVALUATION_GROUPS_CSV),
    }
)
"""Names of a run's own files, which no slide's folder may have."""
WRITTEN = (RESERVED - FOLDERS) | {AGGREGATE_JSON, SLIDES_PARQUET}
"""Files that runs leave beside their products; shards put `.I-of-N` before the suffix."""
MASK_SUFFIX = ".mask.png"
LABELS_SUFFIX = ".labels.png"
PREVIEW_SUFFIX = ".preview.html"
CONFIG_JSON, TORCHSCRIPT = "config.json", "torchscript_model.pt"
"""Files of an external model's folder, as in the WSInfer zoo."""
EXTERNAL_THRESHOLD = 0.5
"""Of an external model, whose folder states none."""
