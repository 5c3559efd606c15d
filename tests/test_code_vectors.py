"""Code embeddings that start from given vectors: where they come to lie, how much they cover, what is refused."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file

from ehrsequencing.config import ModelConfig, PretrainConfig
from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.behrt import BEHRTConfig, BEHRTModel
from ehrsequencing.models.code_vectors import CodeVectors, fitted_to, start_from_vectors
from ehrsequencing.study.kept import study_key
from ehrsequencing.study.run import read_study
from ehrsequencing.training.pretrain import pretrain
from planted import planted

RECORDS = [[(0, ["A", "B"]), (30, ["A", "C"]), (60, ["D"])] for _ in range(12)]


def parquet(path, codes=("A", "B", "NOBODY"), width=64, **columns):
    vectors = np.random.default_rng(0).normal(size=(len(codes), width))
    frame = {"code": list(codes), "vector": vectors.tolist(), **columns}
    pl.DataFrame(frame, strict=False).write_parquet(path)
    return path, vectors


def test_embeddings_start_from_the_vectors_and_the_rest_at_random(tmp_path):
    tokenizer, store = planted(RECORDS)
    path, vectors = parquet(tmp_path / "v.parquet")
    torch.manual_seed(0)
    encoder = BEHRTModel(BEHRTConfig.small(tokenizer.vocab_size))
    before = encoder.embeddings.code_embedding.weight.detach().clone()
    told = start_from_vectors(encoder, tokenizer, store, CodeVectors.read(path))
    after = encoder.embeddings.code_embedding.weight.detach()
    centred = vectors - vectors.mean(axis=0)
    wanted = centred / np.sqrt((centred**2).mean() * 64)
    for row, code in enumerate("AB"):
        np.testing.assert_allclose(after[tokenizer.encode(code)].numpy(), wanted[row], atol=1e-6)
    for code in "CD":
        assert torch.equal(after[tokenizer.encode(code)], before[tokenizer.encode(code)])
    assert (told["given"], told["codes_covered"], told["unknown_codes"]) == (3, 2, 1)
    assert told["share_of_vocabulary"] == 2 / 4
    assert told["share_of_tokens"] == pytest.approx(3 / 5)  # A twice and B once, of A A B C D


@pytest.mark.parametrize("width", [3, 16, 200])
def test_another_width_is_projected_with_distances_in_order(width):
    vectors = np.random.default_rng(1).normal(size=(40, width)) * np.linspace(4, 0.1, width)
    found = fitted_to(vectors, 64)
    assert found.shape == (40, 64)
    assert np.sqrt((found**2).mean()) == pytest.approx(1 / 8)
    assert np.array_equal(found, fitted_to(vectors, 64))
    far = lambda x: np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(40, 1)]  # noqa: E731
    assert np.corrcoef(far(vectors), far(found))[0, 1] > 0.99


def test_enormous_numbers_are_scaled_like_others():
    vectors = np.random.default_rng(1).normal(size=(5, 8))
    for width in (4, 8):
        np.testing.assert_allclose(fitted_to(vectors * 1e200, width), fitted_to(vectors, width), atol=1e-9)


def test_parquet_and_safetensors_say_the_same(tmp_path):
    path, vectors = parquet(tmp_path / "v.parquet")
    save_file({"vectors": vectors}, tmp_path / "v.safetensors", metadata={"codes": json.dumps(["A", "B", "NOBODY"])})
    one, two = CodeVectors.read(path), CodeVectors.read(tmp_path / "v.safetensors")
    assert one.codes == two.codes
    assert np.array_equal(one.vectors, two.vectors)


def test_a_pretraining_records_the_coverage(tmp_path):
    tokenizer, store = planted(RECORDS)
    path, _ = parquet(tmp_path / "v.parquet")
    record = pretrain(store, tokenizer, PretrainConfig(epochs=1), ModelConfig(code_vectors=str(path))).record
    assert record["code_vectors"]["file"] == "v.parquet"
    assert record["code_vectors"]["codes_covered"] == 2


def bad(tmp_path, name):
    path = tmp_path / "v.parquet"
    if name == "missing":
        return tmp_path / "nowhere.parquet"
    if name == "suffix":
        return parquet(tmp_path / "v.csv")[0]
    if name == "garbage":
        path.write_bytes(b"no parquet")
        return path
    frames = {
        "columns": {"kode": ["A"], "vector": [[1.0]]},
        "text": {"code": ["A"], "vector": ["1.0"]},
        "twice": {"code": ["A", "A"], "vector": [[1.0], [2.0]]},
        "widths": {"code": ["A", "B"], "vector": [[1.0], [2.0, 3.0]]},
        "nan": {"code": ["A", "B"], "vector": [[1.0], [float("nan")]]},
        "null": {"code": ["A", None], "vector": [[1.0], [2.0]]},
    }
    pl.DataFrame(frames[name]).write_parquet(path)
    return path


@pytest.mark.parametrize("name", ["missing", "suffix", "garbage", "columns", "text", "twice", "widths", "nan", "null"])
def test_files_of_another_form_are_refused(tmp_path, name):
    path = bad(tmp_path, name)
    with pytest.raises(EhrError) as caught:
        CodeVectors.read(path)
    assert caught.value.code == Exit.DATA
    assert str(path) in caught.value.where


@pytest.mark.parametrize(("codes", "why"), [(("X", "Y"), "none of the 2"), (("A",), "the same")])
def test_vectors_that_tell_nothing_are_refused(tmp_path, codes, why):
    tokenizer, store = planted(RECORDS)
    path, _ = parquet(tmp_path / "v.parquet", codes)
    encoder = BEHRTModel(BEHRTConfig.small(tokenizer.vocab_size))
    with pytest.raises(EhrError, match=why) as caught:
        start_from_vectors(encoder, tokenizer, store, CodeVectors.read(path))
    assert caught.value.code == Exit.DATA


def test_a_study_looks_for_its_vectors_beside_itself_and_knows_them_from_others(tmp_path):
    path, _ = parquet(tmp_path / "v.parquet")
    study = tmp_path / "study.yaml"
    study.write_text("name: s\ndata: {simulate: {patients: 50}}\ntask: task.yaml\nmodel: {code_vectors: v.parquet}\n")
    found = read_study(study)
    assert found.model.code_vectors == str(path)
    before = study_key(found, tmp_path)
    parquet(path, ("A", "B"))
    assert study_key(read_study(study), tmp_path) != before
    path.unlink()
    with pytest.raises(EhrError, match="does not exist") as caught:
        read_study(study)
    assert caught.value.code == Exit.DATA
