"""The guards of conftest.py themselves."""

from __future__ import annotations

import gc
import os
import socket
import urllib.request
import warnings

import pytest
import torch


def test_environment_is_offline_and_single_threaded() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert torch.get_num_threads() == 1


def test_collections_look_at_what_tests_make_alone() -> None:
    assert gc.isenabled() and gc.get_freeze_count() > 100_000


# 192.0.2.1 and .invalid are reserved for documentation: nothing would answer even without the guard.
def test_connecting_elsewhere_fails_the_test() -> None:
    with socket.socket() as one, pytest.raises(pytest.fail.Exception, match="192.0.2.1"):
        one.connect(("192.0.2.1", 80))
    with socket.socket(type=socket.SOCK_DGRAM) as one, pytest.raises(pytest.fail.Exception, match="192.0.2.1"):
        one.sendto(b"", ("192.0.2.1", 53))


def test_looking_up_a_name_fails_the_test() -> None:
    with pytest.raises(pytest.fail.Exception, match="host.invalid"):
        urllib.request.urlopen("http://host.invalid/")


def test_this_machine_may_talk_to_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        with server.accept()[0] as peer:
            assert peer.recv(1) == b"x"


def test_our_warnings_are_errors_and_third_party_deprecations_are_not() -> None:
    with pytest.raises(DeprecationWarning):
        warnings.warn("ours", DeprecationWarning, stacklevel=1)
    with pytest.raises(UserWarning):
        warnings.warn_explicit("theirs, but no deprecation", UserWarning, "f.py", 1, module="torch.nn")
    warnings.warn_explicit("theirs", FutureWarning, "f.py", 1, module="torch.nn")
