"""Keep the stories worth learning from.

    python clean.py stories.jsonl corpus.txt

A story goes if it breaks off, chats about itself, loops, or uses a word that few stories use (the
writer invents some when it may not repeat itself); of the rest, the share that the writer itself
found least likely goes too. The corpus has one story a paragraph, empty lines between.
"""

import argparse
import json
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

CHATTER = re.compile(
    r"\b(moral of|the end\b|sentences?|simple words|i hope|language model|title|stor(y|ies)|reader"
    r"|chapter|assistant|children's|sure)\b",
    re.IGNORECASE,
)
UNKIND = re.compile(
    r"\b(god|jesus|kill\w*|dead|die[ds]?|death|blood\w*|guns?|knife|naked|sex\w*|hate\w*|murder\w*"
    r"|drunk|wine|beer|hospital|police|war|ugly|stupid)\b",
    re.IGNORECASE,
)
PLAIN = re.compile(r"^[A-Za-z \n.,!?'\"-]+$")
SENTENCE_END = re.compile(r'[.!?]"?[ \n]')
ENDINGS = (".", "!", '."', '!"', '?"')
FEWEST_WORDS, MOST_WORDS = 40, 220


def tidy(text: str) -> str:
    """Single spaces, and one line break between paragraphs."""
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", text.strip()))


def words_of(story: str) -> list[str]:
    """The story's words in lower case, without their punctuation."""
    stripped = (word.strip(".,!?\"'-") for word in story.lower().split())
    return [word for word in stripped if word]


def is_sound(story: str) -> bool:
    """Whether the story is whole and plain, and does not go in circles."""
    words = words_of(story)
    if not FEWEST_WORDS <= len(words) <= MOST_WORDS or not PLAIN.match(story):
        return False
    if not story.endswith(ENDINGS) or story.count('"') % 2:
        return False
    return not (CHATTER.search(story) or UNKIND.search(story) or loops(story, words))


def loops(story: str, words: list[str]) -> bool:
    """Whether runs of three words, a word beside itself, or sentence openings repeat too much."""
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    if len(triples) < 0.88 * (len(words) - 2) or max(triples.values()) > 4:
        return True
    if any(a == b != "very" for a, b in pairwise(words)):
        return True
    sentences = [words_of(sentence) for sentence in SENTENCE_END.split(story)]
    openings = Counter(tuple(sentence[:2]) for sentence in sentences if len(sentence) > 1)
    same = Counter(" ".join(sentence) for sentence in sentences if sentence)
    return max(openings.values()) > max(3, 0.4 * len(sentences)) or max(same.values()) > 1


def read_story(line: str) -> tuple[str, float] | None:
    """Story and score of one line of the writer's output, None where it is not sound."""
    entry = json.loads(line)
    story = tidy(entry["story"])
    return (story, entry["score"]) if is_sound(story) else None


def choose(stories: dict[str, float], fewest_uses: int, keep: float) -> list[str]:
    """Stories of common words only; of these the likeliest share `keep`, in their old order."""
    uses = Counter(word for story in stories for word in set(words_of(story)))
    common = [s for s in stories if all(uses[word] >= fewest_uses for word in words_of(s))]
    ranked = sorted((stories[story] for story in common), reverse=True)
    bar = ranked[int(keep * (len(ranked) - 1))] if ranked else 0.0
    return [story for story in common if stories[story] >= bar]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stories", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--fewest-uses", type=int, default=20, help="stories that use each word")
    parser.add_argument("--keep", type=float, default=0.95, help="share kept by log-probability")
    args = parser.parse_args()
    lines = args.stories.read_text().splitlines()
    with ProcessPoolExecutor() as pool:
        sound = dict(s for s in pool.map(read_story, lines, chunksize=1000) if s is not None)
    kept = choose(sound, args.fewest_uses, args.keep)
    args.corpus.write_text("\n\n".join(kept) + "\n")
    words = sum(len(story.split()) for story in kept)
    print(
        f"{len(lines)} stories ended, {len(sound)} sound and different, {len(kept)} kept"
        f" with {words / 1e6:.2f} M words",
        flush=True,
    )


if __name__ == "__main__":
    main()
