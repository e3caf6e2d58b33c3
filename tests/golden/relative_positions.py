"""Records what ``transformers`` 4.50.0 computes with relative positions, which its fifth release no longer has.

Writes ``relative_positions.safetensors`` beside this file: tiny models with their weights, inputs and outputs, named
``case/weights/…``, ``case/inputs/…`` and ``case/outputs/…``; the metadata holds each case's class and config. Run once,
with CPython 3.11.7 and torch 2.13.0 on x86-64, in an environment of its own:

    python -m venv old && old/bin/pip install transformers==4.50.0 torch==2.13.0 safetensors numpy
    old/bin/python tests/golden/relative_positions.py

Decoders are recorded without a cache: with one, this release takes every query for the last token, which is right for
steps of one token alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

OUT = Path(__file__).with_suffix(".safetensors")
TINY: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 9,
    "pad_token_id": 1,
    "num_labels": 2,
}
DECODER = {"is_decoder": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder": ("Model", {"num_hidden_layers": 2}),
    "encoder of one head": ("Model", {"num_attention_heads": 1}),
    "decoder": ("Model", DECODER | {"num_hidden_layers": 2}),
    "masked language model": ("ForMaskedLM", {}),
    "causal language model": ("ForCausalLM", DECODER),
    "decoder with an encoder": ("ForCausalLM", DECODER | {"add_cross_attention": True}),
    "sequence classifier": ("ForSequenceClassification", {}),
    "question answering": ("ForQuestionAnswering", {}),
}


def batch(length: int) -> dict[str, Tensor]:
    """Four rows: unpadded, padded on the left, padded on the right, nothing but padding."""
    input_ids = torch.randint(2, TINY["vocab_size"], (4, length))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, : length // 3] = 0
    attention_mask[2, length - length // 3 :] = 0
    attention_mask[3] = 0
    return {"input_ids": input_ids.where(attention_mask == 1, 1), "attention_mask": attention_mask}


def flatten(outputs: Any) -> dict[str, Tensor]:
    """Tensors by the name of their field, those of a tuple with their place in it."""
    flat = {}
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            flat[name] = value
        elif name != "past_key_values":
            flat |= {f"{name}.{place}": tensor for place, tensor in enumerate(value)}
    return flat


def main() -> None:
    """Records every case with both kinds of relative positions."""
    assert transformers.__version__ == "4.50.0", transformers.__version__
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    described = {}
    for kind in ("relative_key", "relative_key_query"):
        for case, (head, variant) in CASES.items():
            config = TINY | variant | {"position_embedding_type": kind, "model_type": "roberta-prelayernorm"}
            family = "RobertaPreLayerNorm"
            made = transformers.RobertaPreLayerNormConfig(**config)
            model = getattr(transformers, family + head)(made).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
            tied = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
            found = {f"weights/{name}": value for name, value in model.state_dict().items() if name not in tied}
            for length in (1, TINY["max_position_embeddings"]):
                inputs = batch(length)
                if made.add_cross_attention:
                    inputs["encoder_hidden_states"] = torch.randn(4, 5, made.hidden_size)
                    inputs["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]] * 2)
                with torch.no_grad():
                    outputs = model(**inputs, output_attentions=True)
                found |= {f"inputs/{length}/{name}": value for name, value in inputs.items()}
                found |= {f"outputs/{length}/{name}": value for name, value in flatten(outputs).items()}
            tensors |= {f"{kind}, {case}/{name}": value.contiguous().clone() for name, value in found.items()}
            described[f"{kind}, {case}"] = {"class": family + head, "config": config}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    save_file(tensors, OUT, metadata={"cases": json.dumps(described), **versions})


if __name__ == "__main__":
    main()
