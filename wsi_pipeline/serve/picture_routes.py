"""/api/v1/slides: pictures of slides: maps, tissue, overviews, tiles and patches."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from wsi_pipeline.outputs.map_image import paint_map
from wsi_pipeline.serve.errors import Refusal
from wsi_pipeline.serve.services import Here, NamedResult, NamedSlide, tag_version
from wsi_pipeline.serve.slide_routes import FAULTS, UNCHANGED, Responses, Threshold
from wsi_pipeline.slides.images import encode_jpeg, encode_png

router = APIRouter(prefix="/slides", tags=["slides"], responses=FAULTS)
TileNumber = Annotated[int, Path(ge=0, le=10_000_000)]
TISSUE_RGBA = (0, 130, 110, 60)
EDGE_RGBA = (0, 110, 95, 255)
PNG: Responses = UNCHANGED | {200: {"content": {"image/png": {}}}}
JPEG: Responses = UNCHANGED | {200: {"content": {"image/jpeg": {}}}}


@router.get(
    "/{slide_id}/map.png",
    response_class=Response,
    responses=PNG,
    summary="The map of probabilities, in colours",
)
def draw_map(loaded: NamedResult, request: Request, threshold: Threshold = None) -> Response:
    """Draw the map in colours, one pixel per patch.

    It is transparent where nothing was assessed and, with a threshold, below it.
    """
    headers = tag_version(request, loaded.result.digest)
    pixels = paint_map(loaded.heatmap.probability, threshold)
    if not pixels.size:
        raise Refusal(404, "the slide has no patches")
    return Response(encode_png(pixels), media_type="image/png", headers=headers)


@router.get(
    "/{slide_id}/tissue.png", response_class=Response, responses=PNG, summary="The tissue mask"
)
def show_tissue(loaded: NamedResult, request: Request) -> Response:
    """Draw the tissue mask that the patches were chosen by, over the thumbnail's area."""
    headers = tag_version(request, loaded.result.digest)
    if loaded.table.tissue is None:
        raise Refusal(404, "the results hold no tissue mask")
    content = encode_png(draw_tissue(loaded.table.tissue))
    return Response(content, media_type="image/png", headers=headers)


@router.get(
    "/{slide_id}/thumbnail.jpg",
    response_class=Response,
    responses=JPEG,
    summary="The overview of a slide",
)
def show_thumbnail(
    services: Here,
    entry: NamedSlide,
    request: Request,
    side: Annotated[int | None, Query(ge=16, le=4096)] = None,
) -> Response:
    """Show the scanned area, with at most `side` pixels along its longer side."""
    headers = tag_version(request, entry.version)
    whole = next((result for result in entry.results.values() if result.summary is not None), None)
    key = ("thumbnail", entry.slide_id, entry.version, side)
    if whole is None:
        content = services.pixels.overview(entry)
    elif (kept := services.cache.get(key)) is not None:
        content = kept
    else:
        pixels = services.results.load(whole).table.thumbnail.pixels
        content = encode_jpeg(pixels if side is None else shrink(pixels, side))
        services.cache.put(key, content)
    return Response(content, media_type="image/jpeg", headers=headers)


@router.get(
    "/{slide_id}/tiles/{level}/{col}/{row}.jpg",
    response_class=Response,
    responses=JPEG,
    summary="A tile of the slide",
)
async def show_tile(
    services: Here,
    entry: NamedSlide,
    request: Request,
    level: TileNumber,
    col: TileNumber,
    row: TileNumber,
) -> Response:
    """Show one tile; level 0 is the scan, level k the scan reduced 2ᵏ times."""
    headers = tag_version(request, services.pixels.file_version(entry))
    content = services.pixels.cached_tile(entry, level, col, row)
    if content is None:
        content = await run_in_threadpool(services.pixels.tile, entry, level, col, row)
    return Response(content, media_type="image/jpeg", headers=headers)


@router.get(
    "/{slide_id}/patches/{row}/{col}.png",
    response_class=Response,
    responses=PNG,
    summary="A patch as the model saw it",
)
def show_patch(
    services: Here, entry: NamedSlide, loaded: NamedResult, row: TileNumber, col: TileNumber
) -> Response:
    """Show one patch, pixel by pixel as the model saw it."""
    content = services.pixels.patch(entry, loaded.table.grid, row, col)
    return Response(content, media_type="image/png")


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return RGB (h, w, 3), reduced a whole number of times to at most `side` pixels.

    A rest at the edge is left out.
    """
    step = max(1, -(-max(pixels.shape[:2]) // side))  # 1 of no pixels at all
    height, width = pixels.shape[0] // step, pixels.shape[1] // step
    if step == 1 or not (height and width):
        return pixels[::step, ::step]
    cut = pixels[: height * step, : width * step].reshape(height, step, width, step, 3)
    means: NDArray[np.uint8] = cut.mean(axis=(1, 3)).round().astype(np.uint8)
    return means


def draw_tissue(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask (h, w) as RGBA: tinted inside, a line along its edge, else transparent."""
    image = np.zeros((*mask.shape, 4), dtype=np.uint8)
    image[mask] = TISSUE_RGBA
    padded = np.pad(mask, 1)
    is_inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    image[mask & ~is_inner] = EDGE_RGBA
    return image
