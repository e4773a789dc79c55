#!/bin/sh
# obstore 0.12.1: any `client_options` make AWS_ALLOW_HTTP of the environment have no effect.
#
# The store's other settings (endpoint, keys, region) still come from the environment beside options that are given.
# This one does not: a program that only sets a timeout can no longer reach an endpoint with http://, and is told
# "HTTP error: builder error", which names neither. It has to read the variable itself.
#
# Output seen:
#   without client_options: error sending request
#   with a timeout alone: builder error
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/v"
"$dir/v/bin/pip" install -q --disable-pip-version-check obstore==0.12.1
cat >"$dir/seen.py" <<'PY'
from datetime import timedelta

import obstore
from obstore.store import from_url

ONCE = {"max_retries": 0}
for name, options in (
    ("without client_options", {}),
    ("with a timeout alone", {"client_options": {"timeout": timedelta(seconds=5)}}),
):
    store = from_url("s3://bucket", retry_config=ONCE, **options)
    try:
        obstore.put(store, "x", b"y", use_multipart=False)
    except obstore.exceptions.GenericError as e:
        print(f"{name}: " + str(e).split("HTTP error: ")[1].splitlines()[0])
PY
AWS_ENDPOINT_URL=http://127.0.0.1:9 AWS_ALLOW_HTTP=true AWS_REGION=x AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b \
    "$dir/v/bin/python" "$dir/seen.py" | tee "$dir/out"
[ "$(cat "$dir/out")" = "without client_options: error sending request
with a timeout alone: builder error" ]
