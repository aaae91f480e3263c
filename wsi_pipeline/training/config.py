"""The settings of a training run."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from wsi_pipeline.core.choices import (
    AUTO,
    CACHES,
    DEFAULT_ARCHITECTURE,
    KEPT_EPOCHS,
    LAST,
    PRECISIONS,
    SAMPLINGS,
)
from wsi_pipeline.core.errors import ConfigError
from wsi_pipeline.core.training_options import TrainOptions
from wsi_pipeline.models.outlines import NetworkOptions
from wsi_pipeline.models.own_code import OwnCode, is_own_code, read_code
from wsi_pipeline.slides.sheet import read_sheet
from wsi_pipeline.training.augment import NO_AUGMENTATION, Augmentation
from wsi_pipeline.training.optimise import Optimisation, Schedule, check_choice
from wsi_pipeline.training.split import SplitChoice, read_split_file

MAX_SEED = 2**63
PATIENCE = 5
"""Epochs without a better one, where nothing is said."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of a training run; all but device, cache and compilation decide the weights."""

    architecture: str = DEFAULT_ARCHITECTURE
    code: OwnCode | None = None
    """The user's code that builds the network; `architecture` is its name then."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    pretrained: str | None = None
    """Source of the first weights: `file`, `download` (the library's own), or None: random."""
    epochs: int = 8
    batch_size: int = 64
    patience: int = PATIENCE
    """Stop after this many epochs without a better one by `stop_on`; without effect for `last`."""
    stop_on: str = LAST
    """`last`: keep the last epoch; else the metric by which the best epoch is kept."""
    sampling: str = "shuffle"
    optimisation: Optimisation = field(default_factory=Optimisation)
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: str = "auto"
    """Precision of the computation; auto: bf16 where the device has units for it, else fp32."""
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
            ("stop_on", KEPT_EPOCHS),
            ("sampling", SAMPLINGS),
            ("precision", (AUTO, *PRECISIONS)),
            ("cache", CACHES),
        ):
            check_choice(name, getattr(self, name), table)

    def to_json(self) -> dict[str, Any]:
        """Return the settings that decide the weights, as they are recorded."""
        left_out = ("device", "cache", "is_compiled", "code")
        value = {name: value for name, value in asdict(self).items() if name not in left_out}
        code = {} if self.code is None else {"code_sha256": self.code.sha256}
        return value | {"network": self.network.to_json()} | code


def read_config(options: TrainOptions) -> TrainConfig:
    """Return how the network is trained. Raises ConfigError."""

    def take(*names: str) -> dict[str, Any]:
        return {name: getattr(options, name) for name in names}

    changes = ("flips", "turns", "affine", "brightness", "contrast", "hed")
    penalties = ("weight_decay", "l1", "label_smoothing", "class_weights", "clip_norm", "ema")
    code = read_code(options.arch) if is_own_code(options.arch) else None
    same = ("epochs", "stop_on", "batch_size", "sampling", "precision", "seed")
    return TrainConfig(
        architecture=options.arch if code is None else code.name,
        code=code,
        network=NetworkOptions(options.dropout, options.head, options.batch_norm, options.logits),
        pretrained="download" if options.download_weights else "file" if options.weights else None,
        optimisation=Optimisation(
            optimizer=options.optimizer,
            learning_rate=options.lr,
            head_learning_rate=options.head_lr,
            momentum=options.momentum,
            initialisation=options.init,
            **take(*penalties),
        ),
        schedule=Schedule(options.schedule, step_epochs=options.step_epochs, gamma=options.gamma),
        augmentation=Augmentation(**take(*changes)) if options.augment else NO_AUGMENTATION,
        is_compiled=options.compile,
        patience=PATIENCE if options.patience is None else options.patience,
        **take(*same, "cache", "devices", "device"),
    )


def read_split(options: TrainOptions) -> SplitChoice:
    """Return how the patients are split. Raises ConfigError."""
    if options.split_file is not None:
        lists = read_split_file(options.split_file)
        named = (lists.val, options.val_fraction, lists.test, lists.train)
        return SplitChoice(*named, ignores_absent=True)
    if options.sheet is not None:
        rows = read_sheet(options.sheet)
        val, test = (
            tuple(sorted({row.patient_id for row in rows if row.split == part}))
            for part in ("val", "test")
        )
        listed = tuple(sorted({row.patient_id for row in rows}))
        return SplitChoice(val, options.val_fraction, test, ignores_absent=True, listed=listed)
    val, test = tuple(options.val_patients), tuple(options.test_patients)
    return SplitChoice(val, options.val_fraction, test, is_random=options.i_know_this_leaks)


def derive_seed(seed: int, epoch: int, stream: int) -> int:
    """Return the seed of one stream of random numbers of one epoch.

    It does not depend on numbers drawn before, so that training can resume at any epoch.
    """
    sequence = np.random.SeedSequence([seed, epoch, stream % 2**32])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
