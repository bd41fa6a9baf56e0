"""The files that start runs on clusters (docs/launch), and the commands of docs/launch.md."""

import configparser
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from owl3_jax.cli.model_flags import parse
from owl3_jax.cli.serve_flags import Flags as ServeFlags
from owl3_jax.cli.train import Flags
from owl3_jax.host import command_line
from owl3_jax.host.distributed import _given_job
from owl3_jax.host.lifeline import LOST

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "docs/launch"
SCRIPTS = [LAUNCH / "supervised.sh", LAUNCH / "train.sbatch", LAUNCH / "queued_resource.sh"]
KUBERNETES = "1.34"

FINISHED, AGAIN, PERSON = 0, 75, 100  # the statuses of supervised.sh


def _fields(required: dict[str, object], optional: dict[str, object]) -> dict[str, object]:
    """A schema of an object that has these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": [*required],
        "additionalProperties": False,
    }


_NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
_COUNT = {"type": "integer", "minimum": 0}
_NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True}
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_RULE = _fields(
    {
        "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "action": {
            "enum": [
                "FailJobSet",
                "RestartJobSet",
                "RestartJobSetAndIgnoreMaxRestarts",
                "RestartJob",
                "RestartJobAndIgnoreMaxRestarts",
            ]
        },
    },
    {
        "onJobFailureReasons": {
            **_NAMES,
            "items": {
                "enum": [
                    "BackoffLimitExceeded",
                    "DeadlineExceeded",
                    "FailedIndexes",
                    "MaxFailedIndexesExceeded",
                    "PodFailurePolicy",
                ]
            },
        },
        "targetReplicatedJobs": _NAMES,
    },
)
# What docs/launch uses of jobset.x-k8s.io/v1alpha2. The template of a job is Kubernetes' own.
JOBSET = _fields(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": _fields({"name": _NAME}, {"labels": _STRINGS, "annotations": _STRINGS}),
        "spec": _fields(
            {
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": _fields({"name": _NAME, "template": {"type": "object"}}, {"replicas": _COUNT}),
                }
            },
            {
                "failurePolicy": _fields(
                    {},
                    {
                        "maxRestarts": _COUNT,
                        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
                        "rules": {"type": "array", "items": _RULE},
                    },
                )
            },
        ),
    },
    {},
)


def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def pod() -> dict:
    """What the JobSet says of a pod."""
    (slices,) = jobset()["spec"]["replicatedJobs"]
    return slices["template"]["spec"]["template"]["spec"]


def changed(path: str, change: Callable[[dict, str], None]) -> dict:
    """The JobSet after a change at `a.b.0.c`; `change` gets what holds the last name, and that name."""
    document = jobset()
    *parents, name = path.split(".")
    place = document
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    change(place, name)
    return document


def validate(document: dict) -> None:
    """Raises jsonschema.ValidationError when a cluster would refuse this JobSet, or ignore a field of it."""
    jsonschema.validate(document, JOBSET)
    for replicated in document["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_the_jobset_is_valid_and_its_numbers_agree():
    document = jobset()
    validate(document)
    (slices,) = document["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    (container,) = pod()["containers"]
    chips = [int(size) for size in pod()["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    limits = container["resources"]["limits"]
    assert job["completions"] == job["parallelism"] == chips[0] * chips[1] // limits["google.com/tpu"]
    assert container["resources"]["requests"] == limits
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [PERSON]}
    assert pod()["restartPolicy"] == "Never" and job["backoffLimit"] == 0  # or the rules above are not asked
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}


def test_the_volume_is_valid_and_the_one_that_the_jobset_mounts():
    volume = yaml.safe_load((LAUNCH / "volume.yaml").read_text())
    kubernetes_validate.validate(volume, KUBERNETES, strict=True)
    (claimed,) = pod()["volumes"]
    assert claimed["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("spec.failurePolicy.maxRestarts", "maxRestart"),
        ("spec.failurePolicy.rules.0.onJobFailureReasons", "onJobFailureReason"),
        ("spec.replicatedJobs.0.replicas", "replica"),
        ("spec.replicatedJobs.0.template.spec.backoffLimit", "backOffLimit"),
        ("spec.replicatedJobs.0.template.spec.podFailurePolicy", "podFailurePolicies"),
        ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onExitCodes.operator", "operators"),
        ("spec.replicatedJobs.0.template.spec.template.spec.nodeSelector", "nodeSelectors"),
        ("spec.replicatedJobs.0.template.spec.template.spec.terminationGracePeriodSeconds", "terminationGracePeriod"),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.volumeMounts.0.mountPath", "path"),
    ],
)
def test_a_misspelt_field_of_the_jobset_is_refused(path, wrong):
    document = changed(path, lambda place, name: place.update({wrong: place.pop(name)}))
    name = path.rpartition(".")[2]
    with pytest.raises(jsonschema.ValidationError, match=f"'{wrong}' was unexpected|'{name}' is a required"):
        validate(document)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("spec.failurePolicy.rules.0.action", "FailJobset"),
        ("spec.failurePolicy.rules.0.name", "needs a person"),
        ("spec.replicatedJobs.0.template.spec.completions", "4"),
        ("apiVersion", "jobset.x-k8s.io/v1"),
    ],
)
def test_a_wrong_value_in_the_jobset_is_refused(path, wrong):
    document = changed(path, lambda place, name: place.update({name: wrong}))
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


def serving() -> tuple[dict, dict]:
    """The deployment of docs/launch/serve.yaml, and its service."""
    deployment, service = yaml.safe_load_all((LAUNCH / "serve.yaml").read_text())
    return deployment, service


def test_the_deployment_of_a_server_is_valid_and_found_by_its_service():
    deployment, service = serving()
    for document in (deployment, service):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert service["spec"]["selector"] == template["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}


def test_the_deployment_serves_as_its_flags_say(monkeypatch):
    """Its command is our parser's, its probes ask for what is there, and it is killed after it has drained, not before."""
    spec = serving()[0]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    command, *argv = container["args"]
    flags, _ = parse(ServeFlags, sampling="chat", argv=argv, prog="owl3 serve")
    assert command == "serve" and not flags.is_local and flags.port == container["ports"][0]["containerPort"]
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} <= {
        "/ready",
        "/health",
    }
    assert spec["terminationGracePeriodSeconds"] > flags.drain_seconds + 10
    chips = math.prod(map(int, spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert container["resources"]["limits"]["google.com/tpu"] == chips == math.prod(flags.model.mesh.axes)


def test_the_unit_of_systemd_serves_as_its_flags_say():
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names have capital letters
    unit.read(LAUNCH / "owl3-serve.service")
    _, command, *argv = shlex.split(unit["Service"]["ExecStart"])
    flags, _ = parse(ServeFlags, sampling="chat", argv=argv, prog="owl3 serve")
    assert command == "serve" and flags.api_key_file and flags.is_local
    assert int(unit["Service"]["TimeoutStopSec"]) > flags.drain_seconds + 10


def commands() -> list[list[str]]:
    """The arguments of each `owl3 train`, and of each script that passes its own to it, in docs/launch.md and its files."""
    (container,) = pod()["containers"]
    assert container["command"][1:] == ["owl3", "train"]
    found = [container["args"]]
    for file in [ROOT / "docs/launch.md", *SCRIPTS]:
        comments = "\n".join(line.removeprefix("#") for line in file.read_text().splitlines())
        for command in re.findall(r"^ {4,}(.*)$", comments.replace("\\\n", " "), re.MULTILINE):
            found += re.findall(r"(?:owl3 train|train\.sbatch|queued_resource\.sh) (--config [^\"|;&]*)", command)
    return [argv if isinstance(argv, list) else shlex.split(argv, comments=True) for argv in found]


def test_the_commands_are_those_of_our_parser(monkeypatch):
    monkeypatch.chdir(ROOT)
    for argv in commands():
        config, flags = command_line.parse(Flags, argv, prog="owl3 train")
        assert config.train.steps > 0 and flags.workdir != Path(), argv
    assert len(commands()) >= 8


def test_a_misspelt_flag_of_a_command_is_refused(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        command_line.parse(Flags, [*commands()[0], "--distributed.coordinater=a:1"], prog="owl3 train")
    assert ended.value.code == 2 and "coordinater" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert script.suffix == ".sbatch" or os.access(script, os.X_OK)


@pytest.fixture
def shim(tmp_path, monkeypatch) -> Callable[[str, str], None]:
    """Puts a program of a name, written in Python, before all others of that name."""
    folder = tmp_path / "shims"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name: str, program: str) -> None:
        (folder / name).write_text(f"#!{sys.executable} -I\n{program}")
        (folder / name).chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(0)", FINISHED),
        ("sys.exit('error: as SavedRunError and others end')", PERSON),
        ("sys.exit(2)", PERSON),  # a wrong command line
        (f"sys.exit({LOST})", AGAIN),
        ("os.kill(os.getpid(), signal.SIGKILL)", AGAIN),
        ("os.kill(os.getpid(), signal.SIGSEGV)", AGAIN),
    ],
)
def test_the_status_under_a_supervisor_says_what_to_do(end, status):
    program = [sys.executable, "-I", "-c", f"import os, signal, sys; {end}"]
    assert subprocess.run([LAUNCH / "supervised.sh", *program], capture_output=True).returncode == status


def test_a_program_that_is_missing_needs_a_person():
    assert subprocess.run([LAUNCH / "supervised.sh", "no-such-program"], capture_output=True).returncode == PERSON


# As StopSignal: the first signal is a request, a second one would end the process.
STOPS = """
import os, signal, sys
def receive(number, frame):
    print(signal.Signals(number).name, flush=True)
    signal.signal(number, signal.SIG_DFL)
    sys.exit(0)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, receive)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(
    ("send", "number", "status"),
    [
        (os.kill, signal.SIGTERM, AGAIN),  # Kubernetes: the first process of the container
        (os.killpg, signal.SIGTERM, AGAIN),  # Slurm: the group of the task
        (os.kill, signal.SIGINT, FINISHED),  # a person, who does not want it to start again
    ],
)
def test_a_run_that_a_signal_stops_gets_it_once(send, number, status):
    command = [LAUNCH / "supervised.sh", sys.executable, "-I", "-c", STOPS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        send(process.pid, number)
        assert process.communicate(timeout=60)[0] == f"{number.name}\n"
    assert process.returncode == status


# `owl3` prints its arguments and environment, and ends as OWL3_STATUS, a list by process, wants.
OWL3 = """
import json, os, sys
names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]
print(json.dumps([sys.argv[1:], {name: os.environ[name] for name in names if name in os.environ}]))
sys.exit(json.loads(os.environ["OWL3_STATUS"])[int(os.environ.get("SLURM_PROCID", 0))])
"""

# As srun does: one process for each task, and the highest of their statuses.
SRUN = """
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    del command[0]
tasks = [subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(i)}) for i in range(int(os.environ["SLURM_NTASKS"]))]
sys.exit(max(task.wait() for task in tasks))
"""

SCONTROL = """
import os, sys
if sys.argv[1] == "show":
    assert sys.argv[2:] == ["hostnames", "gpu[07-08]"]
    print("gpu07\\ngpu08")
else:
    print(*sys.argv)
"""


@pytest.fixture
def slurm(shim, monkeypatch) -> Callable[..., tuple[list[str], int]]:
    """Runs train.sbatch as a job of two tasks that end with these statuses: the lines that it prints, and its status."""
    shim("owl3", OWL3)
    shim("srun", SRUN)
    shim("scontrol", SCONTROL)

    def run(statuses: list[int], restarts: int | None = None) -> tuple[list[str], int]:
        job = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "4"}
        count = {} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)}
        ended = subprocess.run(
            ["bash", LAUNCH / "train.sbatch", "--config", "configs/digits.py", "--workdir", "a workdir"],
            env=os.environ | job | count | {"OWL3_STATUS": json.dumps(statuses)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.stderr == ""
        return ended.stdout.splitlines(), ended.returncode

    return run


def test_slurm_tells_each_process_who_it_is(slurm):
    lines, status = slurm([0, 0])
    calls = [json.loads(line) for line in lines]
    assert status == 0 and len(calls) == 2
    assert {tuple(argv) for argv, _ in calls} == {("train", "--config", "configs/digits.py", "--workdir", "a workdir")}
    jobs = sorted(_given_job(Flags(Path()).distributed, environment) for _, environment in calls)
    assert [(job.address, job.processes, job.process) for job in jobs] == [
        (("gpu07", 24567), 2, 0),
        (("gpu07", 24567), 2, 1),
    ]


@pytest.mark.parametrize(
    ("statuses", "restarts", "requeued", "status"),
    [
        ([0, 0], None, False, FINISHED),
        ([LOST, LOST], None, True, AGAIN),
        ([LOST, LOST], 49, True, AGAIN),
        ([LOST, LOST], 50, False, AGAIN),  # time that a person looked at it
        ([1, LOST], None, False, PERSON),  # the others of a process with an error end with LOST
        ([2, 2], None, False, PERSON),
    ],
)
def test_slurm_starts_the_job_again_after_the_loss_of_a_process_only(slurm, statuses, restarts, requeued, status):
    lines, ended = slurm(statuses, restarts)
    assert [line.split()[1:] for line in lines if line.endswith("1234567")] == [["requeue", "1234567"]] * requeued
    assert ended == status


# Queued resources: `state` in a file; each connection to the hosts prints what the next line of `hosts` lists.
GCLOUD = """
import json, os, pathlib, sys
place = pathlib.Path(os.environ["CLOUD"])
with (place / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
verb, state = sys.argv[4], place / "state"
if verb == "describe":
    if not state.exists():
        sys.exit("ERROR: NOT_FOUND: Resource 'owl3' was not found")
    now, *later = state.read_text().split()
    print(now)
    if later:
        state.write_text(" ".join(later))
elif verb == "create":
    state.write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
elif verb == "delete":
    state.unlink()
elif verb == "ssh":
    now, *later = json.loads((place / "hosts").read_text())
    (place / "hosts").write_text(json.dumps(later))
    for status in now:
        print("a line of the run")
        print(f"owl3 train has ended with {status}")
    if not now:  # taken away
        state.write_text("SUSPENDING SUSPENDED")
    sys.exit(next((status for status in now if status), 0 if now else 255))
"""


@pytest.fixture
def cloud(shim, tmp_path) -> Callable[[list[list[int]]], tuple[list[list[str]], subprocess.CompletedProcess]]:
    """Runs queued_resource.sh with the statuses of all hosts at each connection: the calls of gcloud, and how it ended."""
    shim("gcloud", GCLOUD)

    def run(hosts: list[list[int]]) -> tuple[list[list[str]], subprocess.CompletedProcess]:
        (tmp_path / "hosts").write_text(json.dumps(hosts))
        asked = {
            "NAME": "owl3",
            "ZONE": "z",
            "TYPE": "v5litepod-16",
            "RUNTIME": "r",
            "IMAGE": "reg/image",
            "NFS": "10.0.0.2:/f",
        }
        ended = subprocess.run(
            [LAUNCH / "queued_resource.sh", "--config", "configs/digits.py", "--workdir", "/runs/a workdir"],
            env=os.environ | asked | {"FLAGS": "--spot --reserved", "PAUSE": "0", "CLOUD": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,  # it goes on for ever when it should not have started again
        )
        return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()], ended

    return run


def verbs(calls: list[list[str]]) -> list[str]:
    return [call[3] for call in calls if call[3] != "describe"]


def test_a_queued_resource_is_requested_used_and_deleted(cloud):
    calls, ended = cloud([[0, 0]])
    assert verbs(calls) == ["create", "ssh", "delete"] and ended.returncode == 0, ended.stderr
    (create,) = [call for call in calls if call[3] == "create"]
    assert create[:5] == ["compute", "tpus", "queued-resources", "create", "owl3"]
    assert {*create[5:]} == {
        *("--zone=z", "--node-id=owl3", "--accelerator-type=v5litepod-16", "--runtime-version=r", "--spot", "--reserved")
    }
    (delete,) = [call for call in calls if call[3] == "delete"]
    assert delete[4:] == ["owl3", "--zone=z", "--force", "--quiet"]
    assert [call[3] for call in calls].index("ssh") == 5  # none there, created, two states of waiting, ACTIVE


def test_each_host_of_a_queued_resource_runs_the_image(cloud, shim, tmp_path):
    """The command that hosts get is executed here, with `sudo docker ...` replaced."""
    calls, _ = cloud([[0]])
    (ssh,) = [call for call in calls if call[3] == "ssh"]
    assert ssh[4:7] == ["owl3", "--zone=z", "--worker=all"]
    shim("sudo", "import json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(75 if 'run' in sys.argv else 1)")
    ended = subprocess.run(["bash", "-c", ssh[7].removeprefix("--command=")], capture_output=True, text=True)
    *sudo, last = ended.stdout.splitlines()
    auth, stop, remove, run = (json.loads(line) for line in sudo)
    assert auth[1:3] == ["auth", "configure-docker"] and auth[3] == "reg"
    assert (stop[1], remove[1], run[:2]) == ("stop", "rm", ["docker", "run"]) and {stop[-1], remove[-1]} == {"owl3"}
    image = run.index("reg/image")
    assert run[image + 1 :] == ["owl3", "train", "--config", "configs/digits.py", "--workdir", "/runs/a workdir"]
    assert "volume-opt=device=:/f,volume-opt=o=addr=10.0.0.2" in run[run.index("--mount") + 1]
    assert run[image - 2 : image] == ["--entrypoint", "/owl3/supervised.sh"]
    assert last == "owl3 train has ended with 75"


@pytest.mark.parametrize(
    ("hosts", "done", "status"),
    [
        ([[75, 75], [0, 0]], ["create", "ssh", "ssh", "delete"], 0),  # a process was lost
        ([[0, 75], [0, 0]], ["create", "ssh", "ssh", "delete"], 0),  # one host got SIGTERM, all have stopped
        ([[], [0, 0]], ["create", "ssh", "delete", "create", "ssh", "delete"], 0),  # the slice was taken away
        ([[75, 100]], ["create", "ssh"], 1),
        ([[125, 125]], ["create", "ssh"], 1),  # of docker: no such image
    ],
)
def test_a_queued_resource_is_used_again_unless_a_person_is_needed(cloud, hosts, done, status):
    calls, ended = cloud(hosts)
    assert (verbs(calls), ended.returncode) == (done, status), ended.stderr
    assert ("needs" in ended.stderr or "error on a host" in ended.stderr) == (status == 1)


def containerfile() -> list[str]:
    """The instructions of the Containerfile, without comments."""
    lines = (LAUNCH / "Containerfile").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_containerfile_copies_files_that_exist():
    copied = {file for line in containerfile() if line.startswith("COPY ") for file in shlex.split(line)[1:-1]}
    assert all((ROOT / file).exists() for file in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"pyproject.toml", "constraints.txt", "owl3_jax", "configs", project["readme"], *project["license-files"]}
    assert needed <= copied


def test_the_containerfile_installs_extras_that_exist():
    (install,) = [line for line in containerfile() if "pip install" in line]
    assert "--constraint constraints.txt" in install and install.endswith('".[${ACCELERATOR},serve]"')
    accelerators = re.findall(r"ACCELERATOR=(\w+)", (LAUNCH / "Containerfile").read_text())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*accelerators} == {"tpu", "cuda"} <= {*extras} >= {"serve"}
    (base,) = [line.split()[1] for line in containerfile() if line.startswith("FROM ")]
    assert "(Python 3.11)" in (ROOT / "constraints.txt").read_text().splitlines()[0] and base.endswith("/python:3.11-slim")


def test_the_container_runs_owl3_itself_as_a_user():
    *_, user, entrypoint = containerfile()
    assert json.loads(entrypoint.removeprefix("ENTRYPOINT ")) == ["owl3"]  # a shell would keep SIGTERM to itself
    (created,) = [shlex.split(line) for line in containerfile() if "useradd" in line]
    assert user == f"USER {created[-1]}"
    assert created[created.index("--uid") + 1] == str(pod()["securityContext"]["fsGroup"])
