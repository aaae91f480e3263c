"""What a run over many slides may be told, apart from the slides and the model."""

from dataclasses import dataclass, field
from pathlib import Path

from wsi_pipeline.jobs.model_choice import EngineWish
from wsi_pipeline.jobs.room import Room
from wsi_pipeline.models.loading import ForeignTerms
from wsi_pipeline.outputs.view import View
from wsi_pipeline.pseudonyms import Pseudonyms
from wsi_pipeline.slides.selection import Shard
from wsi_pipeline.store.arrays import AS_THEY_ARE
from wsi_pipeline.store.codecs import PixelCodec
from wsi_pipeline.tiling import TileConfig


@dataclass(frozen=True, slots=True)
class TileOptions:
    """Which slides are tiled and how their stores are written, apart from how a slide is cut."""

    recursive: bool = False
    """Go into folders within folders."""
    mpp_csv: Path | None = None
    """Table of slides' µm per pixel, which overrules the files."""
    masks: Path | None = None
    """Folder of masks (or one mask) that say where the tissue is."""
    codec: PixelCodec = AS_THEY_ARE
    shard: Shard | None = None
    """The share of the slides that this run takes."""
    pseudonyms: Pseudonyms | None = None
    """Slides and patients stand under these in everything that is written."""
    room: Room = field(default_factory=Room)
    """What is to stay free on the disk."""


@dataclass(frozen=True, slots=True)
class InferConfig:
    """How slides are inferred, apart from the model."""

    tiling: TileConfig = field(default_factory=TileConfig)
    """Its patch size, stride and scale are those of the model, whatever is said here."""
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    """None: as the device has it."""
    force: bool = False
    view: View = field(default_factory=View)
    """What is made of the predictions."""
    terms: ForeignTerms = field(default_factory=ForeignTerms)
    """For models that wsi did not train."""
    shard: Shard | None = None
    """The share of the slides that this run takes."""
    pseudonyms: Pseudonyms | None = None
    """Slides and patients stand under these in everything that is written."""
    keep_patches: Path | None = None
    """Folder for the patch stores of the slides, written on the way or read where they are there."""

    room: Room = field(default_factory=Room)
    """What is to stay free on the disk."""

    @property
    def wish(self) -> EngineWish:
        """What is asked for of the computation."""
        return EngineWish(self.device, self.engine, self.precision, self.batch_size)
