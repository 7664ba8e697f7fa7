"""A sandbox for machines that have only `docker`: a fresh container for each program, started cold.

It trusts whoever runs the daemon, which is root, and costs most of a second a program. The image is never pulled: the
operator chooses it and puts it there. Containers are started with Docker's own filter of system calls and ours.
"""

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from functools import cache, partial

from limbeck.errors import LimbeckError
from limbeck.sandbox.contract import Call, Limits, Outcome
from limbeck.sandbox.interpreter import CODE, ENVIRONMENT, INSIDE, start
from limbeck.sandbox.process import resource_limits, run_candidate

IMAGE = "python:3.11-slim"
PATIENCE_SECONDS = 30.0
OF_THE_CLIENT = (
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "HOME",
    "PATH",
)


class DockerSandbox:
    """Runs each program in a fresh container. Safe to use from several threads."""

    name = "docker"

    def __init__(self, image: str = IMAGE) -> None:
        """Set it up for an image that is there already and has Python 3.11 or newer as `python3`."""
        self.image = image

    def run(self, program: str, calls: Sequence[Call], limits: Limits = Limits()) -> list[Outcome]:  # noqa: B008 - frozen
        """Run `program` and make `calls`; see `Sandbox.run`."""
        container = f"limbeck-{uuid.uuid4().hex}"
        line = partial(command, self.image, container, limits)
        resources = resource_limits(limits, processes=False)  # --pids-limit counts for the container
        try:
            return run_candidate(
                line, program, calls, limits, resources, folder="/", on_standard_output=True, environment=client()
            )
        finally:  # the client is dead by now, which a container outlives
            _docker("rm", "--force", container)


@cache
def why_unavailable() -> str | None:
    """Return what keeps docker from working here, in words for an operator, or None when it works."""
    if shutil.which("docker") is None:
        return "docker is not installed."
    if not _docker("image", "inspect", IMAGE):
        return f"docker does not answer, or has no image {IMAGE} (docker pull {IMAGE})."
    try:
        DockerSandbox().run("def one():\n    return 1\n", [Call("one")])
    except LimbeckError as error:
        return f"docker cannot make a sandbox here: {error}"
    return None


def command(image: str, container: str, limits: Limits, answers: int) -> list[str]:
    """Return the command line. Memory and the number of processes are limits of the whole container (cgroups)."""
    memory = str(limits.memory_bytes)
    return [
        shutil.which("docker") or "docker",
        *("run", "--rm", "--interactive", "--pull", "never", "--name", container, "--log-driver", "none"),
        *("--network", "none", "--ipc", "none", "--hostname", "sandbox", "--user", "65534:65534", "--read-only"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", memory, "--memory-swap", memory),
        *("--cpus", "1", "--pids-limit", str(limits.processes)),
        *("--tmpfs", f"/tmp:rw,nosuid,nodev,size={limits.file_bytes},nr_inodes=4096,mode=1777", "--workdir", "/tmp"),  # noqa: S108
        *("--mount", f"type=bind,source={INSIDE},target={CODE}/limbeck/sandbox/inside,readonly"),
        *(part for name, value in ENVIRONMENT.items() for part in ("--env", f"{name}={value}")),
        *("--entrypoint", "python3", image, *start("cold"), str(answers)),
    ]


def client() -> dict[str, str]:
    """Return the environment of the client; none of it reaches the container."""
    return {name: os.environ[name] for name in OF_THE_CLIENT if name in os.environ}


def _docker(*arguments: str) -> bool:
    """Return whether a command of docker's succeeds."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, check=False, timeout=PATIENCE_SECONDS, env=client()
        )
        return done.returncode == 0
    return False
