"""Tests, in folders that mirror the rooms of wsi_pipeline; what they share stands here, beside
them.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
