"""What `make weekly` does after installation: the sample made anew, and one weekly run of it."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLI = [sys.executable, "-c", "from sunorecsys.cli import main; main()"]


def run() -> dict:
    """Seconds of the two commands, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        w = str(Path(folder) / "sample")
        began = time.perf_counter()
        subprocess.run([*CLI, "sample", "-w", w], check=True, capture_output=True)
        made = time.perf_counter()
        subprocess.run([*CLI, "weekly", "-w", w], check=True, capture_output=True)
        done = time.perf_counter()
    return {"sample_s": round(made - began, 1), "weekly_s": round(done - made, 1), "make_weekly_s": round(done - began, 1)}


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
