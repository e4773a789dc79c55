"""Hosts that have written more than one turn's worth of objects: they go on turn by turn, so that
no host delays the records of others.

Nothing of this is stored. The cursor of such a host moves when its last object is indexed; an
indexer that ends before leaves it to the next one, which loads twice what was loaded already.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from crashd.fleet.objects import Survey

SURVEYS_MAX = 32
"""Hosts whose listings are under way at once; others wait without one."""
TURNS = 4
"""Hosts that have a turn after each group of others."""


class Backlog:
    """The hosts of one indexer that are not done."""

    def __init__(self) -> None:
        self._surveys: OrderedDict[str, Survey] = OrderedDict()
        self._waiting: dict[str, None] = {}

    @property
    def hosts(self) -> list[str]:
        """All of them: none of their surveys begins again."""
        return [*self._surveys, *self._waiting]

    def keep(self, survey: Survey) -> None:
        """Keep a host that is not done, as the last one; without its survey if there are many."""
        host = survey.look.cursor.host
        if host in self._surveys or len(self._surveys) < SURVEYS_MAX:
            self._surveys[host] = survey
            self._surveys.move_to_end(host)
        else:
            self._waiting[host] = None

    def remove(self, host: str) -> None:
        """Remove a host that is done, or left alone; one that waits is surveyed again."""
        if self._surveys.pop(host, None) is not None and self._waiting:
            del self._waiting[next(iter(self._waiting))]

    def next(self, stamps: Mapping[str, Any]) -> list[Survey]:
        """Choose hosts for a turn: by their `stamps`, these are this indexer's now. One whose
        cursor another indexer, or a reindex, has changed is removed.
        """
        for host, survey in list(self._surveys.items()):
            if host in stamps and stamps[host] != survey.stamp:
                self.remove(host)
        mine = (survey for host, survey in self._surveys.items() if host in stamps)
        return [survey for survey, _ in zip(mine, range(TURNS), strict=False)]
