"""Training steps recorded once and replayed: the operations without what calls them.

A step of a small network costs mostly the Python of the parts and the bookkeeping of
autograd, and both do the same for every batch of a shape. So a step is recorded below
autograd, as the list of operations that it came to, and replayed into the memory of
the recording, where every view stays what it was. On CUDA a captured graph takes the
place of the list.

On the CPU the replayed step does to the bit what the step does. Its first replay is
compared with it, and a step that its operations do not tell is never replayed.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skvae import _optimizer, _products

# Steps of a kind before it is recorded, and steps of a run below which none is.
WARM_STEPS = 4
LEAST_STEPS = 100
# Bytes that the intermediate results may take together: beyond, the arithmetic and
# the caches decide, and a list of operations saves nothing.
LARGEST = 1 << 26
# Operations of this package, called past torch's search for them.
DIRECT = {**_optimizer.DIRECT, **_products.DIRECT}
NESTED = list, tuple, dict
# Numbers that are rather copied to where they are read than their readers told.
LEAST_MOVED = 1 << 14


class NotReplayableError(Exception):
    """The step depends on more than its operations, or needs too much memory."""


class Recorder(TorchDispatchMode):
    """Notes every operation below autograd with its arguments and results."""

    def __init__(self):
        super().__init__()
        self.operations = []

    @classmethod
    def _should_skip_dynamo(cls):
        # Else the first recording imports the compiler stack: 70 MB and seconds.
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, result))
        return result


def places(values) -> set[int]:
    """Where the memory of the tensors begins."""
    return {t.untyped_storage().data_ptr() for t in tensors(values)}


def tensors(values) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, NESTED):
        return []
    found = []
    values = values.values() if isinstance(values, dict) else values
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, NESTED):
            found += tensors(value)
    return found


def decides_by_values(function, args) -> bool:
    """Whether the shape of the result depends on more than shapes."""
    if function is torch.ops.aten.index.Tensor:
        return any(index.dtype == torch.bool for index in tensors(args[1]))
    return torch.Tag.dynamic_output_shape in function.tags


@cache
def variant_with_out(function):
    """What writes the result into given memory, and the name of that argument."""
    if function in DIRECT:
        return DIRECT[function], "out"
    wanted = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        other = getattr(function.overloadpacket, name)
        arguments = other._schema.arguments
        out = [a.name for a in arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        if len(out) == 1 and rest == wanted:
            return other._op, out[0]
    return None


def written(function, args, kwargs) -> set[int]:
    """The memory of the arguments that an operation writes over."""
    if not function._schema.is_mutable:
        return set()
    names = zip(function._schema.arguments, args, strict=False)
    values = [value for argument, value in names if argument.is_write]
    values += [
        kwargs[a.name]
        for a in function._schema.arguments
        if a.is_write and a.name in kwargs
    ]
    return places(values)


def copying(function, memory: list[Tensor]):
    """`function`, its results copied into `memory`."""

    def call(*args, **kwargs):
        for place, value in zip(
            memory, tensors(function(*args, **kwargs)), strict=True
        ):
            place.copy_(value)

    return call


def moving(function, memory: list[Tensor]):
    """`function`, the tensors `memory` moved to where its one result is."""
    layouts = [(t, t.storage_offset(), t.size(), t.stride()) for t in memory]

    def call(*args, **kwargs):
        storage = function(*args, **kwargs).untyped_storage()
        for tensor, *layout in layouts:
            tensor.set_(storage, *layout)

    return call


def replayable_call(function, args, kwargs, result, sharing):
    """An operation as ``(callable, args, kwargs)``; None for a view, which stays.

    `sharing` are all tensors of the tape by the address of their memory.
    """
    if function._schema.is_mutable:
        return DIRECT.get(function, function._op), args, kwargs
    results = tensors(result)
    if not results or decides_by_values(function, args):
        raise NotReplayableError(f"{function} decides by the values of its arguments.")
    memory = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
    if all(t.untyped_storage().data_ptr() in memory for t in results):
        return None
    if function is torch.ops.aten.clone.default:
        # Its variant with given memory copies twice.
        return torch.ops.aten.copy_.default._op, (result, args[0]), {}
    variant = variant_with_out(function)
    if variant is None:
        if isinstance(result, Tensor) and result.numel() >= LEAST_MOVED:
            memory = sharing[result.untyped_storage().data_ptr()]
            return moving(function._op, memory), args, kwargs
        return copying(function._op, results), args, kwargs
    call, out = variant
    return call, args, {**kwargs, out: result}


def constant(function, args, kwargs, result, known: set[int], changed: set[int]):
    """Whether the results are the same in every replay: nothing they read changes.

    `known` is the memory of such results, and `changed` that which is written over.
    """
    if function._schema.is_mutable or places(result) & changed:
        return False
    if torch.Tag.nondeterministic_seeded in function.tags:
        return False
    shape_alone = function.overloadpacket._qualified_op_name.endswith("_like")
    return shape_alone or places((args, kwargs)) <= known


def made_in_place(operations, terms, sharing, changed: set[int]):
    """The operations without copies of results that can be computed where they go.

    A result can if an operation puts it into given memory, no operation reads it but
    before the copy, and none reads or writes meanwhile where it goes.
    """
    touched = [places(operation[1:]) for operation in operations]
    last = {place: n for n, memory in enumerate(touched) for place in memory}
    last |= dict.fromkeys(places(terms), len(operations))
    made, kept = {}, []
    for n, (function, args, kwargs, result) in enumerate(operations):
        if function is not torch.ops.aten._foreach_copy_.default:
            for place in places(result) - places((args, kwargs)):
                made[place] = n, function
            kept.append((function, args, kwargs, result))
            continue
        left = []
        for there, here in zip(*args, strict=True):
            place = here.untyped_storage().data_ptr()
            aim = there.untyped_storage().data_ptr()
            start, maker = made.get(place, (0, None))
            free = last[place] == n and not any(aim in t for t in touched[start:n])
            able = maker is not None and variant_with_out(maker) is not None
            able &= free and place not in changed
            if not (able and moved(sharing[place], there)):
                left.append((there, here))
        if left:
            kept.append(
                (function, tuple(map(list, zip(*left, strict=True))), kwargs, result)
            )
    return kept


def moved(views: list[Tensor], there: Tensor) -> bool:
    """Whether a result's tensors could be given the memory of `there`, and were."""
    for t in (*views, there):
        if not (t.is_contiguous() and t.numel() == there.numel()):
            return False
    for t in views:
        t.set_(there.untyped_storage(), there.storage_offset(), t.size(), t.stride())
    return True


def laid_alike(function, args, kwargs, result) -> set[int]:
    """Where the arguments are that the result may be written over as it comes."""
    if torch.Tag.pointwise not in function.tags:
        return set()

    def layout(t):
        return t.shape, t.stride(), t.storage_offset(), t.untyped_storage().nbytes()

    alike, unlike = set(), set()
    for t in tensors((args, kwargs)):
        same = layout(t) == layout(result)
        (alike if same else unlike).add(t.untyped_storage().data_ptr())
    return alike - unlike


@torch.no_grad()
def share_memory(operations, sharing, owned: set[int]) -> int:
    """Give results the memory of earlier ones that nobody reads any more.

    Written lately, it is likelier to be in the cache than memory of their own. `owned`
    is where the results are that may go elsewhere; returns the bytes that they take.
    """
    touched = [places(operation[1:]) & owned for operation in operations]
    alike = [laid_alike(*operation) for operation in operations]
    last = {place: n for n, memory in enumerate(touched) for place in memory}
    where, idle, size = {}, defaultdict(list), 0
    for n, memory in enumerate(touched):
        old, new = memory & where.keys(), memory - where.keys()
        ending = {place for place in memory if last[place] == n}
        for place in ending & old & alike[n]:
            idle[where[place].nbytes()].append(where[place])
        for place in new:
            where[place] = storage = sharing[place][0].untyped_storage()
            if idle[storage.nbytes()]:
                where[place] = idle[storage.nbytes()].pop()
                for t in sharing[place]:
                    t.set_(where[place], t.storage_offset(), t.size(), t.stride())
            else:
                size += storage.nbytes()
        for place in ending - (old & alike[n]):
            idle[where[place].nbytes()].append(where[place])
    return size


class Tape:
    """A recorded step on the CPU."""

    def __init__(self, step):
        with Recorder() as recorder:
            self.terms = step()
        sharing, known = {}, set()
        found = tensors((recorder.operations, self.terms))
        for t in {id(t): t for t in found}.values():
            sharing.setdefault(t.untyped_storage().data_ptr(), []).append(t)
        changed, made = set(), set()
        for function, args, kwargs, result in recorder.operations:
            changed |= written(function, args, kwargs)
            made |= places(result) - places((args, kwargs))
        operations = made_in_place(recorder.operations, self.terms, sharing, changed)
        self.calls, repeated, owned = [], [], set()
        for function, args, kwargs, result in operations:
            if constant(function, args, kwargs, result, known, changed):
                known |= places(result)
                continue
            call = replayable_call(function, args, kwargs, result, sharing)
            if call is None:
                continue
            self.calls.append(call)
            repeated.append((function, args, kwargs, result))
            if variant_with_out(function) is not None:
                owned |= places(result) & made
        # The terms of this step are read yet, and those of every replay.
        owned -= places(self.terms)
        if share_memory(repeated, sharing, owned) > LARGEST:
            raise NotReplayableError("The intermediate results take too much memory.")

    @torch.no_grad()
    def replay(self) -> None:
        """Do the step again with what its inputs hold now."""
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)


class Graph:
    """A step captured on CUDA."""

    def __init__(self, step, generators):
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            self.terms = step()
        # Capturing does not execute.
        self.graph.replay()

    def replay(self) -> None:
        """Do the step again with what its inputs hold now."""
        self.graph.replay()


@contextmanager
def weighed(objective, weight: Tensor):
    """Have the objective weigh its KL term by this tensor, within the block."""
    objective.weight = lambda progress: weight
    try:
        yield
    finally:
        del objective.weight


def equal(one, other) -> bool:
    """Whether two weights of the KL term are the same numbers, or the same tensor."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return one == other


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two results of the same operations agree, on the CPU to the bit.

    On a GPU the order of sums may differ from run to run.
    """
    if one.device.type == "cpu":
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=1e-3, atol=1e-5)


class ReplayedStep:
    """The step of an inference procedure, replayed where this is safe and pays.

    Parameters
    ----------
    inference : object
        The procedure.
    state : State
        What its steps work on.
    n_steps : int
        Steps that the run is going to take at most.
    """

    def __init__(self, inference, state, n_steps: int):
        self.inference, self.state = inference, state
        self.on = (
            n_steps >= LEAST_STEPS
            and inference.replayable
            and state.model.replayable
            and state.data.device.type in ("cpu", "cuda")
        )
        self.batches, self.kinds = {}, {}

    def take(self, batch):
        """Take one step; the terms are valid until the next one."""
        rates = self.state.rates()
        self.state.optimizer.use(rates)
        # The parts of a batch that processes share differ in size from step to step.
        if not self.on or batch.share is not None:
            return self.inference.step(self.state, batch)
        batch = self.placed(batch)
        objective, progress = self.state.objective, self.state.progress
        weight = objective.weight(progress)
        key = batch.x.shape[1], self.state.optimizer.runs
        if isinstance(weight, Tensor) or objective.is_final(progress):
            kind = self.kinds.get(key)
            if kind is None or not equal(kind.weight, weight):
                kind = self.kinds[key] = Kind(weight)
            return kind.step(self, batch)
        # While the weight moves, the operations read it from memory.
        key = "moving", *key
        if key not in self.kinds:
            self.kinds[key] = Kind(torch.zeros((), device=batch.x.device))
        kind = self.kinds[key]
        kind.weight.fill_(weight)
        with weighed(objective, kind.weight):
            return kind.step(self, batch)

    def memory(self, n_rows: int):
        """Where steps on so many rows read their batch, from the second one on."""
        return self.batches.get(n_rows)

    def placed(self, batch):
        """The batch where all steps on so many rows read theirs."""
        n_rows = batch.x.shape[1]
        if n_rows not in self.batches:
            # Noise is drawn for many batches at once.
            self.batches[n_rows] = batch._replace(noise=batch.noise.clone())
        memory = self.batches[n_rows]
        for place, tensor in zip(memory[:4], batch[:4], strict=True):
            if place is not tensor:
                place.copy_(tensor)
        return memory


class Kind:
    """Steps that are the same operations: their count, and their tape once there is.

    `weight` is that of the KL term, a constant of the operations.
    """

    def __init__(self, weight):
        self.weight = weight
        self.count = 0
        self.tape = None
        self.hopeless = self.checked = False

    def step(self, owner: ReplayedStep, batch):
        """One step, in whichever way is due."""
        self.count += 1
        if self.hopeless or self.count <= WARM_STEPS:
            return owner.inference.step(owner.state, batch)
        if self.tape is None:
            return self.record(owner, batch)
        if not self.checked:
            return self.check(owner, batch)
        self.tape.replay()
        return self.tape.terms

    def record(self, owner: ReplayedStep, batch):
        """Take a step and record it."""
        state = owner.state

        def step():
            terms = owner.inference.step(state, batch)
            return type(terms)(*(term.detach() for term in terms))

        if state.data.device.type == "cuda":
            self.tape = Graph(step, state.draws.noise)
            return self.tape.terms
        terms = []
        try:
            self.tape = Tape(lambda: terms.append(step()) or terms[0])
        except NotReplayableError:
            self.hopeless = True
        return terms[0]

    def check(self, owner: ReplayedStep, batch):
        """Take the step in both ways; should they differ, give up replaying."""
        state = owner.state
        changing = [*state.optimizer.tensors(), *state.memory.values()]
        before = [tensor.clone() for tensor in changing]
        streams = [generator.get_state() for generator in state.draws.noise]
        self.tape.replay()
        replayed = [t.clone() for t in (*changing, *self.tape.terms)]
        for tensor, old in zip(changing, before, strict=True):
            tensor.copy_(old)
        for generator, old in zip(state.draws.noise, streams, strict=True):
            generator.set_state(old)
        terms = owner.inference.step(state, batch)
        self.checked = True
        pairs = zip(replayed, (*changing, *terms), strict=True)
        if not all(alike(one, other) for one, other in pairs):
            self.hopeless, self.tape = True, None
        return terms


__all__ = ["ReplayedStep"]
