"""Speed and memory of `embeddings.extract`: 10k short songs (synthesised, FLAC) with any encoder. Prints JSON.

    python benchmarks/bench_extract.py [songs encoder]      nothing: 10,000 with mfcc, then 2,000 with tiny-clap and its prompts
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from bench_encoders import full_clap

from sunorecsys.data.synthesis import random_attributes
from sunorecsys.embeddings.audio import read_audio
from sunorecsys.embeddings.clap import encode_mels, log_mel
from sunorecsys.embeddings.encoder import cut_windows
from sunorecsys.embeddings.encoders import encoder_of
from sunorecsys.embeddings.extract import extract, store_of
from sunorecsys.schema import Col

CLIPS = 200

# in a process of its own, so that its memory does not count
MAKE = """
import sys
from pathlib import Path
import numpy as np
from sunorecsys.data.synthesis import random_attributes, synthesise, write_clip
for i in range(int(sys.argv[2])):
    write_clip(Path(sys.argv[1]) / f"clip{i}.flac", synthesise(random_attributes(np.random.default_rng(i)), seed=i), 16_000)
"""

def make(root: Path, n: int) -> pd.DataFrame:
    "n songs that share CLIPS files by hard links: every one is hashed, decoded and encoded by itself."
    subprocess.run([sys.executable, "-c", MAKE, str(root), str(min(n, CLIPS))], check=True)
    for i in range(min(n, CLIPS)):
        os.utime(root / f"clip{i}.flac", (1e9, 1e9))
    for i in range(n):
        os.link(root / f"clip{i % CLIPS}.flac", root / f"s{i}.flac")
    return pd.DataFrame({Col.SONG: [f"s{i}" for i in range(n)], Col.AUDIO: [f"s{i}.flac" for i in range(n)]})

def prompts_per_s(n: int = 4000) -> float:
    "Text with the tiny CLAP, in batches as `extract` makes them."
    rng, encoder = np.random.default_rng(0), encoder_of("tiny-clap")
    songs = [random_attributes(rng) for _ in range(n)]
    prompts = [f"{a.mood} {a.genre} with {a.lead}, {a.tempo}, {a.register}, {a.texture}" for a in songs]
    encoder.encode_text(prompts[:32])
    start = time.perf_counter()
    for at in range(0, n, 32):
        encoder.encode_text(prompts[at:at + 32])
    return round(n / (time.perf_counter() - start))

def pipeline_ratio(n: int = 24, repeats: int = 3) -> float:
    "Model time over extraction time, of a CLAP of full size (random weights): what decoding, mels and storing leave; best of `repeats`."
    encoder, best = full_clap(), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        songs = make(root, n)
        clips = [read_audio(root / p, encoder.sampling_rate).samples for p in songs[Col.AUDIO]]
        windows, _, _ = cut_windows(clips, round(encoder.window_s * encoder.sampling_rate), encoder.padding)
        mels = log_mel(windows, encoder.features)
        encode_mels(encoder.model, mels[:2], encoder.device)
        for i in range(repeats):
            start = time.perf_counter()
            for at in range(0, n, 8):
                encode_mels(encoder.model, mels[at:at + 8], encoder.device)
            model = time.perf_counter() - start
            store = store_of(root / f"embeddings{i}", encoder)
            start = time.perf_counter()
            extract(songs, encoder, store, root=root, batch_size=8, progress=False)
            best.append(model / (time.perf_counter() - start))
    return round(max(best), 3)

def run(n: int = 10_000, name: str = "mfcc") -> dict:
    "First extraction, and a second one that finds everything unchanged."
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        songs, encoder = make(root, n), encoder_of(name)
        store = store_of(root / "embeddings", encoder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        first = extract(songs, encoder, store, root=root, progress=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        again = time.perf_counter()
        second = extract(songs, encoder, store, root=root, progress=False)
        again = time.perf_counter() - again
        assert len(first.embedded) == n == len(second.unchanged), (first, second)
        return {
            "name": "extract", "encoder": encoder.name, "songs": n, "seconds_of_sound": round(first.seconds),
            "songs_per_s": round(n / wall, 1),
            "times_real_time": round(first.seconds / wall), "times_real_time_per_cpu_s": round(first.seconds / cpu),
            "unchanged_songs_per_s": round(n / again), "shards": len(store.manifest["shards"]),
            "rss_before_gb": round(before / 2**20, 3), "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}

if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(run(int(sys.argv[1]), sys.argv[2]), indent=1))
    else:
        tiny = run(2000, "tiny-clap")
        print(json.dumps(run() | {"tiny_clap": tiny, "tiny_clap_times_real_time": tiny["times_real_time"],
                                  "tiny_clap_prompts_per_s": prompts_per_s(), "clap_pipeline_ratio": pipeline_ratio()}, indent=1))
