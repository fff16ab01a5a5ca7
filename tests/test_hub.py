"""MERT and Music2Vec on tiny checkpoints with random weights: parity with `transformers`, loading, what is refused."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sunorecsys.embeddings.encoder import EncoderError, check_encoder, unit_rows
from sunorecsys.embeddings.hub import ENCODERS, MODELS, encoders_table, hub

SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, conv_dim=[16] * 7,
             num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)

def tiny(folder: Path, family: str, rate: int, *, normalize: bool = True, **more) -> Path:
    "A checkpoint with random weights, as `save_pretrained` writes it, with what the hub's configurations have on top."
    import torch
    import transformers
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | more)
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    change(folder / "config.json", vocab_size="a/path", **({"model_type": "mert_model", "deepnorm": False} if family == "Hubert" else {}))
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=normalize).save_pretrained(folder)
    return folder

def change(path: Path, **keys) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))

@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("hub")
    stable = dict(do_stable_layer_norm=True, feat_extract_norm="layer")
    return {"mert-95m": tiny(here / "small", "Hubert", 24_000, normalize=False),
            "mert-330m": tiny(here / "stable", "Hubert", 24_000, **stable),
            "music2vec": tiny(here / "m2v", "Data2VecAudio", 16_000, num_conv_pos_embeddings=2)}

@pytest.fixture
def copy(checkpoints, tmp_path) -> Path:
    "A MERT checkpoint that the test may break."
    return Path(shutil.copytree(checkpoints["mert-95m"], tmp_path / "copy"))

def noise(name: str, n: int = 2) -> np.ndarray:
    spec = MODELS[name]
    return (.1 + .2 * np.random.default_rng(0).standard_normal((n, round(spec.window_s * spec.sampling_rate)))).astype(np.float32)

@pytest.mark.parametrize("name", list(MODELS))
def test_parity_with_transformers(checkpoints, name):
    import torch
    import transformers
    folder, spec, windows = checkpoints[name], MODELS[name], noise(name)
    said = json.loads((folder / "config.json").read_text())
    config = getattr(transformers, f"{spec.family}Config")(**{k: v for k, v in said.items() if k not in ("vocab_size", "model_type")})
    model = getattr(transformers, f"{spec.family}Model").from_pretrained(folder, config=config).eval()
    features = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    x = features(list(windows), sampling_rate=spec.sampling_rate, return_tensors="pt")["input_values"]
    with torch.inference_mode():
        out = model(x, output_hidden_states=True)
    states = [*out.hidden_states[:3], out.last_hidden_state]
    wanted = {(i, "mean"): s.mean(1) for i, s in enumerate(states)} | {
        (2, "max"): states[2].amax(1), ("mean-of-layers", "mean"): torch.stack(states[1:]).mean(0).mean(1)}
    for (layer, pooling), want in wanted.items():
        encoder = hub(name, checkpoint=folder, layer=layer, pooling=pooling)
        assert np.abs(encoder.encode_windows(windows) - want.numpy()).max() < 1e-5, f"{name}, layer {layer}, {pooling}"
    assert np.abs(hub(name, checkpoint=folder, layer=3).encode_audio(list(windows)) - unit_rows(states[3].mean(1).numpy())).max() < 1e-5

def test_the_contract(checkpoints):
    check_encoder(hub("mert-330m", checkpoint=checkpoints["mert-330m"]))
    check_encoder(hub("music2vec", checkpoint=checkpoints["music2vec"], layer=1))

def test_fingerprints(checkpoints, copy):
    folder = checkpoints["mert-95m"]
    first = hub("mert-95m", checkpoint=folder)
    assert first.name == "mert-95m (3 layers of 32)" # nothing small passes for the real one
    assert hub("mert-95m", checkpoint=copy).fingerprint == first.fingerprint
    change(copy / "preprocessor_config.json", do_normalize=True)
    others = [hub("mert-95m", checkpoint=copy), *(hub("mert-95m", checkpoint=folder, **k) for k in ({"layer": 3}, {"pooling": "max"}))]
    assert len({e.fingerprint for e in [first, *others]}) == 4

def rewrite(folder: Path, change_weights) -> None:
    from safetensors.torch import load_file, save_file
    w = load_file(folder / "model.safetensors")
    change_weights(w)
    save_file(w, folder / "model.safetensors", metadata={"format": "pt"})

def resize(w: dict, key: str = "encoder.layers.0.final_layer_norm.bias") -> None:
    w[key] = w[key][:5].clone()

@pytest.mark.parametrize(("spoil", "says"), [
    (lambda f: rewrite(f, lambda w: w.pop("feature_projection.projection.weight")), "1 missing (such as feature_projection.projection."),
    (lambda f: rewrite(f, resize), "1 of another shape (such as encoder.layers.0.final_layer_norm.bias"),
    (lambda f: rewrite(f, lambda w: [w.pop(k) for k in list(w)[1:]]), "missing"),
    (lambda f: change(f / "config.json", num_hidden_layers=4), "missing"),
    (lambda f: change(f / "config.json", feature_extractor_cqt=True), "feature_extractor_cqt on"),
    (lambda f: change(f / "config.json", deepnorm=True, feature_extractor_cqt=True), "feature_extractor_cqt and deepnorm on"),
    (lambda f: change(f / "config.json", model_type="wav2vec2"), "'wav2vec2'"),
    (lambda f: (f / "config.json").write_text("{"), "config.json"),
    (lambda f: (f / "config.json").unlink(), "no config.json"),
    (lambda f: change(f / "preprocessor_config.json", sampling_rate=16_000), "16000 Hz"),
    (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded as mert-95m"),
    (lambda f: (f / "model.safetensors").write_bytes(b"<html>"), "cannot be loaded as mert-95m"),
])
def test_what_is_refused(copy, spoil, says):
    spoil(copy)
    with pytest.raises(EncoderError) as e:
        hub("mert-95m", checkpoint=copy)
    assert says in str(e.value) and str(copy) in str(e.value)

def test_weights_that_training_alone_needs_may_be_missing(copy):
    rewrite(copy, lambda w: w.pop("masked_spec_embed"))
    hub("mert-95m", checkpoint=copy)

def test_offline_says_how_to_get_the_weights(monkeypatch, tmp_path):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match="hf download m-a-p/MERT-v1-95M"):
        hub("mert-95m")

def test_the_table_says_what_the_encoders_say(checkpoints):
    from sunorecsys.embeddings.encoder import MfccEncoder, RandomVectors
    from sunorecsys.embeddings.musicnn import MusicnnEncoder
    table = encoders_table()
    assert len(table) == len(ENCODERS) and table.index.is_unique
    for name, e in (("mfcc", MfccEncoder()), ("random", RandomVectors()), ("musicnn", MusicnnEncoder)):
        assert tuple(table.loc[name, ["sampling_rate", "dim", "window_s"]]) == (e.sampling_rate, e.dim, e.window_s), name
        assert bool(table.loc[name, "text"]) == ("text" in e.modalities), name
