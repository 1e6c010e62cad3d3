import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from besttake.rewards.networks.weights import read_module, read_tensors


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(2, 3), nn.BatchNorm1d(3), None])
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.kind = ("a", {1: frozenset([2])}, torch.bfloat16)
        self.register_buffer("passing", torch.ones(1), persistent=False)


class Evil(nn.Module):
    """Runs a command when it is unpickled."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def __reduce__(self):
        return self.act


def test_a_pickled_module_gives_its_state_dict_without_its_code(tmp_path):
    torch.manual_seed(0)
    part = Part()
    torch.save(part, tmp_path / "part.pth")
    torch.save(part.state_dict(), tmp_path / "expected.pth")
    there = "import sys; sys.modules['tests'] = None\n"  # so that its class cannot be imported
    there += "from pathlib import Path; import torch; from besttake.rewards.networks.weights import read_module\n"
    there += f"torch.save(read_module('mps', Path({str(tmp_path / 'part.pth')!r})), {str(tmp_path / 'found.pth')!r})"
    subprocess.run([sys.executable, "-c", there], check=True)
    found, expected = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("found", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("call", [os.system, eval, exec, subprocess.check_output, open, torch.load])
def test_nothing_that_a_pickle_names_is_run(tmp_path, call):
    trap = tmp_path / "sprung"
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    arguments = {os.system: f"touch {trap}", subprocess.check_output: ["touch", str(trap)], open: str(trap)}
    call_arguments = (arguments.get(call, code), "w") if call is open else (arguments.get(call, code),)
    holder = nn.Module()
    holder.part = Evil((call, call_arguments))
    torch.save(holder, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"critic mps: .*evil.pth is damaged, or no pickled module"):
        read_module("mps", tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth is damaged, or no file of tensors"):
        list(read_tensors("mps", tmp_path / "evil.pth"))
    assert not trap.exists()


def test_what_is_no_pickled_module_is_refused(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "state.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save(nn.Linear(2, 2), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-200])
    for name in ("state", "text", "cut", "none"):
        with pytest.raises(ValueError, match=f"critic mps: .*{name}.pth is damaged, or no pickled module"):
            read_module("mps", tmp_path / f"{name}.pth")
