import pytest

from unimem.bench.settings import BenchSettings

GIVEN = {
    "shape": "micro",
    "methods": ["vanilla", "memorizing_transformer"],
    "sizes": [0, 64],
    "what": "step",
    "repeats": 1,
    "threads": 1,
    "batch_size": 1,
    "segment_length": 16,
    "document_tokens": 48,
    "topk": None,
    "keys": "clustered",
    "dtype": "float32",
    "device": "cpu",
    "backend": "auto",
    "max_state_gb": 1.0,
    "seed": 0,
}


@pytest.fixture
def make_settings(tmp_path):
    """Make settings of a benchmark that takes seconds; it writes into the test's folder."""

    def make(**values):
        return BenchSettings(**(GIVEN | {"output": str(tmp_path / "bench")} | values))

    return make
