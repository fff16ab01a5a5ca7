"""Encoders: CLAP's features, loading and errors, a checkpoint of full size, and the tiny CLAP that is trained in place.

Every model here has random weights or a minute's training at most: nothing says how good a real checkpoint is.
"""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sunorecsys.data.synthesis import SAMPLE, random_attributes, synthesise
from sunorecsys.embeddings.clap import byte_tokenizer, clap, log_mel
from sunorecsys.embeddings.encoder import (
    Encoder,
    EncoderError,
    MfccEncoder,
    RandomVectors,
    check_encoder,
    cut_windows,
    shuffled_rows,
    unit_rows,
)
from sunorecsys.embeddings.tiny_clap import HELD_OUT, Recipe, another_preset, hit_rate, recipe_hash, tiny_clap

CORPUS = ["a slow sad folk song with piano", "fast techno with driving drums", "calm ambient music"] * 5
QUICK = Recipe(n_train=48, steps=3, batch=16)


def song(i: int, seconds: float = 5.0, rate: int = 16_000) -> np.ndarray:
    return synthesise(random_attributes(np.random.default_rng([77, i])), seed=i, sampling_rate=rate, seconds=seconds)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLAP folder; all but untrained."""
    return tiny_clap(tmp_path_factory.mktemp("tiny"), progress=False, recipe=QUICK)


def save_clap(folder: Path, config, features) -> Path:
    """A CLAP folder of random weights as `save_pretrained` writes it."""
    import torch
    from transformers import ClapModel, ClapProcessor, RobertaTokenizerFast

    torch.manual_seed(0)
    ClapModel(config).save_pretrained(folder)
    words = config.text_config.vocab_size
    tokenizer = byte_tokenizer(CORPUS, min(words, 320))
    if words > 320:  # as many words as the model, the rest never used
        parts = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        vocab = parts["vocab"] | {f"unused{i}": i for i in range(len(parts["vocab"]), words)}
        tokenizer = RobertaTokenizerFast(vocab=vocab, merges=[tuple(m) for m in parts["merges"]], model_max_length=77)
    ClapProcessor(features, tokenizer).save_pretrained(folder)
    return folder


# Windows

@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 23])
def test_every_sample_is_in_exactly_one_window(n):
    clip = np.arange(1, n + 1, dtype=np.float32)
    windows, owner, weight = cut_windows([clip, clip[:1]], 8)
    real = [w[: round(s * n)] for w, o, s in zip(windows, owner, weight, strict=True) if o == 0]
    np.testing.assert_array_equal(np.concatenate(real), clip)
    np.testing.assert_allclose(np.bincount(owner, weight), 1)


def test_memory_follows_the_block_and_not_the_list():
    class Counts(Encoder):
        name, sampling_rate, dim, window_s, max_windows = "counts", 100, 1, 10.0, 4
        fingerprint = "0" * 16
        seen: list[int] = []

        def encode_windows(self, windows):
            self.seen.append(windows.nbytes)
            return np.ones((len(windows), 1), np.float32)

    e = Counts()
    e.encode_audio([np.ones(1, np.float32)] * 101 + [np.ones(99_950, np.float32)])
    assert max(e.seen) == 4 * 1000 * 4 and len(e.seen) == -(-(101 + 100) // 4)


def test_controls_carry_nothing():
    v = unit_rows(np.random.default_rng(0).standard_normal((300, 16)))
    moved = shuffled_rows(v, seed=1)
    assert not (moved == v).all(1).any() and sorted(map(bytes, moved)) == sorted(map(bytes, v))
    clips = [song(i)[:4000] for i in range(8)]
    s = RandomVectors(256).encode_audio(clips) @ RandomVectors(256).encode_text([f"song {i}" for i in range(8)]).T
    assert np.abs(s).max() < 0.35  # 5.6 standard deviations of 1/16


# CLAP

def test_conformance(tiny):
    for e in (MfccEncoder(), RandomVectors(8), clap(tiny)):
        check_encoder(e)


@pytest.mark.parametrize("kind", ["music", "noise with silence", "clicks", "constant", "loud"])
@pytest.mark.parametrize("shape", ["tiny", "hub"])
def test_features_equal_those_of_transformers(kind, shape):
    from transformers import ClapFeatureExtractor

    if shape == "tiny":
        features = ClapFeatureExtractor(feature_size=64, sampling_rate=16_000, hop_length=313, max_length_s=5, frequency_min=30,
                                        frequency_max=8000, truncation="rand_trunc")
    else:
        features = ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation="rand_trunc")
    n, rng = features.nb_max_samples, np.random.default_rng(0)
    noise = rng.standard_normal(n).astype(np.float32) * (np.arange(n) > n // 2)
    sounds = {"music": song(1, n / features.sampling_rate, features.sampling_rate), "noise with silence": noise * np.float32(0.1),
              "clicks": (rng.random(n) < 1e-4).astype(np.float32), "constant": np.full(n, 0.5, np.float32), "loud": noise * np.float32(1e3)}
    x = sounds[kind]
    theirs = features(x, sampling_rate=features.sampling_rate, return_tensors="np")["input_features"][0]
    # 1e-5 of a range of 100 dB or more; in float32 a value near 100 has a spacing of 7.6e-6
    np.testing.assert_allclose(log_mel(x[None], features), theirs, atol=1e-5, rtol=3e-7)


def test_equal_to_transformers_own_processor_and_model(tiny):
    import torch
    from transformers import ClapModel, ClapProcessor

    model, processor = ClapModel.from_pretrained(tiny).eval(), ClapProcessor.from_pretrained(tiny)
    clips, texts = [song(0), song(1)[:50_000], song(2)[:3000]], ["techno", "a calm 夜のジャズ 🎷 song", "x" * 3000]
    with torch.inference_mode():
        audio = model.get_audio_features(**processor(audio=clips, sampling_rate=16_000, return_tensors="pt")).pooler_output.numpy()
        text = model.get_text_features(**processor(text=texts, padding=True, truncation=True, return_tensors="pt")).pooler_output.numpy()
    e = clap(tiny)
    np.testing.assert_allclose(e.encode_audio(clips), audio, atol=1e-5)
    np.testing.assert_allclose(e.encode_text(texts), text, atol=1e-5)


def test_a_long_clip_is_not_cropped_at_random(tiny):
    e, long = clap(tiny), np.concatenate([song(i) for i in range(5)])
    np.testing.assert_array_equal(e.encode_audio([long]), e.encode_audio([long]))
    changed = long.copy()
    changed[-1000:] = 0  # every part of it counts
    assert np.abs(e.encode_audio([changed]) - e.encode_audio([long])).max() > 1e-7


def test_text_that_is_too_long_is_cut_and_said(tiny, caplog):
    e = clap(tiny)
    with caplog.at_level("WARNING"):
        a = e.encode_text(["dreamy synthwave " * 6000])
    assert "tokens" in caplog.text and "102000 characters" in caplog.text
    np.testing.assert_allclose(a, e.encode_text(["dreamy synthwave " * 500]), atol=1e-6)
    for bad in ("", "  \n", None, 3, "half an emoji \ud83c"):
        with pytest.raises(EncoderError, match="text 1"):
            e.encode_text(["fine", bad])


def test_the_fingerprint_is_of_the_content(tiny, tmp_path):
    import shutil

    moved = Path(shutil.copytree(tiny, tmp_path / "moved"))
    assert clap(moved, max_windows=2).fingerprint == clap(tiny).fingerprint
    raw = bytearray((moved / "model.safetensors").read_bytes())
    raw[-1] ^= 1  # one bit of one weight
    (moved / "model.safetensors").write_bytes(raw)
    assert clap(moved).fingerprint != clap(tiny).fingerprint


@pytest.mark.parametrize("checkpoint", ["no/where/at/all", "laion/no-such-clap", "nothing.pt", "", "..", "a b/c"])
def test_what_is_not_there(checkpoint, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError):
        clap(checkpoint)


def test_fused_models_take_windows_like_any_other(tmp_path):
    from transformers import ClapConfig, ClapFeatureExtractor

    config = ClapConfig(
        text_config=dict(vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         max_position_embeddings=40),
        audio_config=dict(depths=[1, 1], num_attention_heads=[1, 2], patch_embeds_hidden_size=8, hidden_size=16, enable_fusion=True,
                          fusion_type="aff_2d", spec_size=256, aff_block_r=2), projection_dim=16)
    features = ClapFeatureExtractor(sampling_rate=48_000, max_length_s=10)  # truncation "fusion"
    check_encoder(clap(save_clap(tmp_path / "fused", config, features)))
    features.truncation = "rand_trunc"
    with pytest.raises(EncoderError, match="fusion"):
        clap(save_clap(tmp_path / "crossed", config, features))


def test_a_checkpoint_of_full_size(tmp_path):
    """The configuration of laion/larger_clap_music (HTSAT-base, RoBERTa-base) with random weights, through the same door."""
    from transformers import ClapConfig, ClapFeatureExtractor

    config = ClapConfig(
        text_config=dict(layer_norm_eps=1e-5),
        audio_config=dict(depths=[2, 2, 12, 2], num_attention_heads=[4, 8, 16, 32], patch_embeds_hidden_size=128, hidden_size=1024),
        projection_dim=512)
    features = ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation="rand_trunc", padding="repeatpad")
    e = clap(save_clap(tmp_path / "larger_clap_music", config, features))
    assert (e.dim, e.sampling_rate, e.window_s, e.max_tokens, e.modalities) == (512, 48_000, 10.0, 77, ("audio", "text"))
    assert sum(p.numel() for p in e.model.parameters()) > 190e6
    clip = song(3, seconds=10, rate=48_000)
    v, t = e.encode_audio([clip, clip[:100_000]]), e.encode_text(["dreamy synthwave", "夜 🎷"])
    assert v.shape == t.shape == (2, 512) and v.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([v, t]), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(e.encode_audio([clip[:100_000]])[0], v[1], atol=1e-5)


# The tiny CLAP

def test_trained_once_and_found_again(tiny):
    before = {p.name: p.stat().st_mtime_ns for p in tiny.iterdir()}
    assert tiny_clap(tiny.parent, progress=False, recipe=QUICK) == tiny
    assert {p.name: p.stat().st_mtime_ns for p in tiny.iterdir()} == before
    assert [p.name for p in tiny.parent.iterdir()] == [tiny.name]  # nothing half-made beside it


def test_the_same_recipe_gives_the_same_weights(tiny, tmp_path):
    again = tiny_clap(tmp_path, progress=False, recipe=QUICK)
    assert again.name == tiny.name and again != tiny
    assert clap(again).fingerprint == clap(tiny).fingerprint


def test_the_cache_is_named_by_recipe_and_generator(monkeypatch):
    import sunorecsys.embeddings.tiny_clap as module

    names = {recipe_hash(r) for r in (QUICK, replace(QUICK, seed=1), replace(QUICK, steps=4), replace(QUICK, rate=1e-3))}
    assert len(names) == 4 and recipe_hash(QUICK) in names
    monkeypatch.setattr(module, "TEMPLATES", (*module.TEMPLATES[:-1], "{genre} {mood} {tempo} {lead} {register} {texture}"))
    assert recipe_hash(QUICK) not in names


def test_two_at_once_and_threads_are_given_back(tmp_path):
    import torch

    before = torch.get_num_threads()
    results = []

    def work():
        results.append(tiny_clap(tmp_path, progress=False, recipe=replace(QUICK, steps=1)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(results)) == 1 and len(os.listdir(tmp_path)) == 1
    assert torch.get_num_threads() == before


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        tiny_clap(tmp_path, progress=False, recipe=replace(QUICK, n_train=10))  # fewer clips than a batch
    assert not any(tmp_path.iterdir())


def test_trained_on_other_presets_and_words_than_the_samples():
    for seed in range(5):
        p = another_preset(np.random.default_rng(seed))
        for table in ("genres", "moods", "tempos", "voices", "textures", "roots"):
            mine, theirs = getattr(p, table), getattr(SAMPLE, table)
            assert list(mine) == list(theirs)
        assert all(p.voices[v] != SAMPLE.voices[v] for v in p.voices) and all(p.tempos[t] != SAMPLE.tempos[t] for t in p.tempos)
        assert p.drums != SAMPLE.drums and p.roots["low"] != SAMPLE.roots["low"]
    assert {g for g, _ in HELD_OUT} == set(SAMPLE.genres) and {m for _, m in HELD_OUT} <= set(SAMPLE.moods)


def test_hit_rate():
    v = np.eye(5, dtype=np.float32)
    assert hit_rate(v, v, 1) == 1 and hit_rate(v[::-1], v, 1) == 0.2
    assert hit_rate(np.ones((5, 5), np.float32), v, 1) == 0  # ties count against it
