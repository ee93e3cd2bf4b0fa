"""The words of EditWorld: what shapes, colours, sizes, textures, places, grounds and tones exist.

Everything else (renderer, language, scores, oracle) reads these tables, so that the order of the entries
fixes the indices used everywhere.
"""

KINDS = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")

COLORS = {  # sRGB, 0..255
    "red": (206, 38, 45),
    "orange": (240, 134, 24),
    "yellow": (248, 214, 46),
    "green": (38, 150, 62),
    "teal": (24, 184, 184),
    "blue": (36, 84, 208),
    "purple": (128, 56, 172),
    "pink": (244, 128, 184),
    "white": (248, 248, 244),
    "black": (34, 34, 40),
}

SIZES = {"small": 0.25, "large": 0.33}  # diameter as a fraction of the image's side

TEXTURES = ("plain", "striped", "dotted")

PLACES = (  # the cells of a 3 x 3 grid, row by row
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)

GROUNDS = {  # two muted sRGB colours between which the gradient of a ground runs
    "sky": ((158, 196, 230), (212, 230, 242)),
    "meadow": ((142, 172, 112), (184, 202, 148)),
    "sand": ((226, 206, 164), (204, 178, 134)),
    "stone": ((134, 136, 142), (172, 173, 178)),
    "night": ((38, 44, 74), (74, 78, 122)),
    "sunset": ((240, 186, 142), (164, 126, 158)),
    "paper": ((238, 232, 216), (222, 212, 190)),
    "wood": ((168, 128, 90), (196, 158, 118)),
}

TONES = ("natural", "warm", "cool", "dark", "bright", "gray", "sepia")

SIDES = (64, 96)  # pixels; every split holds both

MIN_CONTRAST = 72.0  # least Euclidean sRGB distance between a shape and the colours of its ground


def textures_of(kind: str) -> tuple[str, ...]:
    """The textures that stay legible on a kind of shape: dots find no room on thin ones."""
    return TEXTURES[:2] if kind in ("star", "ring", "diamond") else TEXTURES


def fits_ground(color: str, ground: str) -> bool:
    """Whether a shape of this colour is easy to see on this ground."""
    rgb = COLORS[color]
    low, high = GROUNDS[ground]
    distances = []
    for step in (0.0, 0.25, 0.5, 0.75, 1.0):
        mixed = [a + step * (b - a) for a, b in zip(low, high)]
        distances.append(sum((x - y) ** 2 for x, y in zip(rgb, mixed)) ** 0.5)
    return min(distances) >= MIN_CONTRAST
