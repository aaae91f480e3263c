"""Drawn thumbnails of slides with known tissue, to judge detectors of tissue by.

Shapes are polygons and curves on a canvas of twice the size, reduced: other shapes, stains and inks
than those of `tests/drawn_thumbnails.py`, and nothing of a detector. Light passes through layers of
dye on glass; the camera adds noise, JPEG its blocks.

Not for tuning: who changes a detector looks at the other generator.
"""

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

WIDTH, HEIGHT = 720, 500
UM_PER_PX = 8.0
FINE = 2
DYES = {
    "haematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "DAB": (0.27, 0.57, 0.78),
    "aniline blue": (0.85, 0.50, 0.10),
    "fuchsin": (0.21, 0.91, 0.36),
    "methylene blue": (0.80, 0.58, 0.14),
    "fast green": (0.78, 0.25, 0.57),
    "silver": (0.56, 0.57, 0.60),
}
STAININGS = {
    "H&E": ("eosin", "haematoxylin"),
    "immunohistochemistry": ("haematoxylin", "DAB"),
    "trichrome": ("aniline blue", "fuchsin"),
    "Giemsa": ("fuchsin", "methylene blue"),
    "silver": ("silver", "silver"),
}
PENS = {
    "blue": (1.1, 0.75, 0.12),
    "turquoise": (0.95, 0.35, 0.30),
    "green": (0.9, 0.2, 0.8),
    "red": (0.05, 0.9, 0.8),
    "orange": (0.02, 0.35, 1.0),
    "black": (1.4, 1.45, 1.4),
    "violet": (0.6, 1.0, 0.25),
}
Layer = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Thumbnail(NamedTuple):
    """A drawn slide."""

    kind: str
    rgb: NDArray[np.uint8]
    tissue: Mask
    """What should be kept, inked and folded tissue included."""
    matters: Mask
    """False where either answer is right: edges, holes, under opaque ink, rims of bubbles."""
    ink: Mask
    folds: Mask
    bubbles: Mask


class Canvas:
    """Polygons and lines at twice the size of the thumbnail."""

    def __init__(self) -> None:
        self.image = Image.new("L", (WIDTH * FINE, HEIGHT * FINE))
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points: NDArray[Any]) -> None:
        """Fill the polygon through points (n, 2) in pixels of the thumbnail."""
        self.pen.polygon([tuple(each) for each in (points * FINE).tolist()], fill=255)

    def line(self, points: NDArray[Any], width: float) -> None:
        """Draw a round line."""
        places = [tuple(each) for each in (points * FINE).tolist()]
        self.pen.line(places, fill=255, width=max(1, round(width * FINE)), joint="curve")
        radius = width * FINE / 2
        for x, y in (places[0], places[-1]):
            self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    def cover(self, blur_px: float = 0.5) -> Layer:
        """Return the share of every pixel that is drawn on, (HEIGHT, WIDTH)."""
        image = self.image.filter(ImageFilter.GaussianBlur(blur_px * FINE))
        small = image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
        return np.asarray(np.asarray(small, dtype=np.float32) / np.float32(255))


def blob(rng: np.random.Generator, center: tuple[float, float], radius: float) -> NDArray[Any]:
    """Return an uneven outline of some lobes, (n, 2) x, y."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    away = np.ones_like(angle)
    for lobes in range(2, 14):
        size = rng.normal(0, 0.35 / lobes)
        away += size * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    away = radius * np.clip(away, 0.35, 2)
    stretch = rng.uniform(0.7, 1.5)
    x, y = away * np.cos(angle) * stretch, away * np.sin(angle)
    turn = rng.uniform(0, np.pi)
    turned = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)
    return np.asarray(turned + np.array(center))


def curve(rng: np.random.Generator, start: NDArray[Any], end: NDArray[Any]) -> NDArray[Any]:
    """Return a bent line between two points, (n, 2)."""
    time = np.linspace(0, 1, 60)[:, None]
    bends = [start + (end - start) * share + rng.normal(0, 50, 2) for share in (0.33, 0.67)]
    first, second = (1 - time) ** 3 * start, 3 * time * (1 - time) ** 2 * bends[0]
    return np.asarray(first + second + 3 * time**2 * (1 - time) * bends[1] + time**3 * end)


def somewhere(rng: np.random.Generator, margin: float = 60) -> NDArray[Any]:
    """Return a point (x, y) not too near the edge."""
    return rng.uniform((margin, margin), (WIDTH - margin, HEIGHT - margin))


def ripple(rng: np.random.Generator, wavelengths: tuple[float, ...]) -> Layer:
    """Return waves in random directions of mean 0 and deviation 1: a texture without a grid."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    total = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    for wavelength in wavelengths:
        for _ in range(5):
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            length = wavelength * rng.uniform(0.7, 1.4) / (2 * np.pi)
            total += np.sin((x * np.cos(angle) + y * np.sin(angle)) / length + phase)
    return np.asarray((total - total.mean()) / (total.std() + 1e-6))


def draw_outline(rng: np.random.Generator, kind: str) -> Layer:
    """Return where the tissue of a kind of slide lies, 0 to 1."""
    canvas = Canvas()
    if kind == "tissue array":
        radius, pitch = rng.uniform(24, 36), rng.uniform(90, 105)
        for row in range(int(HEIGHT // (pitch * 0.87))):
            for column in range(int(WIDTH // pitch)):
                if rng.random() < 0.85:
                    center = (60 + pitch * (column + 0.5 * (row % 2)), 55 + 0.87 * pitch * row)
                    canvas.polygon(center + (blob(rng, (0, 0), radius) * 0.6 + ring(radius) * 0.5))
    elif kind == "core biopsy":
        for number in range(rng.integers(2, 5)):
            y = 80 + number * 105
            start, end = np.array([rng.uniform(30, 160), y]), np.array([rng.uniform(450, 690), y])
            canvas.line(curve(rng, start, end), rng.uniform(14, 34))
    elif kind == "curettage":
        for _ in range(rng.integers(15, 40)):
            canvas.polygon(blob(rng, tuple(somewhere(rng, 30)), rng.uniform(9, 38)))
    else:
        for _ in range(rng.integers(1, 4)):
            canvas.polygon(blob(rng, tuple(somewhere(rng, 140)), rng.uniform(70, 150)))
    return canvas.cover()


def ring(radius: float) -> NDArray[Any]:
    """Return a circle around the origin, (160, 2)."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def stain(rng: np.random.Generator, cover: Layer, staining: str, strength: float) -> Layer:
    """Return the density (HEIGHT, WIDTH, 3) of stained tissue: strands of one dye, nuclei of the
    other; `strength` is the mean of its strongest channel.
    """
    ground, nuclear = (np.array(DYES[name], np.float32) for name in STAININGS[staining])
    strands = np.exp(0.35 * ripple(rng, (9, 22)) + 0.12 * rng.standard_normal(cover.shape))
    nests = 1 / (1 + np.exp(-2 * ripple(rng, (60, 110)) - ripple(rng, (14, 30))))
    cells = rng.poisson(0.5 + 2.5 * nests) / 2
    density = strands[..., None] * ground * 0.7 + (cells * nests)[..., None] * nuclear
    inside = cover > 0.5
    level = density[inside].mean(0).max() if inside.any() else 1.0
    return np.asarray(density * cover[..., None] * (strength / level), dtype=np.float32)


def thin_out_fat(rng: np.random.Generator, cover: Layer) -> Layer:
    """Return the share of the stain that stays in fat: walls between round clear cells."""
    places = rng.uniform(0, 1, (WIDTH * HEIGHT // 75, 2)) * (HEIGHT, WIDTH)
    seeds = np.ones(cover.shape, dtype=np.bool_)
    seeds[tuple(places.astype(int).T)] = False
    away = ndimage.distance_transform_edt(seeds)
    walls = np.clip(away / np.maximum(ndimage.maximum_filter(away, 11), 1), 0, 1) > 0.8
    is_fat = (ripple(rng, (200,)) > 0) & (cover > 0.2)
    return np.where(is_fat, np.where(walls, 0.9, 0.03), 1).astype(np.float32)


def scribble(rng: np.random.Generator, through: NDArray[Any] | None = None) -> Layer:
    """Return the cover of a pen: a line, a dot, a circle or writing; sometimes out of focus."""
    canvas, kind = (
        Canvas(),
        rng.choice(["line", "dot", "circle", "writing"], p=[0.5, 0.15, 0.2, 0.15]),
    )
    center = somewhere(rng) if through is None else through
    width = rng.uniform(12, 45)
    if kind == "line":
        away = rng.uniform(60, 200) * np.array([np.cos(a := rng.uniform(0, np.pi)), np.sin(a)])
        canvas.line(curve(rng, center - away, center + away), width)
    elif kind == "dot":
        canvas.polygon(center + ring(width) * rng.uniform(0.8, 1.3, 2))
    elif kind == "circle":
        points = center + ring(rng.uniform(60, 140)) * rng.uniform(0.7, 1.2, 2)
        canvas.line(np.concatenate([points, points[:8]]), width * 0.7)
    else:
        for number in range(4):
            start = center + np.array([number * 45 - 90, -30])
            canvas.line(curve(rng, start, start + np.array([rng.uniform(-10, 30), 60])), 14)
    return canvas.cover(float(rng.choice([0.6, 0.6, 3.0])))


def add_folds(rng: np.random.Generator, density: Layer, cover: Layer) -> Mask:
    """Lay tissue double along some curves, in place; return where."""
    canvas = Canvas()
    spots = np.argwhere(cover > 0.9)
    for _ in range(rng.integers(1, 4)):
        middle = spots[rng.integers(len(spots))][::-1].astype(float)
        away = rng.uniform(30, 110) * np.array([np.cos(a := rng.uniform(0, np.pi)), np.sin(a)])
        canvas.line(curve(rng, middle - away, middle + away), rng.uniform(4, 11))
    folds = (canvas.cover() > 0.5) & (cover > 0.5)
    density[folds] = density[folds] * rng.uniform(1.9, 2.6) + 0.03
    return np.asarray(folds)


def add_bubbles(rng: np.random.Generator, density: Layer) -> tuple[Mask, Mask]:
    """Add bubbles in place: rims that scatter light; return insides and rims."""
    inside, rims = np.zeros((2, HEIGHT, WIDTH), dtype=np.bool_)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(rng.integers(1, 4)):
        (cx, cy), radius = somewhere(rng), rng.uniform(16, 60)
        away = np.hypot(y - cy, (x - cx) * rng.uniform(0.9, 1.1))
        edge = np.exp(-(((away - radius) / rng.uniform(1, 2)) ** 2))
        density += (edge * rng.uniform(0.15, 0.6))[..., None]
        inside |= away < radius
        rims |= np.abs(away - radius) < 5
    return inside, rims


def expose(rng: np.random.Generator, density: Layer, glass: NDArray[Any]) -> NDArray[np.float64]:
    """Return light 0 to 255 through the layers, with the optics' blur and the camera's noise."""
    light = glass * 10.0 ** -ndimage.gaussian_filter(density, (0.6, 0.6, 0))
    shot = rng.standard_normal(light.shape) * np.sqrt(np.maximum(light, 1)) * rng.uniform(0.03, 0.1)
    return np.asarray(light + shot)


def add_frame(rng: np.random.Generator, light: NDArray[np.float64], kind: str) -> Mask:
    """Add what the scanner puts around or between, in place; return where."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frame = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    if kind == "grey frame":
        left, right, top, bottom = rng.integers(0, 60, 4)
        frame = (x < left) | (x >= WIDTH - right) | (y < top) | (y >= HEIGHT - bottom)
        level = rng.choice([50, 110, 160, 205]) + rng.normal(0, 3, 3)
        light[frame] = level + rng.standard_normal((int(frame.sum()), 1)) * rng.uniform(0, 2)
    elif kind in ("black tiles", "white tiles"):
        tiles = rng.random((10, 15)) < 0.25
        tiles[2:8, 3:12] = False
        frame = np.asarray(tiles.repeat(50, 0).repeat(48, 1))[:HEIGHT, :WIDTH]
        light[frame] = 0 if kind == "black tiles" else 255
    return frame


KINDS = (
    *("section", "pale", "pale beside a pen", "yellow glass", "uneven lamp", "pen over tissue"),
    *("folds", "bubbles", "fat", "tissue array", "core biopsy", "curettage", "weak and strong"),
    *("silver", "dust and cover slip", "grey frame", "black tiles", "white tiles", "no glass"),
    *("nothing", "fluorescence"),
)


def draw(seed: int) -> Thumbnail:
    """Return a thumbnail; its kind is the seed's rest by the number of kinds."""
    rng, kind = np.random.default_rng((7, seed)), KINDS[seed % len(KINDS)]
    cover = draw_outline(rng, kind)
    if kind in ("nothing", "no glass"):
        cover = np.full_like(cover, kind == "no glass")
    names = [name for name in STAININGS if name != "silver"]
    staining = {"silver": "silver", "weak and strong": "immunohistochemistry"}.get(kind)
    strength = rng.uniform(0.03, 0.07) if kind.startswith("pale") else rng.uniform(0.1, 0.6)
    density = stain(rng, cover, staining or str(rng.choice(names)), strength)
    if kind == "weak and strong":
        density *= 0.09 / strength
        spots = (ripple(rng, (70,)) > 1) & (cover > 0.5)
        density[spots] += np.array(DYES["DAB"], np.float32) * rng.uniform(0.8, 1.6)
    if kind == "fat":
        density *= thin_out_fat(rng, cover)[..., None]
    matters = (cover < 0.02) | (cover > 0.98)
    matters &= ~(ndimage.binary_dilation(cover > 0.5, iterations=3) & ~(cover > 0.5))
    matters &= ~((cover > 0.5) & ~ndimage.binary_erosion(cover > 0.5, iterations=2, border_value=1))
    nowhere = np.zeros(cover.shape, dtype=np.bool_)
    folds = add_folds(rng, density, cover) if kind == "folds" else nowhere
    bubbles, rims = add_bubbles(rng, density) if kind == "bubbles" else (nowhere, nowhere)
    ink = _add_ink(rng, density, cover, matters, kind)
    _add_dirt(rng, density, kind)
    light = _light(rng, density, cover, ink, kind)
    frame = add_frame(rng, light, kind)
    rgb = np.clip(light, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        stream = io.BytesIO()
        Image.fromarray(rgb).save(stream, "JPEG", quality=int(rng.integers(70, 95)))
        rgb = np.array(Image.open(stream))
    matters &= ~(rims & (cover > 0.02)) & ~ndimage.binary_dilation(frame, iterations=2) | frame
    tissue = (cover > 0.5) & ~frame
    return Thumbnail(kind, rgb, tissue, matters, ink, folds & ~frame, bubbles)


def _add_ink(
    rng: np.random.Generator, density: Layer, cover: Layer, matters: Mask, kind: str
) -> Mask:
    """Draw pens in place; return where they drew. `matters` is cleared where they are opaque."""
    ink = np.zeros(cover.shape, dtype=np.bool_)
    if kind not in ("pale beside a pen", "pen over tissue"):
        return ink
    spots = np.argwhere(cover > 0.9)
    for _ in range(rng.integers(1, 4)):
        name = str(rng.choice(list(PENS)))
        through = spots[rng.integers(len(spots))][::-1] if kind == "pen over tissue" else None
        drawn = scribble(rng, through)
        if kind == "pale beside a pen":
            drawn *= ~ndimage.binary_dilation(cover > 0.02, iterations=5)
        streaks = 1 + 0.06 * ripple(rng, (18, 40))
        dye = np.array(PENS[name], np.float32) * rng.uniform(0.6, 1.2)
        density += (drawn * streaks)[..., None] * dye
        ink |= drawn > 0.5
        matters &= ~((drawn > 0.02) & (drawn < 0.98))
        if name == "black":
            matters &= ~((drawn > 0.02) & (cover > 0.02))
    return ink


def _add_dirt(rng: np.random.Generator, density: Layer, kind: str) -> None:
    """Add specks, hairs and a cover slip's edge in place."""
    canvas = Canvas()
    many = kind in ("dust and cover slip", "nothing")
    for _ in range(rng.poisson(50 if many else 6)):
        canvas.polygon(somewhere(rng, 5) + ring(rng.uniform(0.6, 4)))
    if many:
        start, end = somewhere(rng), somewhere(rng)
        canvas.line(curve(rng, start, end), rng.uniform(0.8, 2))
        edge = rng.uniform(10, 50)
        canvas.line(np.array([[edge, 0], [edge + rng.normal(0, 8), HEIGHT]]), rng.uniform(1, 2.5))
    density += (canvas.cover() * rng.uniform(0.15, 0.7))[..., None]


def _light(
    rng: np.random.Generator, density: Layer, cover: Layer, ink: Mask, kind: str
) -> NDArray[np.float64]:
    """Return the picture's light, 0 to 255, of bright field or of fluorescence."""
    if kind == "fluorescence":
        glow = density.max(-1) / max(float(density.max()), 1e-3) * rng.uniform(60, 200)
        tint = rng.permutation([1.0, rng.uniform(0, 0.4), rng.uniform(0, 0.4)])
        dark = rng.uniform(3, 14) + rng.standard_normal((*cover.shape, 1)) * 0.6
        return np.asarray(dark + ndimage.gaussian_filter(glow, 0.7)[..., None] * tint)
    glass = rng.uniform(222, 250) - rng.uniform(0, 6, 3)
    if kind == "yellow glass":
        glass -= np.array([rng.uniform(0, 8), rng.uniform(4, 14), rng.uniform(18, 42)])
    lamp = np.zeros(cover.shape, dtype=np.float32)
    if kind == "uneven lamp":
        y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        slope = (x / WIDTH - 0.5) * rng.normal(0, 0.05) + (y / HEIGHT - 0.5) * rng.normal(0, 0.05)
        away = np.hypot(x / WIDTH - 0.5, y / HEIGHT - 0.5)
        lamp = slope - slope.min() + rng.uniform(0.02, 0.1) * away**2
    return expose(rng, density + lamp[..., None], glass)


def score(mask: Mask, drawn: Thumbnail) -> float:
    """Return Dice where it matters; without tissue 1 if under a thousandth is kept, else 0."""
    kept, truth = mask[drawn.matters], drawn.tissue[drawn.matters]
    if not truth.any():
        return float(kept.mean() < 0.001)
    return float(2 * (kept & truth).sum() / (kept.sum() + truth.sum()))
