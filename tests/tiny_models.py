"""Real cross-encoders small enough to build in a test: graph, tokenizer and settings."""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["bert", "xlm-roberta", "roberta"]

MAX_TOKENS = 64
HIDDEN = 16
WORDS = ("the", "cat", "sat", "on", "mat", "dog", "tree", "a", "query", "river", "bank")


def write_model(
    folder: Path,
    kind: Kind = "bert",
    *,
    onnx_names: tuple[str, ...] = ("model.onnx",),
    labels: int = 1,
    half: bool = False,
    external: bool = False,
    **config: object,
) -> Path:
    """Write a model of *kind*, as its exporters do, and return *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(kind)
    tokenizer.save(str(folder / "tokenizer.json"))
    offset = 0 if kind == "bert" else 2
    pad = "[PAD]" if kind == "bert" else "<pad>"
    for name in onnx_names:
        graph = make_graph(
            tokenizer.get_vocab_size(),
            segments=kind == "bert",
            offset=offset,
            labels=labels,
            half=half or "fp16" in name,
        )
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        data = {"location": f"{path.name}_data", "size_threshold": 1024} if external else {}
        onnx.save(graph, str(path), save_as_external_data=external, **data)
    settings = {
        "model_type": kind,
        "max_position_embeddings": MAX_TOKENS + offset,
        "pad_token_id": tokenizer.token_to_id(pad),
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": MAX_TOKENS, "pad_token": pad})
    )
    return folder


def write_checkpoint(
    folder: Path, *, shards: int = 0, pickled: bool = False, **config: object
) -> Path:
    """Write the files of a PyTorch model, three matrices as weights, and return *folder*.

    With *shards*, the weights are cut into so many files; *pickled* ones are never opened.
    """
    write_model(folder, onnx_names=(), **config)
    matrices = {f"layer.{number}": np.eye(4, dtype=np.float32) for number in range(3)}
    if pickled:
        (folder / "pytorch_model.bin").write_bytes(b"never opened")
    elif not shards:
        save_file(matrices, folder / "model.safetensors")
    else:
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        weight_map = {name: files[i % shards] for i, name in enumerate(matrices)}
        for file in files:
            part = {name: matrices[name] for name in matrices if weight_map[name] == file}
            save_file(part, folder / file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_tokenizer(kind: Kind) -> Tokenizer:
    """Make a tokenizer whose parts are those of the real models of *kind*."""
    make = {"bert": _wordpiece, "xlm-roberta": _unigram, "roberta": _byte_bpe}
    return make[kind]()


def _wordpiece() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, *"[].,!?<>/的猫"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *WORDS, "##s", "##ing"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer


def _unigram() -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [
        *((piece, 0.0) for piece in special),
        ("▁", -3.0),
        *((f"▁{word}", -4.0) for word in WORDS),
        *((letter, -6.0) for letter in string.ascii_letters + string.digits + ".,!?<>/的猫"),
        ("<mask>", 0.0),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True)])
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


def _byte_bpe() -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("Ġ", "the")]
    pieces = [*special, *letters, *("".join(merge) for merge in merges), "<mask>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    return tokenizer


def make_graph(
    vocabulary: int,
    *,
    segments: bool = True,
    offset: int = 0,
    labels: int = 1,
    half: bool = False,
    pooled: bool = True,
) -> onnx.ModelProto:
    """Make an attention-pooling classifier whose logit hangs on tokens, order, segments and mask.

    Inputs are (pairs, tokens) int64, the output ``logits`` is (pairs, labels); without *pooled* it
    is ``last_hidden_state``, (pairs, tokens, hidden), as of an embedding model.
    """
    number = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    dtype = np.float16 if half else np.float32
    random = np.random.default_rng(7)
    weights = {
        "words": random.normal(size=(vocabulary, HIDDEN)),
        "places": random.normal(size=(MAX_TOKENS + offset, HIDDEN)) / 2,
        "kinds": random.normal(size=(2, HIDDEN)),
        "attend": random.normal(size=(HIDDEN, 1)),
        "head": random.normal(size=(HIDDEN, labels)),
        "far": np.array(1e4),
        "unit": np.array(1.0),
    }
    integers = {"one": 1, "offset": offset}
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["word_rows"]),
        node("Shape", ["input_ids"], ["shape"]),
        node("Gather", ["shape", "one"], ["length"]),
        node("Add", ["length", "offset"], ["end"]),
        node("Range", ["offset", "end", "one"], ["steps"]),
        node("Gather", ["places", "steps"], ["place_rows"]),
        node("Add", ["word_rows", "place_rows"], ["placed"]),
        node("Gather", ["kinds", "token_type_ids"], ["kind_rows"]),
        node("Add", ["placed", "kind_rows"], ["summed"]),
        node("Tanh", ["summed" if segments else "placed"], ["states"]),
        node("MatMul", ["states", "attend"], ["interest"]),
        node("Unsqueeze", ["attention_mask", "minus_one"], ["mask"]),
        node("Cast", ["mask"], ["mask_number"], to=number),
        node("Sub", ["mask_number", "unit"], ["hidden_away"]),
        node("Mul", ["hidden_away", "far"], ["bias"]),
        node("Add", ["interest", "bias"], ["masked"]),
        node("Softmax", ["masked"], ["shares"], axis=1),
        node("Mul", ["shares", "states"], ["weighted"]),
        node("ReduceSum", ["weighted", "axis"], ["pooled"], keepdims=0),
        node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    if not segments:
        nodes = [n for n in nodes if n.output[0] not in {"kind_rows", "summed"}]
        del weights["kinds"]
    output = helper.make_tensor_value_info("logits", number, ["pairs", labels])
    if not pooled:
        nodes = nodes[:10]
        nodes[-1].output[0] = "last_hidden_state"
        shape = ["pairs", "tokens", HIDDEN]
        weights = {name: weights[name] for name in weights if name in {"words", "places", "kinds"}}
        output = helper.make_tensor_value_info("last_hidden_state", number, shape)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["pairs", "tokens"]) for n in names],
        [output],
        [
            *(numpy_helper.from_array(value.astype(dtype), n) for n, value in weights.items()),
            *(numpy_helper.from_array(np.array(v, np.int64), n) for n, v in integers.items()),
            numpy_helper.from_array(np.array([-1], np.int64), "minus_one"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    # Versions that every supported onnxruntime reads.
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="tests"
    )
