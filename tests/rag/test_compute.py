"""A server computes in one thread; everything else where it is called."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rag import hardware
from rag.hardware import compute, compute_in_one_thread

CPU = torch.device("cpu")


@pytest.fixture()
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hardware, "_one", None)
    compute_in_one_thread()
    yield
    assert hardware._one is not None
    hardware._one.shutdown()


def test_work_stays_in_its_thread_unless_a_server_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_one", None)
    assert compute(CPU, threading.get_ident) == threading.get_ident()


def test_all_threads_of_a_server_compute_in_one(together: None) -> None:
    compute_in_one_thread()  # a second time changes nothing
    with ThreadPoolExecutor(8) as many:
        where = set(many.map(lambda _: compute(CPU, threading.get_ident), range(50)))
    assert len(where) == 1 and threading.get_ident() not in where


def test_work_that_computes_again_does_not_wait_for_itself(together: None) -> None:
    assert compute(CPU, lambda: compute(CPU, threading.get_ident) == threading.get_ident())


def test_arguments_results_and_failures_pass_through(together: None) -> None:
    assert compute(CPU, divmod, 17, 5) == (3, 2)
    with pytest.raises(ZeroDivisionError):
        compute(CPU, divmod, 1, 0)
    assert compute(CPU, divmod, 1, 1) == (1, 0)  # the thread is still there


def test_another_device_has_no_such_teams(together: None) -> None:
    assert compute(torch.device("meta"), threading.get_ident) == threading.get_ident()
