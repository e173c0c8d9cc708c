"""From arrays to a trained model and back: the steps of `fit` that need tensors."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from skvae._batches import Data, chunks
from skvae._model import Frame, LatentVariableModel, Parts
from skvae._random import (
    Seeds,
    Streams,
    generator,
    permutations,
    weight_generators,
)
from skvae._training import evaluated
from skvae._validation import warn
from skvae.metrics import match_components

# Rows on which components are ranked and replicas compared.
# Larger arrays in double precision are not converted as a whole.
CONVERTED_BYTES = 1 << 26
SUMMARY_ROWS = 10_000
MIXTURE_ROWS = 200
# Rows from which a decoder takes the directions of the data.
ALIGNMENT_ROWS = 2000
# Steps of the power iteration at most, the growth at which it has settled, and the
# numbers of the data it takes at a time.
POWER_STEPS, POWER_TOLERANCE, POWER_ELEMENTS = 100, 1e-5, 1 << 18


class Specifications(NamedTuple):
    """The parts an estimator is made of."""

    encoder: object
    decoder: object
    prior: object
    likelihood: object
    posterior: object
    inference: object
    objective: object


class Auxiliary(NamedTuple):
    """Shape of the auxiliary variable: its columns, and whether it is one-hot."""

    n_columns: int = 0
    discrete: bool = True


@contextmanager
def unchanged_on_error(estimator):
    """Give the estimator its attributes back if the block raises."""
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        # What scikit-learn's callback teardown still needs stays.
        kept = {k: v for k, v in estimator.__dict__.items() if "callback" in k}
        estimator.__dict__.clear()
        estimator.__dict__.update({**before, **kept})
        raise


def resolve_device(device):
    """The torch device for a constructor's `device`; ValueError if it is missing."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    remedy = "Use device='auto' or device='cpu'."
    try:
        found = torch.device(device)
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"device={device!r} was asked for, but torch sees no CUDA device. "
                + remedy
            )
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={device!r} cannot be used. {remedy}") from error
    return found


class Lent:
    """Memory of an array offered as writable, though the array may be read-only.

    There are no read-only tensors, and making one of a read-only array warns. Training
    writes into no tensor of its data.
    """

    def __init__(self, array):
        self.array = array
        address = array.ctypes.data, False
        self.__array_interface__ = {**array.__array_interface__, "data": address}


def as_tensor(array, dtype, device):
    """A tensor of this dtype on the device, over the array's own memory if it fits."""
    array = np.require(array, requirements=["ALIGNED"])
    return torch.from_numpy(np.asarray(Lent(array))).to(device=device, dtype=dtype)


def fits(X, dtype, device):
    """Whether X may rest on the device: in at most half of what is free there."""
    if torch.device(device).type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return X.size * dtype.itemsize <= 0.5 * free


def to_data(X, U, weight, device):
    """Contiguous tensors on the device: floats in single precision, uint8 as is.

    On the CPU nothing is copied that has this form: maps of files stay files. X stays
    there where it would take most of a GPU's memory. Large X in double precision is
    converted a batch at a time.
    """
    dtype = torch.uint8 if X.dtype == np.uint8 else torch.float32
    place = device if fits(X, dtype, device) else "cpu"
    if X.nbytes > CONVERTED_BYTES and torch.device(place).type == "cpu":
        dtype = None
    x = as_tensor(X, dtype, place)
    u = None if U is None else as_tensor(U, torch.float32, device)
    return Data(x, u, as_tensor(weight, torch.float32, device))


def build_model(specifications, n_latents, n_features, auxiliary, seeds):
    """An untrained model with one replica per seed."""
    generators = weight_generators(seeds)
    n_replicas = len(seeds)
    likelihood = specifications.likelihood.build(n_features, n_replicas)
    posterior = specifications.posterior.build()
    n_outputs = likelihood.n_outputs(n_features)
    n_inputs = posterior.n_inputs(n_features, auxiliary.n_columns)
    encoder, decoder = specifications.encoder, specifications.decoder
    if getattr(encoder, "of_decoder", False):
        decoder = decoder.build(n_latents, n_outputs, generators)
        encoder = encoder.build(decoder, n_inputs, likelihood, posterior, n_replicas)
    else:
        encoder = encoder.build(n_inputs, posterior.n_outputs(n_latents), generators)
        # An invertible encoder is its own decoder.
        decoder = (
            encoder.inverted()
            if decoder is None
            else decoder.build(n_latents, n_outputs, generators)
        )
    parts = Parts(
        encoder=encoder,
        decoder=decoder,
        prior=specifications.prior.build(
            n_latents, auxiliary.n_columns, auxiliary.discrete, generators
        ),
        likelihood=likelihood,
        posterior=posterior,
    )
    frame = Frame(n_features, n_outputs)
    return LatentVariableModel(parts, frame, n_latents, n_replicas)


def rebuild_model(estimator, state):
    """An untrained model of the shapes that a fitted estimator's `state` has."""
    auxiliary = estimator._auxiliary_shape()
    parts = estimator._parts(conditional=auxiliary.n_columns > 0)
    model = build_model(
        parts,
        estimator._n_features_out,
        estimator.n_features_in_,
        auxiliary,
        [Seeds(0, 0, 0)],
    )
    if model.prior.needs_u:
        grid = state["prior.grid"][0]
        model.prior.set_mixture(grid, state["prior.grid_log_weights"][0])
    return model.requires_grad_(False)


def prepare(model, data, auxiliary):
    """Set what an untrained model takes from the data rather than from training."""
    model.frame.set_from(model.likelihood, data.x, data.weight)
    if hasattr(model.decoder, "align"):
        rows = subset(data, ALIGNMENT_ROWS).gathered()
        x, weight = rows.x.double(), rows.weight.double()
        if hasattr(model.decoder, "notice"):
            mean = (weight / weight.sum()) @ x
            model.decoder.notice(model.likelihood.information(mean))
        model.decoder.align(model.likelihood.features(x), weight)
    if getattr(model.prior, "from_codes", False):
        rows = subset(data, ALIGNMENT_ROWS).gathered()
        with torch.no_grad():
            codes = model.posterior(rows.x.to(rows.weight).unsqueeze(0)).loc
        model.prior.place(codes, rows.weight)
    if not model.prior.needs_u:
        return
    if auxiliary.discrete:
        counts = data.weight @ data.u
        seen = counts > 0
        grid = torch.eye(auxiliary.n_columns, device=data.device)[seen]
        log_weights = torch.log(counts[seen] / counts.sum())
    else:
        rows = spread(data.x.shape[0], MIXTURE_ROWS)
        grid = data.u[rows]
        log_weights = torch.log(data.weight[rows] / data.weight[rows].sum())
    model.prior.set_mixture(grid, log_weights.to(grid))


def spread(n, limit):
    """Up to `limit` evenly spaced row numbers of n."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).astype(int))


def subset(data, limit=SUMMARY_ROWS):
    """Evenly spaced rows of the data."""
    rows = torch.as_tensor(spread(data.n_rows, limit), device=data.device)
    return data._replace(rows=rows if data.rows is None else data.rows[rows])


def split(data, fraction, seed):
    """Random training and validation parts."""
    n = data.n_rows
    n_validation = min(max(1, round(fraction * n)), n - 1)
    rows = permutations([generator(seed)], [n])[0].to(data.device)
    return (
        data._replace(rows=rows[n_validation:]),
        data._replace(rows=rows[:n_validation]),
    )


def largest_variance(data):
    """Largest eigenvalue of the covariance of evenly spaced rows: power iteration."""
    rows = subset(data)
    size = max(1, POWER_ELEMENTS // data.x.shape[1])

    def total(function):
        return sum(function(x[0].double()) for x, _, _ in chunks(rows, size))

    mean = total(lambda x: x.sum(0)) / rows.n_rows
    start = torch.randn(len(mean), generator=generator(0), dtype=torch.float64)
    direction, value = start.to(mean.device), 0.0
    for _ in range(POWER_STEPS):
        direction = direction / torch.linalg.vector_norm(direction)
        direction = total(lambda x, v=direction: (x - mean).T @ ((x - mean) @ v))
        previous, value = value, float(torch.linalg.vector_norm(direction))
        if value - previous <= POWER_TOLERANCE * value:
            break
    return value / rows.n_rows


def drawn(model, data):
    """The data as training sees them, drawn once where it draws binary features."""
    likelihood = getattr(model, "likelihood", None)
    if not getattr(likelihood, "resample", False):
        return data
    data = data.gathered()
    stream = generator(0, data.x.device)
    return data._replace(x=torch.bernoulli(data.x.float(), generator=stream))


@torch.no_grad()
def summarise(model, inference, data, seeds):
    """Posterior means ``(R, n, d)`` and weighted mean KL per component ``(R, d)``."""
    means, total = [], 0.0
    for x, u, weight, noise in evaluated(model, data, seeds):
        q = inference.posterior(model, x, u)
        kl = model.prior.kl_per_dimension(q, q.sample(noise), u)
        total = total + (kl * weight.unsqueeze(-1)).sum(1)
        means.append(q.loc.cpu())
    total = total / data.total_weight()
    return torch.cat(means, dim=1).numpy(), total.cpu().numpy().astype(np.float64)


def restart_consistency(means, best, order):
    """Mean matched correlation of each component with the other restarts' ones."""
    reference = means[best][:, order]
    others = [m for replica, m in enumerate(means) if replica != best]
    return np.mean([match_components(reference, m)[1] for m in others], axis=0)


def history_columns(history, replica):
    """The history of one replica as a dict of equally long lists."""
    rows = history.epochs
    columns = {
        "epoch": list(range(1, len(rows) + 1)),
        "loss": [row.loss[replica] for row in rows],
        "log_likelihood": [row.log_likelihood[replica] for row in rows],
        "kl": [row.kl[replica] for row in rows],
        "bound": [row.log_likelihood[replica] - row.kl[replica] for row in rows],
        "kl_weight": [row.kl_weight for row in rows],
        "gradient_norm": [row.gradient_norm[replica] for row in rows],
        "learning_rate": [row.learning_rate[replica] for row in rows],
        "seconds": [row.seconds for row in rows],
    }
    if rows and rows[0].validation_bound is not None:
        columns["validation_bound"] = [row.validation_bound[replica] for row in rows]
    return columns


def stream_state(streams):
    """Positions of the random streams, for a later :func:`resume_streams`."""
    return [[g.get_state() for g in family] for family in streams]


def resume_streams(state, device):
    """Streams that continue where :func:`stream_state` was taken."""
    shuffle, noise = state
    resumed = Streams([], [])
    for family, saved, place in (
        (resumed.shuffle, shuffle, "cpu"),
        (resumed.noise, noise, device),
    ):
        for position in saved:
            family.append(torch.Generator(device=place))
            family[-1].set_state(position)
    return resumed


def draw_seeds(rng, n_replicas):
    """Score seed and one :class:`Seeds` per replica; the first do not depend on R."""
    score_seed = int(rng.randint(2**31 - 1))
    table = rng.randint(2**31 - 1, size=(n_replicas, 3))
    return score_seed, [Seeds(*map(int, row)) for row in table]


def lifted(estimator, dtype):
    """The fitted model in the precision of `dtype` on the estimator's device.

    Itself where it rests, else a copy. Warns and takes the CPU if the device is
    missing.
    """
    try:
        device = resolve_device(estimator.device)
    except ValueError as error:
        warn(f"{error} The CPU is used.")
        device = torch.device("cpu")
    if dtype != np.float64 and device.type == "cpu":
        return estimator.module_
    precision = torch.float64 if dtype == np.float64 else torch.float32
    return copy.deepcopy(estimator.module_).to(device=device, dtype=precision)
