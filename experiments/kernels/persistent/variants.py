"""What is compared, by rows of the tile: one (products of single elements) or 16 (tensor cores)."""

from step import Config

VARIANTS: dict[int, dict[str, Config]] = {
    1: {
        "a8": Config(132, 8, 0, False, 2, (16, 8, 16, 8)),
        "b8": Config(132, 8, 1, False, 2, (16, 8, 16, 8)),
        "c8": Config(132, 8, 1, True, 2, (16, 8, 16, 8)),
        "c8x3": Config(132, 8, 1, True, 3, (16, 8, 16, 8)),
    },
    16: {
        "a8": Config(132, 8, 0, False, 2, (16, 8, 16, 8)),
        "c8": Config(132, 8, 1, True, 2, (16, 8, 16, 8)),
        "a8n8": Config(132, 8, 0, False, 2, (8, 8, 8, 8)),
    },
}
