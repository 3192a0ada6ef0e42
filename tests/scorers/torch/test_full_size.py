"""A model of the shape of bge-reranker-v2-m3, at its full size of 568 million parameters."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import make_tokenizer

ROOT = Path(__file__).resolve().parents[3]

MOST_MEMORY = 1.25
"""Peak of what loading takes, in the size of the model's weights."""

WRITE = """
import sys, torch
from transformers import AutoConfig, AutoModelForSequenceClassification
config = AutoConfig.for_model(
    "xlm-roberta", vocab_size=250_002, hidden_size=1024, num_hidden_layers=24,
    num_attention_heads=16, intermediate_size=4096, max_position_embeddings=8194,
    type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5, num_labels=1,
)
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, sys.argv[2]))
model.save_pretrained(sys.argv[1])
"""

USE = """
import json, pathlib, re, sys
import transformers  # its own memory, and torch's, is not the model's
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from rerank_plugins import Reranker
from rerank_plugins.langchain import RerankCompressor
from rerank_plugins.llama_index import RerankPostprocessor
from rerank_plugins.scorers.torch import loading  # so is this one's

folder, documents = sys.argv[1], json.loads(sys.stdin.read())
settings = {"model": folder, "backend": "torch", "precision": "bf16", "max_length": 96}
settings |= {"device": "cpu", "top_n": None}


def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024


before = peak_bytes()
compressor = RerankCompressor(**settings)
compressor.compress_documents([Document(page_content="warm up")], "warm up")
after = peak_bytes()
query = "how do I renew my licence?"
ranked = compressor.compress_documents([Document(page_content=d) for d in documents], query)
postprocessor = RerankPostprocessor(**settings)
nodes = [NodeWithScore(node=TextNode(text=d)) for d in documents]
print(json.dumps({
    "loading": after - before,
    "compressor": [[d.page_content, d.metadata["relevance_score"]] for d in ranked],
    "postprocessor": [
        [n.node.text, n.score] for n in postprocessor.postprocess_nodes(nodes, query_str=query)
    ],
}))
"""


def run(program: str, *args: str, given: str = "") -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *args],
        input=given,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
def test_it_loads_with_little_more_memory_than_its_weights_and_serves_both_doors(
    saved: str, tmp_path: Path, data_dir: Path
) -> None:
    run(WRITE, str(tmp_path), saved)
    make_tokenizer("xlm-roberta").save(str(tmp_path / "tokenizer.json"))
    corpus = data_dir / "dev" / "mtrag_un" / "corpus.jsonl.gz"
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line, _ in zip(lines, range(100), strict=False)]

    answer = run(USE, str(tmp_path), given=json.dumps(documents))

    assert "Loading weights: 100%" in answer.stderr
    found = json.loads(answer.stdout)
    weights = 2 * 567_755_777
    assert weights * 0.9 < found["loading"] < weights * MOST_MEMORY
    assert sorted(text for text, _ in found["compressor"]) == sorted(documents)
    assert found["compressor"] == found["postprocessor"]
