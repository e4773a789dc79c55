"""The [fleet] section, as the shipping thread needs it."""

from dataclasses import dataclass

from crashd.configuration import keys as config
from crashd.domain.fleet.choice import Choice, Cores
from crashd.domain.fleet.orders import ShipSettings
from crashd.edge.fleet.age import Recipient


@dataclass(frozen=True, slots=True)
class Rules:
    """What is sent, and where."""

    ship: ShipSettings
    choice: Choice
    labels: dict[str, str]
    recipients: tuple[Recipient, ...] = ()
    """Those of `ship`, parsed."""

    @property
    def encrypts(self) -> bool:
        """Return whether cores and environments are encrypted."""
        return bool(self.ship.recipients)


def rules_of(settings: config.Settings) -> Rules | None:
    """Build the rules; None if nothing is sent."""
    fleet = settings.fleet
    if not fleet.url:
        return None
    return Rules(
        ShipSettings(fleet.url, fleet.bandwidth_bytes, fleet.recipients),
        Choice(
            Cores(fleet.cores),
            fleet.cores_per_signature,
            fleet.kernel_dumps,
            settings.analysis.enabled,
            frozenset(),
        ),
        fleet.label_values,
    )
