"""/api/v1/reviews: the patches that a reviewer calls, the answers, and what they come to."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from wsi_pipeline.counting.review import Review
from wsi_pipeline.serve.decoding import DecodingError
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.picture_routes import JPEG, TileNumber
from wsi_pipeline.serve.result_reader import LoadedResult
from wsi_pipeline.serve.review_schemas import (
    AgreementBody,
    AnswerBody,
    EstimateBody,
    MoreBody,
    PatchPlace,
    ReviewBody,
    ReviewEstimates,
)
from wsi_pipeline.serve.reviews import NO_REVIEWS, ReviewService
from wsi_pipeline.serve.services import (
    MAX_NAME,
    Here,
    NamedSlide,
    Services,
    find_result,
    tag_version,
)
from wsi_pipeline.serve.slide_routes import FAULTS

UPCOMING = 4
"""Next patches that an answer names, so that the page loads them ahead."""
router = APIRouter(prefix="/reviews/{run_id}/{slide_id}", tags=["reviews"], responses=FAULTS)


def load_reviewed(
    services: Here, run_id: Annotated[str, Path(max_length=MAX_NAME)], entry: NamedSlide
) -> LoadedResult:
    """Return the results that are reviewed. Raises Refusal, StoreError."""
    _reviews(services)
    return services.results.load(find_result(services, entry, run_id))


Reviewed = Annotated[LoadedResult, Depends(load_reviewed)]


@router.get("", summary="How far a review is, and what comes next")
def show_review_state(services: Here, loaded: Reviewed) -> ReviewBody:
    """Say how far the reviewer is, and which patches come next."""
    reviews = _reviews(services)
    return _describe(reviews, reviews.read(loaded))


@router.get("/estimate", summary="Estimated number of positive patches")
def show_estimate(services: Here, loaded: Reviewed) -> ReviewEstimates:
    """Show the number of positive patches by the first reviewer, and the others' agreement."""
    review = _reviews(services).read(loaded)
    return ReviewEstimates(
        estimate=_describe_estimate(review), agreements=_describe_agreements(review)
    )


@router.post("/answers", summary="Call a patch positive or negative")
def take_answer(services: Here, loaded: Reviewed, answer: AnswerBody) -> ReviewBody:
    """Write one answer to disk, then confirm it.

    409: this reviewer has called the patch otherwise, or it was not drawn.
    """
    reviews = _reviews(services)
    review = reviews.answer(loaded, answer.row, answer.col, answer.is_positive)
    return _describe(reviews, review)


@router.delete("/answers/last", summary="Take the last answer back")
def undo_answer(services: Here, loaded: Reviewed) -> ReviewBody:
    """Remove the reviewer's last answer."""
    reviews = _reviews(services)
    review, number = reviews.undo(loaded)
    body = _describe(reviews, review)
    body.undone = None if number is None else _place(review, number)
    return body


@router.post("/more", summary="Draw further patches")
def ask_more(services: Here, loaded: Reviewed, wanted: MoreBody) -> ReviewBody:
    """Ask about more patches; only the first reviewer may."""
    reviews = _reviews(services)
    return _describe(reviews, reviews.ask_more(loaded, wanted.patches))


@router.get(
    "/patches/{row}/{col}.jpg",
    response_class=Response,
    responses=JPEG,
    summary="A patch among its neighbours",
)
def show_surroundings(
    services: Here,
    entry: NamedSlide,
    loaded: Reviewed,
    request: Request,
    row: TileNumber,
    col: TileNumber,
) -> Response:
    """Show a patch, outlined, with its neighbours: of the slide, else of its patch store."""
    headers = tag_version(request, loaded.result.digest)
    grid = loaded.table.grid
    if not (row < grid.rows and col < grid.cols):
        raise Refusal(404, "no such patch")
    try:
        content = services.pixels.surroundings(entry, grid, row, col)
    except (Refusal, DecodingError) as error:
        kept = _reviews(services).surroundings_from_store(loaded, row, col)
        if kept is None:
            raise _explain(error) from error
        content = kept
    return Response(content, media_type="image/jpeg", headers=headers)


def _explain(error: Refusal | DecodingError) -> Refusal | DecodingError:
    """Return the error, which names --stores where the slide's file is missing."""
    if isinstance(error, Refusal) and error.status_code == 404:
        text = f"{error.detail}; or give its patch store with --stores"
        return Refusal(404, text)
    return error


def _reviews(services: Services) -> ReviewService:
    if services.reviews is None:
        raise Refusal(404, NO_REVIEWS)
    return services.reviews


def _describe(reviews: ReviewService, review: Review) -> ReviewBody:
    reviewer = reviews.reviewer
    following, calls = review.list_open(reviewer), review.calls_of(reviewer)
    is_first = review.is_led_by(reviewer)
    is_done = bool(calls) and not following
    asked = max(min(review.wanted, review.patches), len(calls)) if is_first else len(review.shown)
    return ReviewBody(
        slide_id=review.slide_id,
        reviewer=reviewer,
        positive_class=review.class_names[1],
        field_um=review.grid.spec.field_um,
        answered=len(calls),
        asked=asked,
        upcoming=[_place(review, number) for number in following[:UPCOMING]],
        can_ask_more=is_first and review.wanted < review.patches,
        estimate=_describe_estimate(review) if is_first or is_done else None,
        agreements=_describe_agreements(review) if is_done else [],
    )


def _place(review: Review, number: int) -> PatchPlace:
    row, col = review.place_of(number)
    return PatchPlace(row=row, col=col)


def _describe_estimate(review: Review) -> EstimateBody | None:
    found = review.estimate
    if found is None or not found.reviewed:
        return None
    return EstimateBody(
        estimate=found.estimate,
        low=found.low,
        high=found.high,
        reviewed=found.reviewed,
        source=found.source,
        assessed=review.patches,
        needed=review.patches_needed(),
    )


def _describe_agreements(review: Review) -> list[AgreementBody]:
    return [AgreementBody(**each._asdict()) for each in review.list_agreements()]
