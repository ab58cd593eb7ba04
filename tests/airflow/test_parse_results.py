"""What comes of a parse: of honest files, of broken ones, and of files that lie. One DAG processor parses all, once."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

import pytest

from tests.support.airflow_stack import wait_until
from tests.support.node import Node
from tests.support.parsing import ParsingStack, sandboxed, temporary_stack

HONEST = """
import os, socket
from airflow.sdk import DAG, Variable, task

said = [str(os.getuid()), Variable.get("from_environment"), Variable.get("from_database")]
with DAG("{dag_id}", description=" ".join(said)):
    @task
    def nothing(): pass
    nothing()
"""
USES_PANDAS = """
import pandas
from airflow.sdk import DAG
with DAG("{dag_id}", description=pandas.__version__): pass
"""
LIES = """
from airflow.sdk import DAG
from airflow.sdk.execution_time import comms

send = comms.CommsDecoder.send
def lie(self, msg):
    if type(msg).__name__ == "DagFileParsingResult":
        dag = msg.serialized_dags[0].data["dag"]
        {lie}
    return send(self, msg)
comms.CommsDecoder.send = lie
with DAG("liar"): pass
"""
AT_IMPORT = """
from airflow.sdk import DAG
import os, socket, stat, sys
{code}
dag = DAG("{dag_id}")
"""
OTHER_SOCKETS = """
for fd in range(3, 20):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode) and not os.path.samestat(os.fstat(fd), os.fstat(0)):
            os.write(fd, b"[1]\\n")
    except OSError:
        continue
"""
UNREAD_ANSWERS = """
from airflow.sdk.execution_time.comms import GetVariable, _RequestFrame
request = _RequestFrame(id=1, body=GetVariable(key="from_database").model_dump()).as_bytes()
while True:
    os.write(0, bytes(request))
"""
LIES_TOLD = {
    "fileloc": ('dag["fileloc"] = {cfg!r}', "the DAG 'liar' names '{cfg}' as its file"),
    "result": ("msg.fileloc = {cfg!r}", "the result is for '{cfg}'"),
    "relative": ('dag["relative_fileloc"] = "../airflow.cfg"', "names '../airflow.cfg' as its place in the bundle"),
    "error": ('msg.import_errors["a_honest.py"] = "x"', "an import error is for 'a_honest.py'"),
    "warning": (
        'msg.warnings = [dict(dag_id="honest", warning_type="non-existent pool", message="x")]',
        "a warning is for the DAG 'honest', which is not in this file",
    ),
}


@pytest.fixture(scope="module")
def stack(node: Node) -> Iterator[ParsingStack]:
    with temporary_stack(["dags", "other"]) as stack:
        stack.environment = {"AIRFLOW_VAR_FROM_ENVIRONMENT": "environment"}
        slow = {"dag_processor": {"min_file_process_interval": "600", "file_parsing_sort_mode": "alphabetical"}}
        stack.configure(sandboxed(node.socket, node.load("task")), slow)
        stack.run("variables", "set", "from_database", "database")
        write_files(stack, node)
        stack.start()
        yield stack
        stack.stop()


def write_files(stack: ParsingStack, node: Node) -> None:
    stack.write("a_honest.py", HONEST.format(dag_id="honest"))
    for name, image in (("old", "demo-a"), ("new", "demo-b")):
        stack.write(f"b_{name}.py", USES_PANDAS.format(dag_id=name))
        stack.write(f"b_{name}.yaml", f"sandbox: {{image: {node.load(image)}, pull_policy: never}}\n")
    with zipfile.ZipFile(stack.dags / "c_archive.zip", "w") as archive:
        archive.writestr("inner.py", AT_IMPORT.format(dag_id="zipped", code="# in the zip"))
        archive.writestr("broken.py", AT_IMPORT.format(dag_id="x", code="raise ValueError('inside')"))
    for name, (lie, _) in LIES_TOLD.items():
        stack.write(f"lie_{name}.py", LIES.format(lie=lie.format(cfg=str(stack.home / "airflow.cfg"))))
    stack.write("m_exits.py", AT_IMPORT.format(dag_id="x", code="os._exit(3)"))
    stack.write("m_frame.py", AT_IMPORT.format(dag_id="x", code='os.write(0, b"\\xff" * 8)'))
    stack.write("m_memory.py", AT_IMPORT.format(dag_id="x", code="hog = bytearray(2**30)"))
    stack.write("m_memory.yaml", "sandbox: {resources: {memory: 300Mi}}\n")
    stack.write("m_noise.py", AT_IMPORT.format(dag_id="noisy", code=OTHER_SOCKETS))
    stack.write("m_unread.py", AT_IMPORT.format(dag_id="x", code=UNREAD_ANSWERS))
    (stack.dags / "n_link.py").symlink_to(stack.home / "airflow.cfg")
    stack.write("o_yaml.py", AT_IMPORT.format(dag_id="x", code=""))
    stack.write("o_yaml.yaml", "sandbox:\n  image: there\n  imige: typo\n")
    stack.write("o_plain.py", AT_IMPORT.format(dag_id="x", code=""))
    stack.write("o_plain.yaml", f"sandbox: {{image: {node.load('base')}}}\n")
    stack.write("o_policy.py", AT_IMPORT.format(dag_id="x", code=""))
    stack.write("o_policy.yaml", "sandbox: {network: host}\n")
    stack.write("o_image.py", AT_IMPORT.format(dag_id="x", code=""))
    stack.write("o_image.yaml", "sandbox: {image: localhost/aircell/none:1, pull_policy: never}\n")


def test_a_file_is_parsed_in_a_sandbox_with_the_variables_of_the_host(stack: ParsingStack) -> None:
    stack.wait_for_dags("honest")
    assert stack.rows("select description from dag where dag_id = 'honest'") == [("50000 environment database",)]


def test_two_files_with_conflicting_needs(stack: ParsingStack) -> None:
    stack.wait_for_dags("old", "new")
    found = dict(stack.rows("select dag_id, description from dag where dag_id in ('old', 'new')"))
    assert found == {"old": "2.2.3", "new": "3.1.1"}


def test_an_archive(stack: ParsingStack) -> None:
    stack.wait_for_dags("zipped")
    archive = str(stack.dags / "c_archive.zip")
    rows = stack.rows("select relative_fileloc, d.fileloc, source_code from dag d join dag_code using (dag_id)")
    [(relative, fileloc, source)] = [row for row in rows if row[1].startswith(archive)]
    assert (relative, fileloc) == ("c_archive.zip/inner.py", f"{archive}/inner.py")
    assert "# in the zip" in source
    assert "Error loading DAG" in stack.parse_log("c_archive.zip")  # of the other member, which harmed nobody


@pytest.mark.parametrize("name", LIES_TOLD)
def test_a_file_that_lies_gets_an_import_error_and_nothing_is_read(stack: ParsingStack, name: str) -> None:
    cfg = str(stack.home / "airflow.cfg")
    error = stack.wait_for_error(f"lie_{name}.py", LIES_TOLD[name][1].format(cfg=cfg))
    assert error.startswith("Aircell refused what the sandbox of this file sent")
    assert "liar" not in stack.stale()
    assert stack.rows("select count(*) from dag_code where fileloc = ?", cfg) == [(0,)]
    assert stack.rows("select count(*) from dag_code where source_code like '%sql_alchemy_conn%'") == [(0,)]


def test_no_lie_touched_the_honest_file(stack: ParsingStack) -> None:
    for name in LIES_TOLD:
        stack.wait_for_error(f"lie_{name}.py", "refused")
    assert stack.stale()["honest"] is False
    assert "a_honest.py" not in stack.errors()
    assert stack.rows("select count(*) from dag_warning") == [(0,)]


@pytest.mark.parametrize("bundle", ["dags", "other"])
def test_a_file_that_takes_another_files_dag_is_refused(stack: ParsingStack, bundle: str) -> None:
    stack.wait_for_dags("honest")
    stack.write("z_thief.py", HONEST.format(dag_id="honest"), bundle)
    error = stack.wait_for_error("z_thief.py", "belong to other files", bundle=bundle)
    assert "'honest' (a_honest.py in bundle dags)" in error
    owner = stack.rows("select bundle_name, relative_fileloc from dag where dag_id = 'honest'")
    assert owner == [("dags", "a_honest.py")]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("m_exits", "ended before the file was parsed. It exited with code 3."),
        ("m_frame", "a message of 4294967295 bytes"),
        ("m_memory", "the memory limit of 300 MiB was reached"),
        ("m_unread", "nothing that shows that it reads what it is sent"),
        ("n_link", "is a link that leads out of its bundle"),
        ("o_image", "localhost/aircell/none:1"),
        ("o_plain", "The image has no apache-airflow-core"),
        ("o_policy", "policy.networks"),
        ("o_yaml", "o_yaml.yaml:3: imige"),
    ],
)
def test_what_cannot_be_parsed_gets_an_import_error_that_says_why(stack: ParsingStack, name: str, says: str) -> None:
    stack.wait_for_error(f"{name}.py", says)


def test_nonsense_in_a_log_harms_nobody(stack: ParsingStack) -> None:
    stack.wait_for_dags("noisy")
    wait_until(lambda: "a line that is none" in stack.parse_log("m_noise.py"), "the remark", 10)


def test_nothing_is_left(stack: ParsingStack, node: Node) -> None:
    stack.wait_for_dags("honest", "old", "new", "zipped", "noisy")
    node.clean()
