"""Bodies of requests and answers of reviews, as OpenAPI shows them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AnswerBody(BaseModel):
    """The reviewer's call of one patch."""

    model_config = ConfigDict(extra="forbid")

    row: int = Field(ge=0, le=2**31)
    col: int = Field(ge=0, le=2**31)
    is_positive: bool


class MoreBody(BaseModel):
    """A number of further patches to ask about."""

    model_config = ConfigDict(extra="forbid")

    patches: int = Field(ge=1, le=1000)


class PatchPlace(BaseModel):
    """The position of a patch on the slide's grid."""

    row: int
    col: int


class EstimateBody(BaseModel):
    """Positive patches of those assessed, by the first reviewer's answers."""

    estimate: float
    low: float = Field(description="The interval holds the true number in 95 of 100 slides.")
    high: float
    reviewed: int
    source: str
    assessed: int
    needed: int | None = Field(description="Answers still needed for ± 20 %; null: not known.")


class AgreementBody(BaseModel):
    """The agreement of another reviewer with the first."""

    one: str
    other: str
    kappa: float | None = Field(description="Cohen's kappa; null where it cannot be told.")
    shared: int


class ReviewBody(BaseModel):
    """Progress of a reviewer, and the patches that come next; no probability of the model."""

    slide_id: str
    reviewer: str
    positive_class: str
    field_um: float
    answered: int
    asked: int = Field(description="Patches that this reviewer is asked about.")
    upcoming: list[PatchPlace] = Field(description="The next ones, in order; empty: done.")
    can_ask_more: bool = Field(description="True for the first reviewer while patches are left.")
    estimate: EstimateBody | None = Field(
        description="Null before each stratum has an answer, and to others than the first reviewer"
        " until they are done."
    )
    agreements: list[AgreementBody] = Field(description="Empty until this reviewer is done.")
    undone: PatchPlace | None = Field(
        default=None, description="The patch of the answer that was removed."
    )


class ReviewEstimates(BaseModel):
    """The estimate of a slide's review, and the agreement of its reviewers."""

    estimate: EstimateBody | None
    agreements: list[AgreementBody]


class TrainingAnswer(AnswerBody):
    """The reviewer's call of one patch, for training."""

    seconds: float = Field(ge=0, le=86400, description="Time that the answer took.")


class TrainingPatch(PatchPlace):
    """A patch to call for training."""

    queue: Literal["top", "unsure"] = Field(description="Among the most probable, or least sure.")


class TrainingBody(BaseModel):
    """Patches called for training, of which no count is made, and those that come next."""

    reviewer: str
    positive_class: str
    field_um: float
    called: int
    positives: int
    hard_negatives: int = Field(description="Called negative from the top of the ranking.")
    seconds: float = Field(description="Time that all answers took.")
    upcoming: list[TrainingPatch]
    lines: list[str] = Field(description="The commands that train with the answers.")
    undone: PatchPlace | None = Field(
        default=None, description="The patch of the answer that was removed."
    )
