"""Drawn thumbnails of slides with known tissue, of 19 kinds: what the detector was tuned on.

A picture is glass (tinted, vignetted) times 10^-OD of every layer that lies on it, then blur, noise
and JPEG. Even seeds are for tuning. `tests/stained_glass.py` draws other ones.
"""

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

HEIGHT, WIDTH, UM_PER_PX = 480, 640, 8.0
KINDS = (
    *("plain", "very pale", "pale + pen", "tinted glass", "vignette", "pen over"),
    *("folds + bubbles", "fat", "TMA", "needle", "IHC brown", "grey stain"),
    *("dust + edge line", "border", "black fill", "white fill", "no glass", "empty"),
    "dark background",
)
STAINS = {
    "HE": ((0.60, 0.72, 0.28), (0.08, 0.55, 0.16)),
    "IHC": ((0.55, 0.50, 0.22), (0.22, 0.38, 0.62)),
    "grey": ((0.52, 0.53, 0.54), (0.52, 0.53, 0.54)),
    "pas": ((0.60, 0.70, 0.28), (0.25, 0.70, 0.32)),
}
INKS = {
    "blue": (0.95, 0.62, 0.17),
    "green": (0.85, 0.30, 0.62),
    "red": (0.08, 0.85, 0.72),
    "black": (1.2, 1.2, 1.15),
    "pale blue": (0.42, 0.25, 0.06),
}
ys, xs = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
Mask = NDArray[np.bool_]


class Drawn(NamedTuple):
    """A thumbnail and what is on it."""

    kind: str
    rgb: NDArray[np.uint8]
    tissue: Mask
    """What should be kept, ink over tissue and folds included."""
    matters: Mask
    """False where either answer is right: tissue's outermost pixels, gaps, opaque ink, rims."""
    ink: Mask
    folds: Mask


def cloud(rng: np.random.Generator, scale: float) -> NDArray[np.float32]:
    """Return smooth noise of mean 0 and deviation 1."""
    small = [max(3, int(np.ceil(side / scale)) + 3) for side in (HEIGHT, WIDTH)]
    field = ndimage.gaussian_filter(rng.standard_normal(small), 0.8)
    field = ndimage.zoom(field, scale, order=1)[:HEIGHT, :WIDTH]
    return np.asarray((field - field.mean()) / (field.std() + 1e-9), dtype=np.float32)


def outline(rng: np.random.Generator, kind: str) -> Mask:
    """Return where the tissue lies."""
    out = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    if kind == "TMA":
        radius, step = rng.integers(28, 42), rng.integers(95, 115)
        for y in range(60, HEIGHT - 40, step):
            for x in range(60, WIDTH - 40, step):
                if rng.random() < 0.8:
                    r = radius * (1 + 0.05 * cloud(rng, 16)) * rng.uniform(0.85, 1.05)
                    out |= np.hypot(ys - y - rng.normal(0, 4), xs - x - rng.normal(0, 4)) < r
    elif kind == "needle":
        for i in range(rng.integers(1, 4)):
            slope, bend, wide = rng.normal(0, 0.12), rng.normal(0, 25), rng.uniform(10, 34)
            mid = 110.0 + 130 * i + slope * (xs - 320) + bend * np.cos(xs / 130 + i)
            gaps = cloud(rng, 90)[:1] > -1.3
            core = gaps & (np.abs(ys - mid) < wide * (0.8 + 0.2 * cloud(rng, 12)))
            out |= core & (xs > rng.uniform(20, 120)) & (xs < WIDTH - rng.uniform(20, 120))
    else:
        for _ in range(rng.integers(1, 3)):
            cy, cx = rng.uniform(0.35, 0.65) * HEIGHT, rng.uniform(0.3, 0.7) * WIDTH
            ry, rx = rng.uniform(70, 150), rng.uniform(90, 190)
            edge = 0.22 * cloud(rng, 45) + 0.07 * cloud(rng, 12)
            out |= ((ys - cy) / ry) ** 2 + ((xs - cx) / rx) ** 2 + edge < 1
    parts = ndimage.label(out)[0]
    return np.asarray((np.bincount(parts.ravel())[parts] > 700) & out)


def stain_od(rng: np.random.Generator, area: Mask, stain: str, strength: float) -> NDArray[Any]:
    """Return the density (HEIGHT, WIDTH, 3) of a stained layer with texture, cells and stroma.

    `strength` is the mean of its strongest channel.
    """
    first, second = (np.array(v, np.float32) for v in STAINS[stain])
    mix = 1 / (1 + np.exp(-1.5 * cloud(rng, 40) - 0.8 * cloud(rng, 9)))
    grain = 0.16 * rng.standard_normal((HEIGHT, WIDTH))
    amount = np.exp(0.30 * cloud(rng, 24) + 0.22 * cloud(rng, 5) + grain)
    nuclei = (rng.random((HEIGHT, WIDTH)) < 0.10 * mix) * 0.9
    paler = 0.8 if stain == "HE" else 1
    od = mix[..., None] * first + (1 - mix[..., None]) * second * paler
    od = od * (amount + nuclei)[..., None]
    if not area.any():
        return np.asarray(od * 0)
    return np.asarray(od * (area * strength / od[area].mean(0).max())[..., None])


def fat_cells(rng: np.random.Generator, area: Mask) -> NDArray[Any]:
    """Return the share of stain left: walls of clear cells 50 to 100 µm across."""
    seeds = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    count = HEIGHT * WIDTH // 80
    seeds[rng.integers(0, HEIGHT, count), rng.integers(0, WIDTH, count)] = True
    _, (iy, ix) = ndimage.distance_transform_edt(~seeds, return_indices=True)
    owner = iy * WIDTH + ix
    wall = (owner != np.roll(owner, 1, 0)) | (owner != np.roll(owner, 1, 1))
    return np.where(area, np.where(wall, 0.8, 0.02), 1.0)


def stroke(rng: np.random.Generator, through: NDArray[Any] | None = None) -> Mask:
    """Return a pen stroke: a thick bent line, or a ring."""
    half = rng.uniform(10, 30)
    if rng.random() < 0.3:
        cy, cx, r = rng.uniform(150, 330), rng.uniform(150, 490), rng.uniform(80, 150)
        away = np.hypot((ys - cy) * rng.uniform(0.8, 1.2), xs - cx)
        return np.asarray(np.abs(away - r + 5 * cloud(rng, 60)) < half * 0.6)
    if through is None:
        through = np.array((rng.uniform(20, HEIGHT - 20), rng.uniform(20, WIDTH - 20)))
    cy, cx = through
    angle, length = rng.uniform(0, np.pi), rng.uniform(80, 260)
    along = (xs - cx) * np.cos(angle) + (ys - cy) * np.sin(angle)
    across = -(xs - cx) * np.sin(angle) + (ys - cy) * np.cos(angle)
    bent = across + 12 * np.sin(along / 70) + 1.5 * cloud(rng, 20)
    return np.asarray((np.abs(bent) < half) & (np.abs(along) < length))


class Scene:
    """A slide under construction: layers of density, and what is known of them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(1000 + seed)
        self.kind = KINDS[(seed // 2) % len(KINDS)]
        rng, kind = self.rng, self.kind
        area = outline(rng, kind if kind in ("TMA", "needle") else "section")
        stain = {"IHC brown": "IHC", "grey stain": "grey"}.get(kind)
        stain = stain or str(rng.choice(["HE", "HE", "IHC", "pas"]))
        if kind in ("very pale", "pale + pen"):
            strength = rng.uniform(0.03, 0.06)
        else:
            strength = float(np.exp(rng.uniform(np.log(0.08), np.log(0.7))))
        self.area: Mask = area & (kind != "empty") | (kind == "no glass")
        self.strength = strength
        self.od = stain_od(rng, self.area, stain, strength)
        self.matters = np.ones((HEIGHT, WIDTH), dtype=np.bool_)
        self.ink, self.folds = np.zeros((2, HEIGHT, WIDTH), dtype=np.bool_)

    def add_structure(self) -> None:
        """Add brown in places, fat, and gaps."""
        rng, area = self.rng, self.area
        if self.kind == "IHC brown":  # pale counterstain, strong brown in places
            self.od = stain_od(rng, area, "IHC", rng.uniform(0.05, 0.10))
            spots = (cloud(rng, 50) > 0.8) & area
            self.od += spots[..., None] * np.array((0.3, 0.55, 0.8)) * rng.uniform(0.7, 1.5)
        if self.kind == "fat" or rng.random() < 0.1:
            self.od *= fat_cells(rng, area & (cloud(rng, 90) > 0.1))[..., None]
        lumen = ndimage.binary_opening(area & (cloud(rng, 18) > 2.0), iterations=1)
        self.od[lumen] *= 0.05
        self.matters &= ~lumen

    def add_folds_and_bubbles(self) -> None:
        """Lay tissue double along three lines, and draw rims of bubbles."""
        rng = self.rng
        for _ in range(3):
            angle, where = rng.uniform(0, np.pi), rng.uniform(-80, 80)
            across = (xs - WIDTH / 2) * np.cos(angle) + (ys - HEIGHT / 2) * np.sin(angle)
            across = across - where + 10 * cloud(rng, 50)
            line = (np.abs(across) < rng.uniform(2, 6)) & self.area & (cloud(rng, 100) > -0.3)
            self.folds |= line
        self.od[self.folds] *= rng.uniform(2.2, 3.0)
        for _ in range(rng.integers(1, 4)):
            cy, cx = rng.uniform(60, HEIGHT - 60), rng.uniform(60, WIDTH - 60)
            away = np.abs(np.hypot(ys - cy, xs - cx) - rng.uniform(18, 55))
            rim = away < rng.uniform(1.2, 2.5)
            self.od[rim] += rng.uniform(0.1, 0.5)
            self.matters &= ~(rim & self.area)

    def add_ink(self) -> None:
        """Draw one pen or two."""
        rng, spots = self.rng, np.argwhere(self.area)
        for _ in range(rng.integers(1, 3)):
            name = str(rng.choice(list(INKS)))
            over = self.kind == "pen over" and len(spots) > 0
            mark = stroke(rng, spots[rng.integers(len(spots))] if over else None)
            if self.kind == "pale + pen":
                mark &= ~ndimage.binary_dilation(self.area, iterations=4)
            dye = np.array(INKS[name]) * rng.uniform(0.7, 1.3)
            self.od[mark] += dye * (1 + 0.08 * cloud(rng, 14)[mark])[:, None]
            self.ink |= mark
            if name == "black":
                self.matters &= ~(mark & self.area)

    def add_dirt(self) -> None:
        """Add dust and the edge of a cover slip."""
        rng, kind = self.rng, self.kind
        for _ in range(rng.poisson(60 if kind in ("dust + edge line", "empty") else 8)):
            away = np.hypot(ys - rng.uniform(0, HEIGHT), xs - rng.uniform(0, WIDTH))
            self.od[away < rng.uniform(0.8, 5)] += rng.uniform(0.1, 0.8)
        if kind == "dust + edge line" or (rng.random() < 0.08 and kind != "dark background"):
            run = ys if rng.random() < 0.5 else xs
            line = xs * rng.normal(0, 0.03) + run - rng.uniform(15, 60)
            self.od[np.abs(line) < rng.uniform(1, 2.6)] += rng.uniform(0.08, 0.5)
            self.od[line < 0] += rng.uniform(0, 0.012)

    def expose(self) -> NDArray[Any]:
        """Return the light, 0 to 255 and beyond, with noise."""
        rng = self.rng
        base = rng.uniform(225, 248) - rng.uniform(0, 5, 3)
        if self.kind == "tinted glass":
            base -= rng.permutation([0, rng.uniform(5, 18), rng.uniform(18, 38)])
        if self.kind == "vignette" or rng.random() < 0.15:
            cy, cx = HEIGHT * rng.uniform(0.3, 0.7), WIDTH * rng.uniform(0.3, 0.7)
            off = np.hypot((ys - cy) / HEIGHT, (xs - cx) / WIDTH)
            self.od += (off**2 * rng.uniform(0.03, 0.14))[..., None]
        out = base * 10 ** -ndimage.gaussian_filter(self.od, (0.7, 0.7, 0))
        if self.kind == "dark background":
            glow = ndimage.gaussian_filter(self.od.max(-1) * (~self.ink), 0.7)
            glow = glow / max(self.strength, 0.05) * rng.uniform(15, 90)
            tint = rng.permutation([1.0, rng.uniform(0, 0.3), rng.uniform(0, 0.3)])
            out = rng.uniform(2, 12) + glow[..., None] * tint
        out += rng.standard_normal((HEIGHT, WIDTH, 1)) * rng.uniform(0.3, 1.5)
        return np.asarray(out + rng.standard_normal((HEIGHT, WIDTH, 3)) * 0.5)

    def add_frame(self, out: NDArray[Any]) -> Mask:
        """Add a border or fill in place; return where."""
        rng, frame = self.rng, np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
        if self.kind == "border":
            wide = rng.integers(8, 50, 4) * (rng.random(4) < 0.75)
            frame = (ys < wide[0]) | (ys >= HEIGHT - wide[1])
            frame |= (xs < wide[2]) | (xs >= WIDTH - wide[3])
            tone = rng.choice([35, 90, 140, 190]) + rng.uniform(-4, 4, 3)
            noise = rng.standard_normal((int(frame.sum()), 1)) * rng.uniform(0, 3)
            out[frame] = tone + noise
        if self.kind in ("black fill", "white fill"):
            steps = np.repeat(rng.integers(20, 200, 8), HEIGHT // 8)[:, None]
            if rng.random() < 0.5:
                frame = steps > xs
            else:
                frame = (ys < rng.integers(30, 200)) & (xs > rng.integers(0, 300))
            out[frame] = 255 if self.kind == "white fill" else 0
        return frame


def draw(seed: int) -> Drawn:
    """Return one thumbnail; seeds 2n and 2n + 1 are of the same kind."""
    scene = Scene(seed)
    rng = scene.rng
    scene.add_structure()
    if scene.kind == "folds + bubbles":
        scene.add_folds_and_bubbles()
    if scene.kind in ("pale + pen", "pen over") or rng.random() < 0.15:
        scene.add_ink()
    scene.add_dirt()
    light = scene.expose()
    frame = scene.add_frame(light)
    rgb = np.clip(light, 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        stored = io.BytesIO()
        Image.fromarray(rgb).save(stored, "JPEG", quality=int(rng.integers(75, 95)))
        rgb = np.array(Image.open(stored))
    truth = scene.area & ~frame
    inner = ndimage.binary_erosion(truth, iterations=2, border_value=1)
    rim = ndimage.binary_dilation(truth, iterations=2) & ~inner
    return Drawn(scene.kind, rgb, truth, scene.matters & ~rim, scene.ink, scene.folds & truth)
