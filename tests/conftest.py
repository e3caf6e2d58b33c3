"""What every test gets: fixed seeds, no network, and tiny checkpoints written by ``transformers``."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported
os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported; what compiles kernels runs in a process of its own

import hypothesis
import numpy as np
import pytest

# TEST_SEED=RANDOM explores; TEST_SEED=<the number in the report header> repeats such a run.
EXPLORES = os.environ.get("TEST_SEED") == "RANDOM"
SEED = random.SystemRandom().randrange(2**32) if EXPLORES else int(os.environ.get("TEST_SEED", "0"))

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("exploring", deadline=None)
hypothesis.settings.load_profile("exploring" if EXPLORES else "repeatable")

CLASS_PREFIXES = {"roformer": "RoFormer", "roberta-prelayernorm": "RobertaPreLayerNorm"}
TINY: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "num_labels": 3,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exact-int8", action="store_true", help="multiply int8 as VNNI does, whatever the processor has")
    parser.addoption("--update-golden", action="store_true", help="record the fused graphs of tests/golden anew")


def pytest_report_header() -> str:
    return f"seed: {SEED} (TEST_SEED={os.environ.get('TEST_SEED', 'unset')})"


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  # for libraries that draw from the global generator
    import torch

    torch.manual_seed(SEED)


@pytest.fixture(scope="session", autouse=True)
def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models are traced and kernels compiled by one of the processes that share the tests, and read by the others."""
    from tests.shared import set_folder

    os.environ["TRITON_CACHE_DIR"] = str(set_folder(tmp_path_factory) / "triton")


@pytest.fixture(scope="session", autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> None:
    """On models this small, threads that wait for one another take far longer than the work.

    With ``--exact-int8``, ONNX Runtime's sessions also use its kernels for unsigned weights, which never saturate:
    their sums are those of processors with VNNI, so the run shows on any x86 what the tests say there.
    """
    import onnxruntime as ort
    import torch

    torch.set_num_threads(1)
    initialise, is_exact = ort.InferenceSession.__init__, request.config.getoption("--exact-int8")

    def patched(self: Any, model: Any, sess_options: Any = None, *arguments: Any, **options: Any) -> None:
        sess_options = sess_options or ort.SessionOptions()
        sess_options.intra_op_num_threads = sess_options.intra_op_num_threads or 1
        if is_exact:
            sess_options.add_session_config_entry("session.x64quantprecision", "1")
        initialise(self, model, sess_options, *arguments, **options)

    ort.InferenceSession.__init__ = patched


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The reference implementation, quiet: its progress bars and notes about new weights are no result."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


@pytest.fixture(scope="session")
def seed() -> int:
    """The run's seed, for fixtures that outlive a test and so must seed for themselves."""
    return SEED


@pytest.fixture(scope="session")
def save_checkpoint(transformers: Any) -> Callable[..., None]:
    """``save_checkpoint(folder, family, head, **config)``: as ``write_checkpoint``, into a folder of your choice."""

    def save(folder: Path, family: str, head: str, **config: Any) -> None:
        import torch

        prefix = CLASS_PREFIXES[family]
        model = getattr(transformers, prefix + head)(getattr(transformers, f"{prefix}Config")(**TINY | config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # the table of sinusoids is computed, not learnt
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)

    return save


@pytest.fixture
def write_checkpoint(save_checkpoint: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """``write_checkpoint(family, head, **config)``: a folder that ``transformers`` wrote, of a tiny random model.

    ``head`` is the end of the class name: "Model", "ForMaskedLM", …. Every weight is perturbed, the zero biases and
    identity norms too, so that no parameter can be left out or swapped without changing the outputs.
    """

    def write(family: str, head: str, **config: Any) -> Path:
        folder = tmp_path / f"{family}-{head}-{len(list(tmp_path.iterdir()))}"
        save_checkpoint(folder, family, head, **config)
        return folder

    return write


@pytest.fixture
def load_reference(transformers: Any) -> Callable[[Path], Any]:
    """``load_reference(folder)``: the model that ``transformers`` makes of a folder, of the class that its config says.

    With plain attention: its fused kernels treat rows that are all padding differently.
    """

    def load(folder: Path) -> Any:
        config = transformers.AutoConfig.from_pretrained(folder)
        architecture = getattr(transformers, config.architectures[0])
        return architecture.from_pretrained(folder, attn_implementation="eager").eval()

    return load
