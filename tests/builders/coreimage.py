"""Cores of tests as an analyzer sees them: in a store, opened, their head parsed."""

import os
from pathlib import Path

from crashd.analyzers.coreimage import CoreImage
from crashd.store.corefile import CoreWriter
from crashd.store.coreread import StoredCore, read_head


def store_core(path: Path, core: bytes) -> StoredCore:
    """Compress a core into a file, which is replaced, and open it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    writer = CoreWriter(fd, level=1, threads=0)
    writer.write(memoryview(core))
    writer.finish()
    return StoredCore(fd)


def open_image(path: Path, core: bytes) -> CoreImage:
    """Store a core, and open it as an analyzer does."""
    stored = store_core(path, core)
    return CoreImage(stored, read_head(stored)[1])
