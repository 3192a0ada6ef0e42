"""Score documents with tokenizers and onnxruntime alone, one pair at a time: no engine.

Usage: python examples/rerank_by_hand.py FOLDER QUERY DOCUMENT [DOCUMENT ...]
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def score_by_hand(
    folder: str | Path, query: str, documents: list[str], max_length: int = 512
) -> list[float]:
    """Return the logit of each document, from FOLDER/model.onnx and FOLDER/tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    tokenizer.no_padding()
    session = onnxruntime.InferenceSession(
        str(Path(folder, "model.onnx")), providers=["CPUExecutionProvider"]
    )
    names = [node.name for node in session.get_inputs()]
    logits = []
    for pair in tokenizer.encode_batch([(query, document) for document in documents]):
        rows = {"input_ids": pair.ids, "attention_mask": pair.attention_mask}
        rows["token_type_ids"] = pair.type_ids
        feeds = {name: np.array([rows[name]], dtype=np.int64) for name in names}
        logits.append(float(session.run(None, feeds)[0][0, 0]))
    return logits


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__.splitlines()[-1])
    folder, query, *documents = sys.argv[1:]
    scored = zip(score_by_hand(folder, query, documents), documents, strict=True)
    for logit, document in sorted(scored, reverse=True):
        print(f"{logit:8.4f}  {document}")
