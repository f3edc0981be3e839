"""A GPU without a GPU: both scripts run with --device cuda while all arithmetic is done on the CPU.

Every tensor is marked as being on the one or on the other. Mixing the two is an error, as on a GPU, and what
would make the host wait for the GPU (item, tolist, bool, copies, indexing by a mask) is counted. Not seen:
speed, and what C++ does inside one call.
"""

import collections

import pytest
import torch
from common import rejects
from mutants_scripts import GPU
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITING = {"item", "tolist", "nonzero", "__bool__", "__float__", "__int__", "__index__"}
RealGenerator = torch.Generator


class Generator(RealGenerator):
    """A generator that says where it is."""

    def __new__(cls, device="cpu"):
        made = RealGenerator.__new__(cls)
        made.place = torch.device(device)
        return made

    def __init__(self, device="cpu"):
        super().__init__()

    device = property(lambda self: self.place)


def tensors_in(value):
    """The tensors of nested containers."""
    return [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]


class StandIn(TorchFunctionMode):
    """Marks tensors as being on the GPU, and refuses and counts what a GPU would mind."""

    def __init__(self):
        super().__init__()
        self.on_gpu, self.waits = WeakIdKeyDictionary(), collections.Counter()

    def mark(self, result, gpu):
        """All tensors of a result are there from now on."""
        for tensor in tensors_in(result):
            self.on_gpu[tensor] = gpu
        return result

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        tensors = tensors_in([args, kwargs])
        gpu = any(self.on_gpu.get(x, False) for x in tensors)
        if name == "__get__":
            return self.read(func(*args), resolve_name(func) or "", gpu)
        if name in ("to", "cpu", "cuda"):
            return self.move(name, gpu, *args, **kwargs)
        place = torch.device(kwargs.pop("device")).type == "cuda" if kwargs.get("device") is not None else gpu
        generator = kwargs.get("generator")
        if isinstance(generator, Generator):
            assert (generator.device.type == "cuda") == place, f"{name}: a generator that is elsewhere"
        if gpu and name != "copy_":
            apart = [x for x in tensors if not self.on_gpu.get(x, False) and x.dim()]
            assert not apart, f"{name}: tensors on both devices"
            assert name not in ("numpy", "__array__"), "numpy does not read a GPU"
        masks = [x for x in tensors[1:] if name in ("__getitem__", "__setitem__") and x.dtype == torch.bool]
        if gpu and (name in WAITING or masks):
            self.waits[name] += 1
        if place and name in ("tensor", "as_tensor"):
            self.waits["copy to the GPU"] += 1
        return self.mark(func(*args, **kwargs), place)

    def read(self, value, name, gpu):
        """An attribute of a tensor."""
        if isinstance(value, torch.device):
            return CUDA if gpu else value
        if "is_cuda" in name:
            return gpu
        return self.mark(value, gpu)

    def move(self, name, gpu, tensor, *rest, **kwargs):
        """to, cpu, cuda: the same numbers, elsewhere."""
        places = [x for x in (*rest, kwargs.pop("device", None)) if isinstance(x, str | torch.device)]
        others = [x for x in rest if not isinstance(x, str | torch.device)]
        target = torch.device(places[0]).type == "cuda" if places else gpu
        target = target if name == "to" else name == "cuda"
        kwargs.pop("non_blocking", None)
        moved = tensor.to(*others, **kwargs) if others or kwargs else tensor
        if target == gpu:
            return self.mark(moved, gpu)
        self.waits["copy"] += 1
        return self.mark(moved.clone(), target)


def check_rounds(script, data_dir, flags):
    """Nothing is in a wrong place, and in a round without an evaluation the host does not wait."""
    mode, waits, bar = StandIn(), [], script.module.tqdm

    class Bar(bar):
        def __iter__(self):
            for round_number in super().__iter__():
                waits.append(mode.waits.total())
                yield round_number

    flags = f"--device cuda --num-seeds 2 --eval-every 99 --rounds 3 {flags}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.module, "tqdm", Bar)
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        with mode:
            summary = script.train(data_dir, flags)
    assert summary["device"] == "cuda:0"
    first, *_, last = waits
    assert len(waits) == 3 and first == last, "no wait in rounds without an evaluation"
    assert mode.waits.total() > last, "the last round evaluates"
    return summary


METHODS = [
    "--backup uniform --penalty macql --env-id simple_world --dataset random",
    "--backup joint --actor-others policy --clone-weight 1 --penalty-agents 3",
    "--env-id {0.world} {0.world_flags}",
]


@pytest.mark.parametrize("flags", METHODS)
def test_rounds_stay_on_the_gpu(flags, script, run, data_dir):
    """And what comes out is what comes out on a CPU, from which a run goes on there."""
    flags = flags.format(script)
    summary = check_rounds(script, data_dir, flags)
    on_cpu = run(f"{flags} --num-seeds 2 --eval-every 99 --rounds 3")
    assert summary["scores"] == on_cpu["scores"]
    if script.world in flags:
        check_rounds(script, data_dir, f"{flags} --rounds 6 --resume {on_cpu['folder']}")


@pytest.mark.parametrize("mutant", GPU)
def test_what_a_gpu_would_mind_is_noticed(mutant, script, run, data_dir):
    rejects(check_rounds, script.edited(*GPU[mutant]), data_dir, "")
