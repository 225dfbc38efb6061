"""How figures read in a sentence."""


def counted(n: int, what: str, plural: str | None = None) -> str:
    """`1 image`, `1,797 images`; `plural` where an s doesn't make it."""
    return f"{n:,} {what if n == 1 else plural or what + 's'}"
