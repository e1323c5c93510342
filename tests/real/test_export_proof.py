"""The checks of an export tell good files of a real model from faulty ones, and do so widely."""

from pathlib import Path

import pytest

from posttrain.base.errors import ConfigError
from posttrain.export.llama_cpp import find_quantizer, find_tree
from tests.real.export_proof import KINDS, Bench, faults_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(7200), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def bench(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    try:
        find_quantizer(find_tree(None))
    except ConfigError as error:
        pytest.skip(f"llama.cpp is not in the cache and cannot be fetched: {error}")
    return Bench(smollm2, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("kind", KINDS)
def test_good_files_pass_widely_and_faults_are_caught(kind: str, bench: Bench) -> None:
    good = {check.name: check for check in bench.check(kind)}
    assert all(check.passed for check in good.values()), good
    for name in ("learning_lost", "divergence"):
        value, limit = good[name].value, good[name].limit
        assert isinstance(value, float) and isinstance(limit, float) and value < limit / 3, good
    for fault in faults_of(kind, biases=False):
        checks = bench.check(kind, fault)
        assert not all(check.passed for check in checks), (fault, checks)
