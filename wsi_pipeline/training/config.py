"""The settings of a training run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wsi_pipeline.core.choices import (
    AUTO,
    CACHES,
    DEFAULT_ARCHITECTURE,
    PRECISIONS,
    SAMPLINGS,
    STOP_METRICS,
)
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.models.architectures import NetworkOptions
from wsi_pipeline.slides.selection import read_sheet
from wsi_pipeline.training.augment import NO_AUGMENTATION, Augmentation
from wsi_pipeline.training.optimise import Optimisation, Schedule, check_choice
from wsi_pipeline.training.split import SplitChoice, read_split_file

MAX_SEED = 2**63


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of a training run; all but device, cache and compilation decide the weights."""

    architecture: str = DEFAULT_ARCHITECTURE
    network: NetworkOptions = field(default_factory=NetworkOptions)
    pretrained: str | None = None
    """Source of the first weights: `file`, `download` (the library's own), or None: random."""
    epochs: int = 20
    batch_size: int = 64
    patience: int = 5
    """Stop after this many epochs without a better one by `stop_on`."""
    stop_on: str = "auroc"
    sampling: str = "shuffle"
    optimisation: Optimisation = field(default_factory=Optimisation)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: str = "auto"
    """Precision of the computation; auto: bf16 on a GPU that supports it, else fp32."""
    seed: int = 0
    devices: int = 1
    """GPUs, or processes on the CPU, that share each batch."""
    device: str = "auto"
    cache: str = "auto"
    is_compiled: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.patience < 1:
            raise ConfigError(
                f"epochs {self.epochs}, batch size {self.batch_size} and patience {self.patience}"
                " must be at least 1"
            )
        if self.devices < 1 or (self.devices > 1 and self.batch_size < 2 * self.devices):
            raise ConfigError(
                f"a batch of {self.batch_size} on {self.devices} devices; each needs at least 2"
                " patches of it"
            )
        if not 0 <= self.seed < MAX_SEED:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or more, and below 2^63")
        if self.pretrained not in (None, "file", "download"):
            raise ConfigError(f"pretrained is {self.pretrained}; it must be file or download")
        if self.optimisation.class_weights and self.sampling in ("class", "class-patient"):
            raise ConfigError(
                f"class weights and sampling by {self.sampling} correct the same thing twice;"
                " choose one of them"
            )
        for name, table in (
            ("stop_on", STOP_METRICS),
            ("sampling", SAMPLINGS),
            ("precision", (AUTO, *PRECISIONS)),
            ("cache", CACHES),
        ):
            check_choice(name, getattr(self, name), table)

    def to_json(self) -> dict[str, Any]:
        """Return the settings that decide the weights, as they are recorded."""
        left_out = ("device", "cache", "is_compiled")
        value = {name: value for name, value in asdict(self).items() if name not in left_out}
        return value | {"network": self.network.to_json()}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `wsi train`, named like the command's; `wsi lr-find` has most of them."""

    epochs: int = 20
    patience: int = 5
    stop_on: str = "auroc"
    threshold: str = "youden"
    """Rule for the threshold: youden, f1, sensitivity=NUMBER, or a number."""
    folds: int | None = None
    """Cross-validate in so many folds; None: train once."""
    sheet: Path | None = None
    """Sample sheet whose column `split` names the patients."""
    split_file: Path | None = None
    """A published split: a folder of lists, or a split.json."""
    val_patients: Sequence[str] = ()
    """Named validation patients; none: chosen at random."""
    val_fraction: float = 0.2
    test_patients: Sequence[str] = ()
    split: str = "patient"
    i_know_this_leaks: bool = False
    """Needed for `split="random"`."""
    arch: str = DEFAULT_ARCHITECTURE
    dropout: float | None = None
    head: str = "linear"
    batch_norm: bool = False
    logits: int = 1
    weights: Path | None = None
    """File of weights to start from."""
    download_weights: bool = False
    init: str = "default"
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 3e-4
    head_lr: float | None = None
    schedule: str = "constant"
    step_epochs: int = 10
    gamma: float = 0.1
    momentum: float | None = None
    weight_decay: float = 1e-4
    l1: float = 0.0
    label_smoothing: float = 0.0
    class_weights: bool = False
    sampling: str = "shuffle"
    clip_norm: float | None = None
    ema: float | None = None
    augment: bool = True
    flips: bool = True
    turns: bool = True
    affine: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.1
    hed: float = 0.0
    seed: int = 0
    cache: str = AUTO
    precision: str = AUTO
    compile: bool = False
    devices: int = 1
    device: str = AUTO
    resume: bool = True
    force: bool = False

    def __post_init__(self) -> None:
        if self.weights and self.download_weights:
            raise ConfigError("give --weights or --download-weights, not both")
        named = bool(self.val_patients or self.test_patients)
        if [self.sheet is not None, self.split_file is not None, named].count(True) > 1:
            raise ConfigError(
                "give one of --sheet, --split-file, and --val-patients with --test-patients"
            )
        if (self.split == "random") != self.i_know_this_leaks:
            raise ConfigError(
                "--split random puts patients on both sides and needs --i-know-this-leaks, which"
                " is for nothing else"
            )
        if self.i_know_this_leaks and (self.sheet or self.split_file or self.val_patients):
            raise ConfigError(
                "--split random draws patches, not patients; leave out --sheet, --split-file and"
                " --val-patients"
            )
        if self.folds is not None and (self.val_patients or self.i_know_this_leaks):
            raise ConfigError(
                "--folds draws the validation patients itself, by patient; leave out the options"
                " that name them"
            )

    @property
    def config(self) -> TrainConfig:
        """How the network is trained. Raises ConfigError."""
        changes = ("flips", "turns", "affine", "brightness", "contrast", "hed")
        penalties = ("weight_decay", "l1", "label_smoothing", "class_weights", "clip_norm", "ema")
        same = ("epochs", "patience", "stop_on", "batch_size", "sampling", "precision", "seed")
        return TrainConfig(
            architecture=self.arch,
            network=NetworkOptions(self.dropout, self.head, self.batch_norm, self.logits),
            pretrained="download" if self.download_weights else "file" if self.weights else None,
            optimisation=Optimisation(
                optimizer=self.optimizer,
                learning_rate=self.lr,
                head_learning_rate=self.head_lr,
                momentum=self.momentum,
                initialisation=self.init,
                **self._take(*penalties),
            ),
            schedule=Schedule(self.schedule, step_epochs=self.step_epochs, gamma=self.gamma),
            augmentation=Augmentation(**self._take(*changes)) if self.augment else NO_AUGMENTATION,
            is_compiled=self.compile,
            **self._take(*same, "cache", "devices", "device"),
        )

    def _take(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    @property
    def split_choice(self) -> SplitChoice:
        """How the patients are split. Raises ConfigError."""
        if self.split_file is not None:
            lists = read_split_file(self.split_file)
            named = (lists.val, self.val_fraction, lists.test, lists.train)
            return SplitChoice(*named, ignores_absent=True)
        if self.sheet is not None:
            rows = read_sheet(self.sheet)
            val, test = (
                tuple(sorted({row.patient_id for row in rows if row.split == part}))
                for part in ("val", "test")
            )
            return SplitChoice(val, self.val_fraction, test, ignores_absent=True)
        val, test = tuple(self.val_patients), tuple(self.test_patients)
        return SplitChoice(val, self.val_fraction, test, is_random=self.i_know_this_leaks)
