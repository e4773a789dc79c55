"""Lifecycle rules for a bucket, in the form that its cloud takes. Pure."""

from typing import Any, Final
from urllib.parse import urlsplit

from crashd.domain.fleet.keys import CORES, RECORDS

UPLOAD_DAYS: Final = 7
"""Parts of uploads that were never finished are deleted then."""
KINDS: Final = ("s3", "gcs", "azure")


def kind_of(url: str) -> str | None:
    """Return whose rules a URL needs; None for a directory."""
    scheme = urlsplit(url).scheme
    return {"gs": "gcs", "az": "azure", "azure": "azure", "abfs": "azure", "abfss": "azure"}.get(
        scheme, None if scheme == "file" else "s3"
    )


def build_rules(kind: str, prefix: str, records_days: int, cores_days: int) -> dict[str, Any]:
    """Build the rules: records and cores are deleted after so many days, policies never.

    `prefix` is the path of the fleet in its bucket, or "".
    """
    lead = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    days = {f"{lead}{RECORDS}": records_days, f"{lead}{CORES}": cores_days}
    if kind == "gcs":
        rules = [
            {"action": {"type": "Delete"}, "condition": {"age": age, "matchesPrefix": [path]}}
            for path, age in days.items()
        ]
        abort: dict[str, Any] = {"action": {"type": "AbortIncompleteMultipartUpload"}}
        return {"rule": [*rules, abort | {"condition": {"age": UPLOAD_DAYS}}]}
    if kind == "azure":
        return {"rules": [_azure(path, age) for path, age in days.items()]}
    expire = [
        {
            "ID": f"crashd {path.split('/')[-3]}",
            "Status": "Enabled",
            "Filter": {"Prefix": path},
            "Expiration": {"Days": age},
        }
        for path, age in days.items()
    ]
    abort = {
        "ID": "crashd unfinished uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": lead + CORES},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UPLOAD_DAYS},
    }
    return {"Rules": [*expire, abort]}


def _azure(path: str, age: int) -> dict[str, Any]:
    return {
        "enabled": True,
        "name": f"crashd-{path.split('/')[-3]}",
        "type": "Lifecycle",
        "definition": {
            "filters": {"blobTypes": ["blockBlob"], "prefixMatch": [path]},
            "actions": {"baseBlob": {"delete": {"daysAfterModificationGreaterThan": age}}},
        },
    }
