"""A process per engine, stopped whenever it is not its turn."""

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
import warnings

import engines
import export
from errors import PeerError

PR_SET_PDEATHSIG = 1


def isolate():
    """Ties this process to its parent, whose end is its end even while it is stopped; leaves Ctrl-C to the parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")


def timed(run, warmup):
    """Seconds and logits of one run after `warmup` untimed ones."""
    for _ in range(warmup):
        run()
    start = time.perf_counter()
    logits = run()
    return time.perf_counter() - start, logits


def answer_requests(pipe, build):
    """Sends the note of `build`, which also gives a function; then answers each request with what that makes of it.

    Whatever fails is sent as ("failed", traceback) and ends the process.
    """
    isolate()
    try:
        run, note = build()
        pipe.send(("ready", note))
        while (request := pipe.recv()) is not None:
            pipe.send(("ran", run(request)))
    except EOFError:
        return
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


def serve(pipe, job):
    """Builds the job's engine and answers each number of warm-up runs with seconds and logits."""

    def build():
        run, note = engines.build(job)
        run()
        return (lambda warmup: timed(run, warmup)), note

    answer_requests(pipe, build)


def write_exports(pipe, model, folder, forms):
    """Writes ONNX forms in a process of its own, which gives their memory back."""
    isolate()
    try:
        export.ensure(model, folder, forms)
        pipe.send(("ready", None))
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


class Worker:
    """A child process that runs only while it is built and inside `measure`."""

    def __init__(self, name, target, *arguments):
        """Starts `target(pipe, *arguments)` under `name`, and waits until it is ready."""
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.note = self.answer()
        except BaseException:
            self.close()
            raise
        self.pause()

    def answer(self):
        """The next answer of the process."""
        try:
            kind, value = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise PeerError(f"{self.name} ended with {self.process.exitcode}; is there enough memory?") from None
        if kind == "failed":
            raise PeerError(f"{self.name} failed; --engines can leave it out\n{value.rstrip()}")
        return value

    def pause(self):
        """Stops the process, and returns when it stands still."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def measure(self, request):
        """The answer to a request, for which alone the process runs: to a number of warm-up runs, seconds and logits."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.pipe.send(request)
        result = self.answer()
        self.pause()
        return result

    def close(self):
        """Ends the process."""
        self.pipe.close()
        self.process.kill()
        self.process.join()
