"""Lifecycle rules, in the form of each cloud."""

import json

import pytest

from crashd.fleet.lifecycle import KINDS, build_rules, kind_of


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("s3://crashes/prod", "s3"),
        ("gs://crashes", "gcs"),
        ("az://crashes", "azure"),
        ("file:///srv/crashes", None),
    ],
)
def test_kind_of_url_is_whose_rules_it_needs(url: str, kind: str | None) -> None:
    assert kind_of(url) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_build_rules_limits_records_and_cores_and_never_policies(kind: str) -> None:
    text = json.dumps(build_rules(kind, "/prod/", 90, 30))
    assert '"prod/records/v1/"' in text and '"prod/cores/v1/"' in text
    assert "90" in text and "30" in text and "policy" not in text


def test_build_rules_of_s3_expire_by_prefix() -> None:
    rules = build_rules("s3", "", 90, 30)["Rules"]
    assert [rule["Filter"]["Prefix"] for rule in rules[:2]] == ["records/v1/", "cores/v1/"]
    assert [rule["Expiration"]["Days"] for rule in rules[:2]] == [90, 30]
    assert rules[2]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
