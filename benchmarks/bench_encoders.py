"""Speed of the encoders: seconds of sound per second, windows ready in memory; best of `repeats`. Full-size models have random weights.
Both clocks are printed with the load before it: beside other work neither is a figure to quote (CPU seconds varied fourfold).

    python benchmarks/bench_encoders.py [name …]      names: mfcc tiny-clap musicnn mert-95m mert-330m music2vec clap

MusiCNN has its real weights and is left out where `make extras` was not run. Prints JSON; `embeddings.hub.ENCODERS` quotes it.
"""
import json
import os
import sys
import tempfile
import time
from importlib.util import find_spec

import numpy as np
import torch

from sunorecsys.embeddings.encoder import Encoder
from sunorecsys.embeddings.encoders import encoder_of
from sunorecsys.embeddings.hub import MODELS, hub

# what the checkpoints' configurations say beyond the defaults of `transformers`
FULL = {
    "mert-95m": {},
    "mert-330m": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, do_stable_layer_norm=True,
                      feat_extract_norm="layer", conv_bias=False),
    "music2vec": {},
}

def full_size(name: str) -> Encoder:
    "MERT or Music2Vec of full size with random weights, through the same loading as a real checkpoint."
    import transformers
    spec = MODELS[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        config = getattr(transformers, f"{spec.family}Config")(**FULL[name])
        getattr(transformers, f"{spec.family}Model")(config).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=spec.sampling_rate).save_pretrained(folder)
        encoder = hub(name, checkpoint=folder)
    assert encoder.name == name, f"{encoder.name} is not of full size"
    return encoder

def full_clap() -> Encoder:
    "CLAP's audio side (HTSAT-base, as larger_clap_music has it) with random weights."
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    from sunorecsys.embeddings.clap import ClapEncoder
    torch.manual_seed(0)
    audio = dict(depths=[2, 2, 12, 2], num_attention_heads=[4, 8, 16, 32], patch_embeds_hidden_size=128, hidden_size=1024)
    model = ClapModel(ClapConfig(audio_config=audio, text_config={"num_hidden_layers": 1}))
    features = ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")
    return ClapEncoder((model, features, None), name="clap", license="none", weights="random")

def make(name: str) -> Encoder:
    "An encoder by its name."
    if name in ("mfcc", "tiny-clap", "musicnn"):
        return encoder_of(name)
    return full_clap() if name == "clap" else full_size(name)

def bench(name: str, repeats: int = 3) -> dict:
    "Speed of `encode_windows` on one block of windows, on this machine's threads."
    encoder = make(name)
    n = {"mfcc": 8, "musicnn": 8, "tiny-clap": 32, "clap": 2, "music2vec": 1}.get(name, 2)
    windows = (0.1 * np.random.default_rng(0).standard_normal((n, round(encoder.window_s * encoder.sampling_rate)))).astype(np.float32)
    encoder.encode_windows(windows[:1])
    seconds, busy = [], []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        encoder.encode_windows(windows)
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - cpu)
    weights = {"mfcc": "none", "musicnn": "real", "tiny-clap": "trained here, a toy"}.get(name, "random, full size")
    return {"name": name, "weights": weights, "threads": torch.get_num_threads(), "seconds_of_sound": round(n * encoder.window_s, 1),
            "seconds": round(min(seconds), 3), "times_real_time": round(n * encoder.window_s / min(seconds), 1),
            "times_real_time_per_cpu_second": round(n * encoder.window_s / min(busy), 1), "load": round(os.getloadavg()[0], 1),
            "target": 25 if name == "musicnn" else None}

if __name__ == "__main__":
    wanted = sys.argv[1:] or ["musicnn", "mfcc", "tiny-clap", *FULL, "clap"]
    if find_spec("musicnn") is None and "musicnn" in wanted:
        print("musicnn is left out: run `make extras`", file=sys.stderr)
        wanted.remove("musicnn")
    print(json.dumps([bench(name) for name in wanted], indent=1))
