"""Fits of equal shape trained as the replicas of one model.

A fit asks for its training through :data:`TRAINER`. By default that is the loop itself.
A search puts a function there that holds requests back until several of equal shape
have come, and answers them together.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from skvae._batches import Data
from skvae._training import Epoch, History, Settings, Training, train
from skvae._unmixing import unmixable

TRAINER: ContextVar[Callable] = ContextVar("TRAINER", default=train)
# Options of objectives that only decide how they weigh the KL term.
WEIGHING = "beta", "warm_up"


class Request(NamedTuple):
    """The arguments of :func:`skvae._training.train` for one fit."""

    model: nn.Module
    data: Data
    objective: object
    inference: object
    settings: Settings
    seeds: list
    begin_epoch: Callable
    validation: Data | None = None

    @property
    def n_replicas(self) -> int:
        return self.model.n_replicas


# ------------------------------------------------------------- which fits go together


def _plain(value) -> Hashable:
    """A description of an attribute; TypeError where there is none."""
    if isinstance(value, Tensor):
        raise TypeError("A tensor that is neither parameter nor buffer has no axis R.")
    if isinstance(value, nn.Module):
        # Another part of the model, described where it belongs.
        return type(value)
    if hasattr(value, "get_params"):
        return type(value), _plain(value.get_params(deep=False))
    if isinstance(value, dict):
        return tuple((key, _plain(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, set):
        return frozenset(value)
    hash(value)
    return value


def _structure(module: nn.Module, n_replicas: int) -> Hashable:
    """Everything about a module but its numbers and how many replicas it has."""
    if not getattr(module, "stackable", True):
        raise TypeError(f"{type(module).__name__} trains one replica at a time.")

    def shape(tensor):
        if tensor is None:
            return None
        if tensor.dim() > 1 and tensor.shape[0] not in {1, n_replicas}:
            raise TypeError("A tensor without the axis R cannot be stacked.")
        # Two and more axes lead with R; fewer belong to all replicas of the model.
        kept = tensor.shape[1:] if tensor.dim() > 1 else tensor.shape
        return tensor.dim(), tuple(kept), tensor.dtype, tensor.device

    own = ("_parameters", "_buffers", "_modules", "n_replicas")
    return (
        type(module),
        tuple((name, shape(value)) for name, value in module._parameters.items()),
        tuple((name, shape(value)) for name, value in module._buffers.items()),
        tuple(
            (name, _structure(child, n_replicas))
            for name, child in module._modules.items()
        ),
        _plain({name: v for name, v in vars(module).items() if name not in own}),
    )


def _data_shape(data: Data | None) -> Hashable:
    if data is None:
        return None
    u = None if data.u is None else (data.u.shape[1:], data.u.dtype)
    return data.x.shape[1:], data.x.dtype, data.device, u


def _counts(request: Request) -> Hashable:
    """What fits must share of their numbers of rows.

    Folds differ by a row. Where training looks at rows in batches alone, and at each
    by itself, rows without weight fill up the last batch.
    """
    data, validation, model = request.data, request.validation, request.model
    likelihood = getattr(model, "likelihood", None)
    inference = request.inference
    one_by_one = (
        not inference.draws
        and inference.coupling is None
        and request.objective.coupling is None
        and not (inference.unmix and unmixable(model))
        and not getattr(likelihood, "resample", False)
        and not hasattr(likelihood, "lengths")
        and not data.streamed
    )
    n_batches = math.ceil(data.n_rows / request.settings.batch_size)
    return (
        n_batches if one_by_one else (data.n_rows,),
        None if validation is None else validation.n_rows,
    )


def key(request: Request) -> Hashable:
    """Equal for requests that may share a batch, None for one that trains alone.

    Free within a batch are the data, their numbers of rows being alike, the seeds, the
    learning rate, fixed noise and the weight of the KL term.
    """
    objective, settings = request.objective, vars(request.settings)
    # Early stopping counts from when the objective has stopped changing.
    free = WEIGHING[:1] if request.validation is not None else WEIGHING
    options = {name: v for name, v in vars(objective).items() if name not in free}
    try:
        parts = (
            _structure(request.model, request.n_replicas),
            _data_shape(request.data),
            _data_shape(request.validation),
            _counts(request),
            (type(objective), _plain(options)),
            _plain(request.inference),
            _plain({k: v for k, v in settings.items() if k != "learning_rate"}),
        )
        hash(parts)
    except TypeError:
        return None
    return parts


# --------------------------------------------------------------------------- stacking


def _joined(tensors: list[Tensor], sizes: list[int]) -> Tensor:
    """One tensor with the leading axis of all replicas."""
    first = tensors[0]
    if first.dim() < 2:
        if all(torch.equal(first, other) for other in tensors[1:]):
            return first.clone()
        # Of one model and so without an axis R: it broadcasts from the right.
        tensors = [tensor.reshape(1, 1, -1) for tensor in tensors]
    wanted = zip(tensors, sizes, strict=True)
    return torch.cat([t.expand(size, *t.shape[1:]) for t, size in wanted]).clone()


def stack(models: list[nn.Module]) -> nn.Module:
    """One model whose replicas are those of all `models`, in their order."""
    sizes = [model.n_replicas for model in models]
    whole = copy.deepcopy(models[0])
    for target, *sources in zip(
        whole.modules(), *(model.modules() for model in models), strict=True
    ):
        for kind in ("_parameters", "_buffers"):
            for name, value in getattr(target, kind).items():
                if value is None:
                    continue
                parts = [getattr(source, kind)[name].detach() for source in sources]
                joined = _joined(parts, sizes)
                if kind == "_parameters":
                    joined = nn.Parameter(joined)
                getattr(target, kind)[name] = joined
        if hasattr(target, "n_replicas"):
            target.n_replicas = sum(sizes)
    return whole


def _equal(one: Data, other: Data) -> bool:
    pairs = zip(one[:3], other[:3], strict=True)
    return all(a is b or torch.equal(a, b) for a, b in pairs)


def _padded(data: Data, n_rows: int) -> Data:
    """The data with so many rows: the first ones again, without weight."""
    n = data.n_rows
    if n == n_rows:
        return data
    rows = torch.arange(n_rows, device=data.x.device) % n
    x, u, weight = (None if t is None else t.index_select(0, rows) for t in data[:3])
    weight[n:] = 0.0
    return Data(x, u, weight)


def pooled(parts: list[Data], sizes: list[int]) -> Data:
    """The data of all fits, with equal ones kept once."""
    blocks, owners = [], []
    for part, size in zip(parts, sizes, strict=True):
        part = part.gathered()
        same = (n for n, block in enumerate(blocks) if _equal(part, block))
        number = next(same, len(blocks))
        if number == len(blocks):
            blocks.append(part)
        owners += [number] * size
    if len(blocks) == 1:
        return blocks[0]
    counts = tuple(block.n_rows for block in blocks)
    blocks = [_padded(block, max(counts)) for block in blocks]
    x, u, weight = (
        None if tensors[0] is None else torch.cat(tensors)
        for tensors in zip(*(block[:3] for block in blocks), strict=True)
    )
    owners = torch.tensor(owners, device=weight.device)
    return Data(x, u, weight, owners, len(blocks), counts=counts)


class StackedObjective:
    """Objectives that differ in how they weigh the KL term, and in nothing else.

    What is stacked are the answers of `weight` and `annealing`, through which alone an
    objective uses its beta and its warm-up.
    """

    def __init__(self, objectives: list, sizes: list[int], device):
        self.device, self.latest = device, (None, None)
        different, self.places = {}, []
        for objective, size in zip(objectives, sizes, strict=True):
            kind = tuple(vars(objective).get(name) for name in WEIGHING)
            different.setdefault(kind, objective)
            self.places += [list(different).index(kind)] * size
        self.different = list(different.values())
        # The same object with other weights.
        one = copy.copy(objectives[0])
        one.weight, one.annealing = self.weight, self.annealing
        self.n_draws, self.is_final, self.terms = one.n_draws, one.is_final, one.terms
        self.coupling = one.coupling

    def weight(self, progress: float):
        return self._each([one.weight(progress) for one in self.different])

    def annealing(self, progress: float):
        return self._each([one.annealing(progress) for one in self.different])

    def _each(self, values: list[float]):
        if len(set(values)) == 1:
            return values[0]
        # Mostly the last step's: a copy to the device in every step would stall it.
        if values != self.latest[0]:
            all_values = torch.tensor([values[place] for place in self.places])
            self.latest = values, all_values.to(self.device).unsqueeze(1)
        return self.latest[1]


# --------------------------------------------------------------------------- training


class Member:
    """One fit's place among the replicas of a batch."""

    def __init__(self, request: Request, replicas: slice, share: float):
        self.request, self.replicas, self.share = request, replicas, share
        self.history = History(request.n_replicas)
        self.outcome: History | Exception | None = None

    def show(self, values: list[Tensor]) -> None:
        """Give the fit's own model these parameters."""
        for parameter, own in zip(self.request.model.parameters(), values, strict=True):
            parameter.data = own

    def begin(self) -> Callable | None:
        """Begin an epoch; the function that ends it, or None if a callback failed."""
        try:
            return self.request.begin_epoch()
        except Exception as error:
            self.outcome = error
            return None

    def row(self, whole: Epoch, progress: float) -> Epoch:
        """The member's part of an epoch."""
        lists = {k: v[self.replicas] for k, v in vars(whole).items() if type(v) is list}
        own = dataclasses.replace(whole, **lists)
        own.kl_weight = self.request.objective.weight(progress)
        own.seconds *= self.share
        return own

    def end(self, run: Training, values: list[Tensor]) -> None:
        """Leave the batch with these parameters."""
        self.show([value.clone() for value in values])
        self.history.rollbacks = [list(r) for r in run.history.rollbacks[self.replicas]]
        self.history.stopped_by_patience = run.out_of_patience(self.replicas)
        self.outcome = self.history

    def follow(self, run: Training, whole: Epoch, end_epoch: Callable) -> None:
        """Take note of an epoch of the batch, which may be the member's last."""
        for replica in range(self.replicas.start, self.replicas.stop):
            if replica in run.failed:
                self.outcome = run.failed[replica]
                return
        row = self.row(whole, run.state.progress)
        self.history.epochs.append(row)
        try:
            stop = end_epoch(row) or run.out_of_patience(self.replicas)
        except Exception as error:
            self.outcome = error
            return
        if stop or len(self.history.epochs) == self.request.settings.max_epochs:
            self.end(run, run.final_values(self.replicas))


def train_together(requests: list[Request]) -> list[History | Exception]:
    """Train requests of equal :func:`key` at once, each as it would be alone.

    Returns one outcome per request: its history, or the exception that ended it.
    """
    sizes = [request.n_replicas for request in requests]
    first, models = requests[0], [request.model for request in requests]
    validation = None
    if first.validation is not None:
        validation = pooled([request.validation for request in requests], sizes)
    seeds = [seed for request in requests for seed in request.seeds]
    objective = StackedObjective(
        [request.objective for request in requests], sizes, first.data.device
    )
    data = pooled([request.data for request in requests], sizes)
    run = Training(
        stack(models), data, objective, first.inference, first.settings, seeds, None
    )
    members, start = [], 0
    for request, size in zip(requests, sizes, strict=True):
        replicas = slice(start, start + size)
        members.append(Member(request, replicas, size / sum(sizes)))
        optimizer = run.optimizer
        members[-1].show(optimizer.layout.views(optimizer.values, replicas))
        run.state.base_rates[replicas] = [request.settings.learning_rate] * size
        start += size
    if validation is not None:
        run.state.evaluation = validation
    for number in range(first.settings.max_epochs):
        present = [member for member in members if member.outcome is None]
        if not present:
            break
        ends = [member.begin() for member in present]
        row = run.advance(number, validation)
        for member, end_epoch in zip(present, ends, strict=True):
            if end_epoch is not None:
                member.follow(run, row, end_epoch)
    return [member.outcome for member in members]
