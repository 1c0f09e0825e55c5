"""What is not our own is exactly what its authors published, with its licence beside it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "flask_backend" / "dashboard" / "static"
AXE = ROOT / "tests" / "browser" / "axe"


@pytest.mark.parametrize(
    ("path", "checksum", "licence"),
    [
        # The file of the package idiomorph 0.8.0 on npm, dist/idiomorph.min.js.
        (
            STATIC / "idiomorph-0.8.0.min.js",
            "4cbd535caf7663a51eda9bce6595371c384fc430d54b8d414e29a61167f19f96",
            (STATIC / "idiomorph-0.8.0.LICENSE.txt", "Zero-Clause BSD"),
        ),
        # The file of the package axe-core 4.14.1 on npm; only tests use it.
        (
            AXE / "axe.min.js",
            "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c",
            (AXE / "LICENSE", "Mozilla Public License"),
        ),
    ],
    ids=["idiomorph", "axe-core"],
)
def test_vendored_file_is_unchanged_and_has_its_licence(path, checksum, licence):
    assert sha256(path.read_bytes()).hexdigest() == checksum
    file, name = licence
    assert name in file.read_text()
