"""`vl2v demo`."""


def demo() -> None:
    """Placeholder."""
