"""Text to ids for both families. Part of the base install: needs neither torch nor onnx."""

from exporter.tokenization.loading import load_tokenizer
from exporter.tokenization.roberta import RobertaTokenizer
from exporter.tokenization.roformer import RoFormerTokenizer
from exporter.tokenization.tokenizer import Batch, Tokenizer

__all__ = ["Batch", "RoFormerTokenizer", "RobertaTokenizer", "Tokenizer", "load_tokenizer"]
