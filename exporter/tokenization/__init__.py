"""Text to ids for both families. Part of the base install: needs neither torch nor onnx."""

from exporter.tokenization.batch import Batch
from exporter.tokenization.loading import load_tokenizer
from exporter.tokenization.roberta import RobertaTokenizer
from exporter.tokenization.roformer import RoFormerTokenizer, RoFormerTokenizerFast
from exporter.tokenization.tokenizer import Tokenizer

__all__ = ["Batch", "RoFormerTokenizer", "RoFormerTokenizerFast", "RobertaTokenizer", "Tokenizer", "load_tokenizer"]
