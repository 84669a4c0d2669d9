"""Range checks for configuration; their messages name the field, the value and the expectation."""


def check_at_least(name: str, value: float, least: float) -> None:
    """ValueError unless the value is a number from `least` up."""
    if not value >= least:
        raise ValueError(f"{name}: {value}, expected at least {least}")


def check_above(name: str, value: float, bound: float) -> None:
    """ValueError unless the value is a number above `bound`."""
    if not value > bound:
        raise ValueError(f"{name}: {value}, expected above {bound}")


def check_not_empty(name: str, values: tuple[object, ...]) -> None:
    """ValueError unless there is at least one value."""
    if not values:
        raise ValueError(f"{name}: empty, expected at least one entry")
