"""/api/v1/reviews/…/training: the second queue of a review, whose answers only train."""

from fastapi import APIRouter

from wsi_pipeline.counting.training_calls import TrainingCalls
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.result_reader import LoadedResult
from wsi_pipeline.serve.review_routes import UPCOMING, Reviewed
from wsi_pipeline.serve.review_schemas import (
    PatchPlace,
    TrainingAnswer,
    TrainingBody,
    TrainingPatch,
)
from wsi_pipeline.serve.reviews import NO_REVIEWS
from wsi_pipeline.serve.services import Here, Services
from wsi_pipeline.serve.slide_routes import FAULTS
from wsi_pipeline.serve.training_queue import TrainingQueue, list_lines

router = APIRouter(
    prefix="/reviews/{run_id}/{slide_id}/training", tags=["reviews"], responses=FAULTS
)


@router.get("", summary="Patches to call for training, and what was called")
def show_training(services: Here, loaded: Reviewed) -> TrainingBody:
    """Say what was called for training, and which patches come next."""
    return _describe(services, loaded, _queue(services).read(loaded))


@router.post("/answers", summary="Call a patch for training")
def take_training_answer(services: Here, loaded: Reviewed, answer: TrainingAnswer) -> TrainingBody:
    """Write one answer for training to disk, then confirm it.

    409: the patch was called otherwise, or is not asked about.
    """
    call = (answer.row, answer.col, answer.is_positive, answer.seconds)
    return _describe(services, loaded, _queue(services).answer(loaded, *call, UPCOMING))


@router.delete("/answers/last", summary="Take the last call for training back")
def undo_training_answer(services: Here, loaded: Reviewed) -> TrainingBody:
    """Remove the reviewer's last answer for training."""
    calls, number = _queue(services).undo(loaded)
    body = _describe(services, loaded, calls)
    if number is not None:
        row, col = divmod(number, calls.grid.cols)
        body.undone = PatchPlace(row=row, col=col)
    return body


def _queue(services: Services) -> TrainingQueue:
    if services.training is None:
        raise Refusal(404, NO_REVIEWS)
    return services.training


def _describe(services: Services, loaded: LoadedResult, calls: TrainingCalls) -> TrainingBody:
    queue = _queue(services)
    following = queue.choose(loaded, calls, UPCOMING)
    results = loaded.result.folder.parent.name
    places = [(*divmod(number, calls.grid.cols), reason) for number, reason in following]
    return TrainingBody(
        reviewer=queue.reviewer,
        positive_class=calls.class_names[1],
        field_um=calls.grid.spec.field_um,
        called=len(calls.calls),
        positives=sum(calls.labels.values()),
        hard_negatives=calls.hard_negatives,
        seconds=calls.seconds,
        upcoming=[
            TrainingPatch.model_validate({"row": row, "col": col, "queue": reason})
            for row, col, reason in places
        ],
        lines=list_lines(results) if calls.calls else [],
    )
