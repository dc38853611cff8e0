"""`wherry serve --demo --all`: a model for every task, pulled or made here, and a question to each."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from wherry.cli.answers import sum_up
from wherry.cli.exhibits import Exhibit, exhibits
from wherry.cli.job_bars import follow_jobs
from wherry.cli.output import note, one_line
from wherry.cli.pictures import save_picture
from wherry.cli.sound import save_sound
from wherry.client.schema import DeploymentSpec
from wherry.errors import Internal, WherryError
from wherry.models.bundle import MANIFEST, Manifest, encode_manifest

if TYPE_CHECKING:
    from wherry.client import Client
    from wherry.client.schema import Job

IDLE_SECONDS = 900.0
"""A model that nobody asks leaves the memory; the next question wakes it."""
NAME_COLUMNS = 11


class Gallery:
    """Shows all exhibits. What cannot be shown is told with the command that mends it.

    Args:
        client: of the server.
        folder: of the server's data, where fetched files and made pictures are kept.
    """

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        self._cache = folder / "cache"
        self._answers = folder / "answers"
        self._left_out: list[str] = []
        self._asked: dict[str, list[Exhibit]] = {}
        for exhibit in exhibits():
            self._asked.setdefault(exhibit.deployment, []).append(exhibit)

    def show(self) -> bool:
        """Bring up what is missing and ask everything; whether every answer came."""
        shutil.rmtree(self._answers, ignore_errors=True)
        self._answers.mkdir()
        present = {each.name for each in self._client.deployments.list()}
        prompted = [name for name, asked in self._asked.items() if asked[0].through]
        missing = [name for name in self._asked if name not in {*present, *prompted}]
        count = sum(map(len, self._asked.values()))
        note(f"{count} questions to {len(self._asked)} models, {len(missing)} of them new\n")
        jobs = {name: job for name in missing if (job := self._pull(name)) is not None}
        for name in self._asked:
            if name in present and name not in prompted:
                self._ask_all(name)
        for name in prompted:
            prompt = partial(self._deploy_prompted, self._asked[name][0], is_old=name in present)
            self._open(name, prompt)
        for name, job in follow_jobs(self._client, jobs):
            self._open(name, partial(self._deploy_pulled, name, job))
        self._close()
        return not self._left_out

    def _pull(self, name: str) -> Job | None:
        """Begin to get a model; None if that cannot even begin."""
        try:
            return self._client.models.pull(self._asked[name][0].model, name=name, wait=False)
        except WherryError as error:
            self._leave_out(name, error)
            return None

    def _open(self, name: str, deploy: Callable[[], None]) -> None:
        """Serve a model and ask it."""
        try:
            deploy()
        except WherryError as error:
            self._leave_out(name, error)
        else:
            self._ask_all(name)

    def _deploy_pulled(self, name: str, job: Job) -> None:
        """A model that is here, if its job has brought it."""
        if job.state != "succeeded":
            raise Internal(job.error or job.state, hint=job.hint)
        self._client.deployments.deploy(name, idle_seconds=IDLE_SECONDS)

    def _deploy_prompted(self, exhibit: Exhibit, *, is_old: bool) -> None:
        """A task that another deployment of this server does, with a key for that one only."""
        name, through = exhibit.deployment, exhibit.through
        label = f"demo {name}"
        old_keys = [key for key in self._client.keys.list() if key.name == label]
        if is_old:  # it may know another address of this server
            self._client.deployments.remove(name)
        manifest = Manifest(
            task=exhibit.task,
            runtime="upstream",
            description=f"What {through!r} makes of a prompt.",
            options={
                "base_url": f"{self._client.url}/v1",
                "model": through,
                "prompt": exhibit.prompt,
            },
        )
        with TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST).write_text(encode_manifest(manifest), encoding="utf-8")
            self._client.models.import_model(Path(folder), name=name)
        key = self._client.keys.create(label, deployments=[through])
        spec = DeploymentSpec(name=name, model=name, secrets={"api_key": key.secret})
        self._client.deployments.apply(spec)
        self._client.deployments.wait(name, just_changed=True)
        for old in old_keys:
            if old.revoked_at is None:
                self._client.keys.revoke(old.id)

    def _ask_all(self, name: str) -> None:
        for exhibit in self._asked[name]:
            try:
                self._ask(exhibit)
            except WherryError as error:
                self._leave_out(exhibit.deployment, error)

    def _ask(self, exhibit: Exhibit) -> None:
        inputs = exhibit.fetch_inputs(self._cache, _say_nothing)
        begun = time.monotonic()
        answer = self._client.predict(exhibit.deployment, inputs)
        took_ms = (time.monotonic() - begun) * 1000
        note(f"{exhibit.deployment:<{NAME_COLUMNS}} {exhibit.words}")
        note(f"{'':<{NAME_COLUMNS}} → {sum_up(answer)}")
        self._keep_files(answer, inputs, exhibit.deployment)
        note(f"{'':<{NAME_COLUMNS}} ({exhibit.task}, {took_ms:.0f} ms)\n")

    def _keep_files(self, answer: dict[str, Any], inputs: dict[str, Any], name: str) -> None:
        """The sound or the picture of an answer, in the folder of the server's data."""
        save_sound(answer, name, self._answers)
        save_picture(answer, inputs, name, self._answers)

    def _leave_out(self, name: str, error: WherryError) -> None:
        self._left_out.append(name)
        note(f"{name:<{NAME_COLUMNS}} left out: {one_line(error.message)}")
        if error.hint:
            note(f"{'':<{NAME_COLUMNS}} hint: {one_line(error.hint)}")
        note("")

    def _close(self) -> None:
        left_out = list(dict.fromkeys(self._left_out))
        note(f"{len(self._asked) - len(left_out)} of {len(self._asked)} models answer")
        if left_out:
            note(f"left out: {', '.join(left_out)}; start again when the hints above are done")
        note(f"pictures and sounds are in {self._answers}\n")


def _say_nothing(stage: str, done: int, total: int) -> None:
    """The files of the questions are small."""
