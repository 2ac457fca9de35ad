"""What is compared, by (rows, splits) of the kernel: one row takes products of single elements."""

from step import Config

EMPTY = {
    "128 x 4 warps": Config(128, 4, 0, empty=True),
    "132 x 8 warps": Config(132, 8, 0, empty=True),
    "264 x 4 warps": Config(264, 4, 0, empty=True),
}
ONE = (16, 8, 16, 8)
HALF = (8, 4, 8, 4)
# by sequences, in the order in which they are timed
VARIANTS: dict[int, dict[str, Config]] = {
    1: {
        "no prefetch": Config(132, 8, 0, False, 2, ONE),
        "ahead 1": Config(132, 8, 1, False, 2, ONE),
        "ahead 2": Config(132, 8, 2, False, 2, ONE),
        "early": Config(132, 8, 0, True, 2, ONE),
        "ahead 1, early": Config(132, 8, 1, True, 2, ONE),
        "ahead 2, early": Config(132, 8, 2, True, 2, ONE),
        "ahead 1, early x 3": Config(132, 8, 1, True, 3, ONE),
        "words": Config(132, 8, 0, True, 2, ONE, words=True),
        "words, ahead 1": Config(132, 8, 1, True, 2, ONE, words=True),
        "words, ahead 2": Config(132, 8, 2, True, 2, ONE, words=True),
        "128 programs": Config(128, 8, 1, True, 2, ONE),
        "4 warps": Config(132, 4, 1, True, 2, (8, 8, 8, 8)),
        "16 warps": Config(132, 16, 1, True, 2, ONE),
        "264 x 4 warps": Config(264, 4, 1, True, 2, HALF),
        "264 x 4 warps, words": Config(264, 4, 1, True, 2, HALF, words=True),
    },
    4: {
        "no prefetch": Config(132, 8, 0, False, 2, ONE),
        "ahead 1": Config(132, 8, 1, False, 2, ONE),
        "ahead 1, early": Config(132, 8, 1, True, 2, ONE),
    },
    16: {
        "no prefetch": Config(132, 8, 0, False, 2, ONE),
        "ahead 1": Config(132, 8, 1, False, 2, ONE),
        "ahead 2": Config(132, 8, 2, False, 2, ONE),
        "early": Config(132, 8, 0, True, 2, ONE),
        "ahead 1, early": Config(132, 8, 1, True, 2, ONE),
        "qkv 32 rows": Config(132, 8, 1, True, 2, (32, 8, 16, 8)),
        "4 warps": Config(132, 4, 1, False, 2, (8, 8, 8, 8)),
        "16 warps": Config(132, 16, 1, True, 2, ONE),
    },
}
BEST = {1: "ahead 1, early", 4: "ahead 1, early", 16: "ahead 1, early"}  # whose phases are timed
