"""Refuses bodies that are JSON and yet cannot be used: half characters, and endless nesting."""

from paged.server.errors import ApiError

MAX_DEPTH = 100  # of lists and objects in each other; what reads them further on recurses


def check_text(body: object) -> None:
    """Raises ApiError naming the field that holds half of a surrogate pair, which JSON can spell
    and nothing can encode, or that is nested too deeply."""
    for name, value in body.items() if isinstance(body, dict) else ():
        shown = str(name).encode(errors="replace").decode()
        if not _is_text(name) or not _all_text(value, shown):
            raise ApiError(f"{shown}: half of a surrogate pair is no character", param=shown)


def _all_text(value: object, field: str, depth: int = 0) -> bool:
    """Whether all strings in it are text."""
    if depth > MAX_DEPTH:
        raise ApiError(f"{field}: nested more than {MAX_DEPTH} levels deep", param=field)
    if isinstance(value, dict):
        return all(_is_text(key) and _all_text(one, field, depth + 1) for key, one in value.items())
    if isinstance(value, list) and value and not isinstance(value[0], int):  # ids are many
        return all(_all_text(one, field, depth + 1) for one in value)
    return _is_text(value)


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
