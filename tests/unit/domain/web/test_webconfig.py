import pytest

from crashd.domain.web.webconfig import (
    COST_MAX,
    USERS_MAX,
    ClientCert,
    Tls,
    WebConfigError,
    parse_web_config,
)

HASH = "$2y$10$" + "a" * 53
TLS = {"cert_file": "c.pem", "key_file": "k.pem"}
VERIFY = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}


def test_parse_whole_file_is_understood() -> None:
    found = parse_web_config(
        {
            "tls_server_config": {
                **TLS,
                **VERIFY,
                "client_allowed_sans": ["prometheus.example"],
                "min_version": "TLS12",
                "max_version": "TLS13",
                "cipher_suites": [
                    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                    "TLS_AES_128_GCM_SHA256",
                ],
                "prefer_server_cipher_suites": False,
            },
            "http_server_config": {"http2": True, "headers": {"X-Frame-Options": "deny"}},
            "basic_auth_users": {"prometheus": HASH},
        }
    )
    assert found.tls == Tls(
        "c.pem",
        "k.pem",
        ClientCert.REQUIRED,
        "ca.pem",
        frozenset({"prometheus.example"}),
        "TLSv1_2",
        "TLSv1_3",
        ("ECDHE-RSA-AES128-GCM-SHA256",),
        False,
    )
    assert found.users == {"prometheus": HASH.encode()}
    assert found.headers == {"X-Frame-Options": "deny"}
    assert HASH not in repr(found)


def test_parse_least_of_each_is_enough() -> None:
    assert parse_web_config({"tls_server_config": TLS}).tls == Tls("c.pem", "k.pem")
    assert parse_web_config({"basic_auth_users": {"a": HASH}}).tls is None


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        [],
        "text",
        {"http_server_config": {"http2": True}},
        {"basic_auth_users": {}},
        {"basic_auth_users": None},
        {"tls_server_config": None},
        {"tls_server_config": TLS, "basic_auth_users": None},
    ],
)
def test_parse_what_protects_nothing_is_refused(document: object) -> None:
    with pytest.raises(WebConfigError):
        parse_web_config(document)


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        ({"cert_file": "c"}, "key_file is missing"),
        ({"key_file": "k"}, "cert_file is missing"),
        ({**TLS, "cert_file": 7}, "cert_file is not a text"),
        ({**TLS, "cert_file": ""}, "cert_file is not a text"),
        ({**TLS, "cert_file": "a\0b"}, "cert_file is not a text"),
        ({**TLS, "cert_files": "x"}, "'cert_files' is unknown"),
        ({**TLS, "curve_preferences": ["X25519"]}, "'curve_preferences' is unknown"),
        ({**TLS, "client_auth_type": "RequestClientCert"}, "verifies nothing"),
        ({**TLS, "client_auth_type": "RequireAnyClientCert"}, "verifies nothing"),
        ({**TLS, "client_auth_type": "Maybe"}, "unknown value 'Maybe'"),
        ({**TLS, "client_auth_type": "RequireAndVerifyClientCert"}, "require each other"),
        ({**TLS, "client_ca_file": "ca"}, "require each other"),
        ({**TLS, "client_allowed_sans": ["a"]}, "without a client_auth_type"),
        ({**TLS, **VERIFY, "client_allowed_sans": "a"}, "not a list of texts"),
        ({**TLS, **VERIFY, "client_allowed_sans": [None]}, "not a list of texts"),
        ({**TLS, **VERIFY, "client_allowed_sans": ["a"] * 101}, "more than 100"),
        ({**TLS, "min_version": "TLS10"}, "neither TLS12 nor TLS13"),
        ({**TLS, "min_version": "TLS13", "max_version": "TLS12"}, "below min_version"),
        ({**TLS, "cipher_suites": ["ALL:eNULL"]}, "unknown cipher 'ALL:eNULL'"),
        ({**TLS, "prefer_server_cipher_suites": "yes"}, "neither true nor false"),
    ],
)
def test_parse_tls_that_is_wrong_is_refused(tls: object, words: str) -> None:
    with pytest.raises(WebConfigError, match=words) as error:
        parse_web_config({"tls_server_config": tls})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("users", "words"),
    [
        ({"a": "secret"}, "'a' has no bcrypt hash"),
        ({"a": None}, "no bcrypt hash"),
        ({"a": HASH + "\n"}, "no bcrypt hash"),
        ({"a": HASH.replace("$10$", "$31$")}, f"not between 4 and {COST_MAX}"),
        ({"a": HASH.replace("$10$", "$03$")}, "not between 4 and"),
        ({"a:b": HASH}, "is not a valid user name"),
        ({"": HASH}, "is not a valid user name"),
        ({7: HASH}, "is not a valid user name"),
        ({"a\nb": HASH}, "is not a valid user name"),
        ({f"u{n}": HASH for n in range(USERS_MAX + 1)}, f"between 1 and {USERS_MAX} users"),
        ([HASH], "not a mapping"),
    ],
)
def test_parse_users_that_are_wrong_are_refused_without_their_hash(
    users: object, words: str
) -> None:
    with pytest.raises(WebConfigError, match=words) as error:
        parse_web_config({"basic_auth_users": users})
    assert "secret" not in str(error.value)
    assert HASH not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "server",
    [
        {"http2": "no"},
        {"http3": True},
        {"headers": {"X-Evil": "1"}},
        {"headers": {"X-Frame-Options": "deny\r\nSet-Cookie: a=b"}},
        {"headers": {"X-Frame-Options": "d\u00e9ny"}},
        {"headers": {"X-Frame-Options": None, "Cookie": "a"}},
    ],
)
def test_parse_headers_that_are_wrong_are_refused(server: object) -> None:
    with pytest.raises(WebConfigError):
        parse_web_config({"basic_auth_users": {"a": HASH}, "http_server_config": server})


def test_parse_unknown_section_is_refused() -> None:
    with pytest.raises(WebConfigError, match="'rate_limit' is unknown"):
        parse_web_config({"basic_auth_users": {"a": HASH}, "rate_limit": {}})
