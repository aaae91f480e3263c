"""The metrics of logits, as a model of a temperature and no context gives them."""

from wsi_pipeline.core.calibration import Calibration
from wsi_pipeline.training.evaluate import Metrics, evaluate_predictions
from wsi_pipeline.training.metrics import DRAWS, Floats, Labels, Names


def calibrate(logits: Floats, temperature: float) -> Floats:
    """Probabilities of logits over a temperature."""
    return Calibration(1 / temperature).apply(logits)


def measure(
    labels: Labels,
    logits: Floats,
    patients: Names,
    *,
    temperature: float = 1.0,
    threshold: float = 0.5,
    draws: int = DRAWS,
) -> Metrics:
    """All metrics, each patch alone."""
    probability = calibrate(logits, temperature)
    return evaluate_predictions(
        labels,
        patients,
        logits=logits,
        alone=probability,
        probability=probability,
        thresholds=(threshold, threshold),
        draws=draws,
    )
