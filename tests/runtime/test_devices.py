"""Devices by name."""

import pytest
import torch

from besttake.runtime.devices import check_dtype, describe_device, find_device


def test_auto_is_what_is_there():
    assert find_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == "cpu"


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"device .gpu9. is not available .*; give cpu, cuda or auto"):
        find_device("gpu9")


def test_a_processor_is_described_by_its_cores():
    assert "CPU cores" in describe_device("cpu")


def test_a_gpu_that_only_emulates_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ValueError, match=r"Tesla T4 only emulates bfloat16, .*; set dtype float32"):
        check_dtype(torch.bfloat16, "cuda:0")
    check_dtype(torch.float32, "cuda:0")
    check_dtype(torch.bfloat16, "cpu")
