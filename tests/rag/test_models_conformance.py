"""Every encoder and generator of the product, and the fakes, against the rules of tests/conformance.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rag.endpoint import EndpointConfig, EndpointGenerator
from rag.models import load_generator
from rag.protocols import Encoder, Generator
from tests.conformance import (
    EncoderConformance,
    GeneratorConformance,
    starter_encoder,
    starter_generator,
    stub_endpoint,
    tiny_folder,
)
from tests.fakes import FakeEncoder, FakeGenerator


@pytest.fixture(scope="module")
def tiny_generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tiny_folder(tmp_path_factory.mktemp("model"), starter_generator().tokenizer)
    return load_generator(str(folder), device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def endpoint_generator() -> Iterator[Generator]:
    with stub_endpoint() as stub:
        yield EndpointGenerator(f"openai:stub@{stub.url}", EndpointConfig(backoff=0.01))


class TestStarterEncoder(EncoderConformance):
    @pytest.fixture()
    def encoder(self) -> Encoder:
        return starter_encoder()


class TestFakeEncoder(EncoderConformance):
    @pytest.fixture()
    def encoder(self) -> Encoder:
        return FakeEncoder()


class TestStarterGenerator(GeneratorConformance):
    @pytest.fixture()
    def generator(self) -> Generator:
        return starter_generator()


class TestFolderGenerator(GeneratorConformance):
    @pytest.fixture()
    def generator(self, tiny_generator: Generator) -> Generator:
        return tiny_generator


class TestEndpointGenerator(GeneratorConformance):
    @pytest.fixture()
    def generator(self, endpoint_generator: Generator) -> Generator:
        return endpoint_generator


class TestFakeGenerator(GeneratorConformance):
    @pytest.fixture()
    def generator(self) -> Generator:
        return FakeGenerator()
