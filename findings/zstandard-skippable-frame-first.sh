#!/bin/sh
# python-zstandard 0.25.0: decompress() refuses a valid file whose first frame is a skippable one.
#
# RFC 8878 3.1.2 allows skippable frames (magic 0x184D2A5?) anywhere, also first; pzstd writes one before
# each frame. ZstdDecompressor().decompress() takes the skippable frame's length for the
# content size of the data and raises; stream_reader(read_across_frames=True), decompressobj() and
# copy_stream() read the same bytes well.
#
# Output seen:
#   decompress ZstdError decompression error: decompressed 0 bytes; expected 4
#   stream_reader 1048576
#   copy_stream 1048576
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/v"
"$dir/v/bin/pip" install -q --disable-pip-version-check zstandard==0.25.0
cat >"$dir/seen.py" <<'PY'
import io

import zstandard

skippable = 0x184D2A50.to_bytes(4, "little") + (4).to_bytes(4, "little") + b"note"
data = skippable + zstandard.ZstdCompressor().compress(bytes(1 << 20))
try:
    print("decompress", len(zstandard.ZstdDecompressor().decompress(data)))
except zstandard.ZstdError as e:
    print("decompress ZstdError", e)
reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
print("stream_reader", len(reader.read()))
out = io.BytesIO()
zstandard.ZstdDecompressor().copy_stream(io.BytesIO(data), out)
print("copy_stream", len(out.getvalue()))
PY
seen=$("$dir/v/bin/python" "$dir/seen.py")
printf '%s\n' "$seen"
test "$seen" = "decompress ZstdError decompression error: decompressed 0 bytes; expected 4
stream_reader 1048576
copy_stream 1048576"
