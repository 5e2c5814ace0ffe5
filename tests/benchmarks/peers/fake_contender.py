"""A contender that a worker loads in tests: it sleeps, writes down when, and fails on demand."""

import os
import signal
import subprocess
import threading
import time

FACTS = {"platform": "cpu", "device": "a fake", "versions": {"fake": "1.0"}}
STEP_SECONDS = {"slow": 0.02, "fast": 0.005}


def facts():
    return FACTS


def prepare(
    what, *, log, name, fail="", ways=("fast",), spins=False, child="", model, threads, **task
):
    if fail == f"prepare {what}":
        raise RuntimeError(f"no {what}\n| at all")
    calls = 0
    if child:
        subprocess.Popen(["sleep", child])
    if spins:
        threading.Thread(target=_spin, daemon=True).start()

    def write(words):
        with open(log, "a") as file:
            print(what, name, words, file=file)

    def make(way):
        def run(steps):
            nonlocal calls
            calls += 1
            write(f"start {way} {steps}")
            time.sleep(steps * STEP_SECONDS[way])
            write("end")
            # The first call is the first step; every turn is two.
            if calls > 3 and fail == "die":
                print("out of luck", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if calls > 3 and fail == "turn":
                raise ValueError("tired")

        return run

    return {way: lambda way=way: make(way) for way in ways}


def _spin():
    while True:
        pass
