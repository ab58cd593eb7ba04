"""Requirements as authors write them, what pip is told of the node, and what its failures mean."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from aircell import build_errors, pip_request
from aircell.backends.cri.image_files import with_layer
from aircell.backends.docker.layers import dockerfile_for
from aircell.daemon.requirements import reference, with_paths
from aircell.errors import AircellError, BuildFailed, BuildUnavailable
from aircell.policy import Policy
from aircell.requirements import problem, read
from aircell.spec import SandboxSpec
from aircell.status import ImageInfo

FILE = """\
# for the reports
pandas==2.2.3

humanize \\
    --hash=sha256:0a1b   # checked
other @ https://example.org/other-1.0-py3-none-any.whl#sha256=0a1b
"""
CONFLICT = """\
ERROR: Cannot install apache-airflow-core==3.3.2 and pydantic==1.10.2 because these package versions have conflicting \
dependencies.
ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/
"""
UNREACHABLE = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError("refused")': /simple/greeting/
ERROR: No matching distribution found for greeting
"""


def test_a_file_of_requirements() -> None:
    assert read(FILE) == [
        (2, "pandas==2.2.3"),
        (4, "humanize     --hash=sha256:0a1b"),
        (6, "other @ https://example.org/other-1.0-py3-none-any.whl#sha256=0a1b"),
    ]
    assert [problem(line) for _, line in read(FILE)] == ["", "", ""]


@pytest.mark.parametrize(
    "line", ["-r other.txt", "--index-url=http://evil", "pandas --index-url http://evil", "a\nb", "", "./folder", "a\0"]
)
def test_what_is_no_requirement(line: str) -> None:
    assert problem(line)
    with pytest.raises(ValidationError):
        SandboxSpec(image="x", requirements=(line,))


def test_pips_options_are_merged_as_pip_merges_them() -> None:
    lines = [
        ":env:.default-timeout='180'",
        ":env:.index_url='https://variable'",
        "freeze.timeout='1'",
        "global.cert='/etc/ca.pem'",
        "global.index-url='https://global'",
        "global.no-index='a=b'",
        "install.no-index='no'",
    ]
    assert pip_request.options(lines) == {
        "cert": "/etc/ca.pem",
        "default-timeout": "180",
        "timeout": "180",
        "index-url": "https://variable",
        "no-index": "no",
    }


def test_only_what_says_where_packages_come_from_is_passed_on() -> None:
    configured = {
        "index-url": "https://user:secret@index",
        "target": "/usr",
        "cert": "/etc/ca.pem",
        "find-links": "/opt/wheels https://links",
    }
    assert pip_request.environment(configured, {"HTTPS_PROXY": "http://proxy", "TOKEN": "secret"}) == {
        "HTTPS_PROXY": "http://proxy",
        "PIP_FIND_LINKS": "https://links",
        "PIP_INDEX_URL": "https://user:secret@index",
    }


@pytest.mark.parametrize(
    ("said", "kind", "why"),
    [
        (CONFLICT, BuildFailed, "contradict"),
        (UNREACHABLE, BuildUnavailable, "cannot be reached"),
        ("ERROR: No matching distribution found for foo>=3", BuildFailed, "has foo>=3"),
        ("ERROR: Invalid requirement: 'foo bar': Expected", BuildFailed, "'foo bar'"),
        ("OSError: [Errno 28] No space left on device", BuildUnavailable, "no space"),
        ("ERROR: BuildKit is enabled but the buildx component is missing or broken.", BuildUnavailable, "buildx"),
        ("something else", BuildFailed, "could not be built"),
    ],
)
def test_what_a_failure_means(said: str, kind: type[AircellError], why: str) -> None:
    error = build_errors.translate("the image", said.splitlines())
    assert type(error) is kind
    assert error.message.startswith("the image could not be built")
    assert why in error.message
    assert error.hint
    assert said.splitlines()[-1] in error.detail


def test_the_same_content_has_the_same_name_and_no_other_has() -> None:
    base, spec, policy = ImageInfo("sha256:1", "base"), SandboxSpec(image="x", requirements=("a", "b")), Policy()
    name = reference(base, spec, policy)
    assert name == reference(base, spec.model_copy(update={"env": {"A": "1"}, "image": "y"}), policy)
    others = [
        reference(ImageInfo("sha256:2", "base"), spec, policy),
        reference(base, spec.model_copy(update={"requirements": ("a",)}), policy),
        reference(base, spec.model_copy(update={"python": "python3.12"}), policy),
        reference(base, spec, Policy(requirements="any")),
    ]
    assert len({name, *others}) == 5


def test_an_authors_own_path_does_not_hide_the_requirements() -> None:
    env = {"PYTHONPATH": "/dags", "A": "b"}
    assert with_paths(SandboxSpec(image="x", env=env)) == env
    with_requirements = with_paths(SandboxSpec(image="x", env=env, requirements=("a",)))
    assert with_requirements == {"PYTHONPATH": "/opt/aircell/requirements:/dags", "A": "b"}


def test_a_layer_in_an_images_configuration() -> None:
    config = {"rootfs": {"diff_ids": ["sha256:1"]}, "config": {"Env": ["PATH=/bin", "A=b=c"], "User": "1"}}
    added = with_layer(config, "sha256:2", {"PYTHONPATH": "/new", "PATH": "/new/bin"})
    assert added["rootfs"] == {"diff_ids": ["sha256:1", "sha256:2"]}
    assert added["config"] == {"Env": ["PATH=/new/bin:/bin", "A=b=c", "PYTHONPATH=/new"], "User": "1"}
    assert config["rootfs"] == {"diff_ids": ["sha256:1"]}


def test_a_layer_in_a_dockerfile() -> None:
    assert dockerfile_for("sha256:1", {"PYTHONPATH": "/new"}) == (
        "FROM sha256:1\nADD layer.tar /\nENV PYTHONPATH=/new${PYTHONPATH:+:$PYTHONPATH}\n"
    )
