# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["grpcio-tools==1.62.3", "mypy-protobuf==3.6.0", "setuptools<81"]
# ///
"""Makes the Python stubs beside each ``.proto`` of aircell_cri; ``--check`` only compares and fails on drift.

Run it with ``uv run --script cri_protos/generate.py``, which gives it an environment of its own. The generator is
an old one on purpose: what protoc 4.25 writes is imported by every protobuf runtime from 4.25 on, whereas a newer
generator's output refuses an older runtime. ``setuptools`` is there because grpcio-tools 1.62 imports pkg_resources.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PLUGINS = ("python", "grpc_python", "mypy", "mypy_grpc")


def generate(target: Path) -> dict[str, bytes]:
    """Generates below ``target``; the files by their name relative to it."""
    protos = [str(path.relative_to(ROOT)) for path in sorted(ROOT.rglob("*.proto"))]
    arguments = ["protoc", f"-I{ROOT}", *(f"--{plugin}_out={target}" for plugin in PLUGINS), *protos]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed, see above")
    return {str(path.relative_to(target)): path.read_bytes() for path in sorted(target.rglob("*_pb2*"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the committed stubs differ")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
    committed = {name: path.read_bytes() for name in fresh if (path := ROOT / name).exists()}
    drifted = [name for name, content in fresh.items() if committed.get(name) != content]
    if check and drifted:
        sys.exit(f"out of date: {', '.join(drifted)}; run `just proto` and commit what it changes")
    for name in drifted:
        (ROOT / name).write_bytes(fresh[name])
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
