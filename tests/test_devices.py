"""Devices by name."""

import pytest
import torch

from besttake.devices import describe_device, find_device


def test_auto_is_what_is_there():
    assert find_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == "cpu"


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"device .gpu9. is not there .*; give cpu, cuda or auto"):
        find_device("gpu9")


def test_a_processor_is_described_by_its_cores():
    assert "CPU cores" in describe_device("cpu")
