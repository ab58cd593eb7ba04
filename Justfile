# The manual of this repository's tasks. `./justw` runs it on a machine that has no `just`; `./justw --list` lists it.
# What comes after a recipe's name is passed on: `./justw test tests/unit -k spec -x`.

set positional-arguments

python := ".venv/bin/python"

# Lint, then test: what a change must pass.
default: lint test

# Install what the demo needs: the Python environment, containerd, runc, CNI plugins, image build tools.
setup:
    @scripts/setup engines

# Run two DAG files with conflicting dependencies, each in its own sandbox. --keep leaves it up; --backend docker takes
# Docker; --help tells more.
demo *args:
    @scripts/setup {{ if args =~ "docker" { "docker" } else { "engines" } }}
    @{{ python }} -m demo "$@"

# Run the tests, on real containerd and real Airflow. Takes pytest's options; `-n 0` runs all in one process.
test *args:
    @scripts/setup tests
    {{ python }} -m pytest -n 2 "$@"

# Hundreds of sandboxes on each engine, of which nothing may be left: five minutes. Takes pytest's options.
test-engines *args:
    @scripts/setup tests
    {{ python }} -m pytest tests/contract -m engines "$@"

# Write the table of docs/backends.md, which backend enforces what, from the outcomes of the contract tests.
backends-table:
    @scripts/setup tests
    {{ python }} -m pytest tests/contract -m field --write-backends-table

# Check style, types, who imports whom, and that the generated code is current.
lint: proto-check
    {{ python }} -m ruff check
    {{ python }} -m ruff format --check
    {{ python }} -m mypy
    .venv/bin/lint-imports --no-logo

# Format the code, and mend what the linter can mend by itself.
fmt:
    @scripts/setup python
    {{ python }} -m ruff check --fix
    {{ python }} -m ruff format

# Generate the CRI stubs from cri_protos/aircell_cri/v1/api.proto.
proto:
    @scripts/setup python
    .venv/bin/uv run --quiet --script cri_protos/generate.py

# Fail when the committed stubs are not what the .proto generates.
proto-check:
    @scripts/setup python
    .venv/bin/uv run --quiet --script cri_protos/generate.py --check

# Build the container images that the demo and the tests use, or only those named.
images *names: setup
    @{{ python }} -m images.build "$@"

# Resolve anew the versions that constraints.txt and images/requirements/ pin.
lock:
    @scripts/setup python
    scripts/lock

# Measure what a sandbox costs, beside stock Airflow.
bench *args:
    @scripts/setup tests
    @{{ python }} -m tests.bench "$@"

# Remove what the recipes made: environments, caches and images.
clean:
    rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
    rm -rf "${AIRCELL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aircell}"
