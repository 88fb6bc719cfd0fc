"""What onnxruntime-genai is told, and (slow, if it is installed) that it generates the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from planish.export.decoder import build_decoder
from planish.export.genai import FILE, genai_config, write_genai_config
from planish.export.reader import CheckpointReader
from tests.export.small_decoders import FAMILIES, VOCABULARY, edit_config, quantized, random_decoder

# compressed-tensors compiles a function with torch.jit when it is imported


@pytest.mark.parametrize(("family", "kind"), [("qwen3", "qwen3"), ("gpt2", "decoder"), ("neox", "decoder")])
def test_config_describes_the_graph(family: str, kind: str, tmp_path: Path) -> None:
    checkpoint = random_decoder(family, tmp_path / "float")
    built = build_decoder(checkpoint, tmp_path / "onnx")
    write_genai_config(tmp_path, built, CheckpointReader(checkpoint).config)
    model = json.loads((tmp_path / FILE).read_text())["model"]
    decoder = model["decoder"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == (kind, VOCABULARY, 96)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2], 0)
    heads = (decoder["num_attention_heads"], decoder["num_key_value_heads"], decoder["head_size"])
    assert heads == ((4, 2, 32) if family == "qwen3" else (4, 4, 16))
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), options())
    layers = range(decoder["num_hidden_layers"])
    names = {value % i if "%d" in value else value for value in decoder["inputs"].values() for i in layers}
    assert names == {value.name for value in session.get_inputs()}
    names = {value % i if "%d" in value else value for value in decoder["outputs"].values() for i in layers}
    assert names == {value.name for value in session.get_outputs()}
    assert session.get_outputs()[0].shape == ["batch", 1, VOCABULARY]


def test_ids_the_checkpoint_does_not_name_are_left_out(tmp_path: Path) -> None:
    checkpoint = random_decoder("llama", tmp_path / "float")
    (checkpoint / "generation_config.json").unlink()
    edit_config(checkpoint, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    config = genai_config(build_decoder(checkpoint, tmp_path / "onnx"), CheckpointReader(checkpoint).config)
    assert not {"bos_token_id", "eos_token_id", "pad_token_id"} & set(config["model"])


def test_sampling_defaults_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = random_decoder("llama", tmp_path / "float")
    defaults = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 7]}
    (checkpoint / "generation_config.json").write_text(json.dumps(defaults))
    config = genai_config(build_decoder(checkpoint, tmp_path / "onnx"), CheckpointReader(checkpoint).config)
    assert config["model"]["eos_token_id"] == [2, 7]
    search = config["search"]
    assert (search["do_sample"], search["temperature"], search["top_p"], search["top_k"]) == (True, 0.6, 0.9, 50)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_same_greedy_tokens(family: str, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="install onnxruntime-genai")
    checkpoint = random_decoder(family, tmp_path / "float")
    if family != "mistral":  # not compressed yet
        checkpoint = quantized(checkpoint, tmp_path / "int4")
    built = build_decoder(checkpoint, tmp_path / "onnx" / "ort")
    write_genai_config(tmp_path, built, CheckpointReader(checkpoint).config)
    prompt = np.random.default_rng(0).integers(3, VOCABULARY, 12).tolist()
    model = genai.Model(str(tmp_path))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=32, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    theirs = [int(token) for token in generator.get_sequence(0)]
    ours = greedy(tmp_path / "onnx" / "ort" / "model.onnx", prompt, 32)
    assert theirs == ours[: len(theirs)]
    assert len(theirs) == 32 or ours[len(theirs)] == 2  # it leaves the end token out


def options() -> onnxruntime.SessionOptions:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return settings


def greedy(path: Path, prompt: list[int], length: int) -> list[int]:
    """The most likely tokens by a plain session, without the end token having a meaning."""
    session = onnxruntime.InferenceSession(str(path), options())
    past = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for v in session.get_inputs()[2:]}
    tokens, fresh = list(prompt), np.array([prompt])
    while len(tokens) < length:
        mask = np.ones((1, len(tokens)), np.int64)
        logits, *present = session.run(None, {"input_ids": fresh, "attention_mask": mask, **past})
        past = dict(zip(past, present, strict=True))
        tokens.append(int(logits[0, -1].argmax()))
        fresh = np.array([tokens[-1:]])
    return tokens
