"""heatmap.png, overlay.png, spread.png, gallery.png: maps of a slide, and samples of its patches.

The spread is that of an ensemble's logits. The gallery shows the most and the least probable
patches of a slide, and a random sample.
"""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.core.choices import COLORMAPS
from wsi_pipeline.core.outcome import describe_interval, describe_unlike
from wsi_pipeline.outputs.canvas import (
    GAP,
    MARGIN,
    NOT_ASSESSED,
    SMALL,
    TEXT,
    WHITE,
    Color,
    ColorBar,
    Key,
    compose,
    cover,
    draw_title,
    find_scale_bar,
    put_text,
    save_image,
    show_thumbnail,
)
from wsi_pipeline.outputs.colormaps import CENTRED, colour_table, opacity_table
from wsi_pipeline.outputs.heatmap import find_positive, place_on_grid
from wsi_pipeline.outputs.lettering import measure_text, set_text
from wsi_pipeline.outputs.map_image import (
    Frame,
    find_borders,
    frame_slide,
    number_colours,
    place_on_image,
)
from wsi_pipeline.outputs.result import Sample, SlideResult

HEATMAP_PNG = "heatmap.png"
OVERLAY_PNG = "overlay.png"
SPREAD_PNG = "spread.png"
GALLERY_PNG = "gallery.png"
SPREAD_LABEL = "spread of the models' logits (standard deviation)"
COLUMNS = 8
PATCH_PX = 120
"""About the side of a patch in the gallery: a small one is shown in whole squares per pixel."""
FRAME_PX = 3
"""Width of the frame of a patch in the gallery, which has the colour of its probability."""
BORDER, BORDER_ON_SLIDE = (0, 0, 0), (192, 0, 0)


def write_heatmap(result: SlideResult, folder: Path) -> None:
    """Write the map on a fixed 0–1 scale: grey where not assessed, positive areas outlined."""
    threshold = result.heatmap.threshold
    colors = colour_table(result.plot_style.colormap, threshold)
    bar = ColorBar(colors, _label(result), threshold=threshold)
    numbers = number_colours(result.heatmap.probability)
    save_image(_draw_alone(result, numbers, bar), folder / HEATMAP_PNG)


def write_spread(result: SlideResult, folder: Path) -> None:
    """Write the map of how far an ensemble's models differ, up to the slide's largest difference.

    Writes nothing for one model.
    """
    if result.spread is None:
        return
    values = place_on_grid(result.table, result.spread)
    largest = float(np.nanmax(values, initial=0)) or 1.0
    colormap = result.plot_style.colormap
    even = COLORMAPS[0] if colormap in CENTRED else colormap  # a spread has no threshold
    bar = ColorBar(colour_table(even), SPREAD_LABEL, largest)
    save_image(_draw_alone(result, number_colours(values, largest), bar), folder / SPREAD_PNG)


def _draw_alone(result: SlideResult, numbers: NDArray[np.uint16], bar: ColorBar) -> Image.Image:
    """Return a map without the slide: the bar's colours by number, 0 where not assessed."""
    table, frame = result.table, frame_slide(result.table)
    picture = Image.new("RGB", frame.size_px, NOT_ASSESSED)
    cover(picture, place_on_image(numbers, table.grid, frame), bar.colors)
    keys = [Key(NOT_ASSESSED, "not assessed"), *_draw_borders(result, picture, frame, BORDER)]
    scale = find_scale_bar(frame, table.slide.mpp)
    return compose(describe_slide(result), picture, scale, bar, keys)


def write_overlay(result: SlideResult, folder: Path) -> None:
    """Write the slide's thumbnail under its map, which is opaque by probability, as in the viewer.

    Nothing below the threshold hides tissue; positive areas are outlined.
    """
    table, style, frame = result.table, result.plot_style, frame_slide(result.table)
    threshold, probability = result.heatmap.threshold, result.heatmap.probability
    numbers = number_colours(probability) * find_positive(probability, threshold)
    colors = colour_table(style.colormap, threshold)
    opacity = opacity_table(threshold) * style.alpha
    picture = show_thumbnail(table, frame)
    placed = place_on_image(numbers, table.grid, frame)
    cover(picture, placed, colors, (opacity * 255).round().astype(np.uint8))
    keys = _draw_borders(result, picture, frame, BORDER_ON_SLIDE)
    on_white = 255 - (255 - colors.astype(np.float64)) * opacity[:, None]
    bar = ColorBar(on_white.round().astype(np.uint8), _label(result), threshold=threshold)
    scale = find_scale_bar(frame, table.slide.mpp)
    drawn = compose(describe_slide(result), picture, scale, bar, keys)
    save_image(drawn, folder / OVERLAY_PNG)


def _draw_borders(
    result: SlideResult, picture: Image.Image, frame: Frame, color: Color
) -> list[Key]:
    """Draw the borders of positive regions and return their key; none where they hide the map."""
    grid = result.table.grid
    inside = place_on_image(result.positive, grid, frame)
    pitch_l0 = grid.spec.stride_px * float(grid.downsample)
    borders = find_borders(inside, pitch_l0 / max(frame.pixel_xy_l0))
    if not borders.any():
        return []
    picture.paste(color, mask=Image.fromarray(borders))
    return [Key(color, "border of a positive region", is_line=True)]


def _label(result: SlideResult) -> str:
    return f"probability of {result.heatmap.positive_class}"


def describe_slide(result: SlideResult) -> list[str]:
    """Return the title of a slide's map: its name, and its counts."""
    summary, share = result.summary, ""
    if summary.positive_fraction is not None:
        share = f", {summary.positives:,} positive ({summary.positive_fraction:.1%})"
        share += f"; {describe_interval(summary)}"
    assessed = f"{summary.patches - summary.unreadable:,} patches assessed{share}"
    unlike = describe_unlike(summary)
    return [summary.slide_id, assessed, *([unlike] if unlike else [])]


def write_gallery(result: SlideResult, folder: Path) -> None:
    """Write the sheet of the samples; without samples, copy the slide's earlier sheet, if any."""
    if result.samples is not None:
        save_image(_build_sheet(result, result.samples), folder / GALLERY_PNG)
    elif result.previous is not None and (result.previous / GALLERY_PNG).is_file():
        shutil.copyfile(result.previous / GALLERY_PNG, folder / GALLERY_PNG)


def _build_sheet(result: SlideResult, samples: tuple[Sample, ...]) -> Image.Image:
    field = f"{result.table.grid.spec.field_um:g} µm"
    about = f"{_label(result)} below each patch, which is {field} wide"
    pitch = _scale_patch(result.table.grid.spec.side_px) + GAP
    width = COLUMNS * pitch - GAP
    title = draw_title([result.summary.slide_id, about], width)
    heading, caption = (set_text("0", face).height for face in (TEXT, SMALL))
    line = heading + pitch + caption + GAP
    top = MARGIN + title.height + GAP
    colors = colour_table(result.plot_style.colormap, result.heatmap.threshold)
    sheet = Image.new("RGB", (width + 2 * MARGIN, top + len(samples) * line + MARGIN), WHITE)
    sheet.paste(title, (MARGIN, MARGIN))
    for sample in samples:
        name = f"{sample.title} ({len(sample.positions)})"
        put_text(sheet, name, TEXT, (MARGIN, top))
        patches = zip(sample.pixels, sample.probability.tolist(), strict=True)
        for column, (pixels, probability) in enumerate(patches):
            place = MARGIN + column * pitch, top + heading + 4
            color = colors[min(int(probability * 256), 255)]
            _add_patch(sheet, pixels, f"{probability:.3f}", place, tuple(color.tolist()))
        top += line
    return sheet


def _scale_patch(side_px: int) -> int:
    """Return the side at which a patch is shown."""
    return side_px * round(PATCH_PX / side_px) if side_px <= PATCH_PX else PATCH_PX


def _add_patch(
    sheet: Image.Image,
    pixels: NDArray[np.uint8],
    caption: str,
    place: tuple[int, int],
    color: Color,
) -> None:
    """Draw one patch with its top left corner at (x, y), framed in a colour, its caption below."""
    side = _scale_patch(len(pixels))
    is_enlarged = side >= len(pixels)
    sampling = Image.Resampling.NEAREST if is_enlarged else Image.Resampling.BICUBIC
    ends = [end + step for step in (-FRAME_PX, side + FRAME_PX) for end in place]
    sheet.paste(color, (ends[0], ends[1], ends[2], ends[3]))
    sheet.paste(Image.fromarray(pixels).resize((side, side), sampling), place)
    left = place[0] + (side - measure_text(caption, SMALL)) // 2
    put_text(sheet, caption, SMALL, (left, place[1] + side + 2))
