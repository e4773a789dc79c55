"""Whether captures are under way: they go before whatever comes after them."""


class Captures:
    """How many captures run or wait; the daemon's loop says so, any thread may ask."""

    def __init__(self) -> None:
        self.under_way = 0

    @property
    def are_under_way(self) -> bool:
        """Whether there are any."""
        return self.under_way > 0
