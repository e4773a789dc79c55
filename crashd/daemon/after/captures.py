"""Whether captures are under way: they take precedence over all later work."""


class Captures:
    """How many captures run or wait; the daemon's loop sets it, any thread may read it."""

    def __init__(self) -> None:
        self.under_way = 0

    @property
    def are_under_way(self) -> bool:
        """Whether there are any."""
        return self.under_way > 0
