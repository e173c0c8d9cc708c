"""Fitted estimators in one file of JSON and safetensors.

Nothing in the file is executed on loading: parameters and fitted attributes are JSON
in the header, tensors and arrays are raw numbers.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.pipeline import Pipeline

from skvae import __version__
from skvae._random import Seeds
from skvae._spec import Specification
from skvae._validation import check_is_fitted
from skvae.estimators import all_estimators, sequence_estimators
from skvae.estimators._auxiliary import AuxiliaryEncoder
from skvae.estimators._fitting import rebuild_model
from skvae.inference import INFERENCES
from skvae.likelihoods import LIKELIHOODS
from skvae.networks import DECODERS, ENCODERS, FLOWS
from skvae.objectives import OBJECTIVES
from skvae.posteriors import POSTERIORS
from skvae.priors import PRIORS
from skvae.text import Tokenizer

__all__ = ["load", "save"]

FORMAT_VERSION = 1
# Attributes that are written in a way of their own.
_APART = {"module_": "tensors", "_metadata_request": "requests"}
_FAMILIES = (
    ENCODERS,
    DECODERS,
    FLOWS,
    LIKELIHOODS,
    PRIORS,
    POSTERIORS,
    INFERENCES,
    OBJECTIVES,
)
_SPECIFICATIONS = {cls.__name__: cls for family in _FAMILIES for cls in family.values()}
_SAVED = [*all_estimators(), *sequence_estimators(), Tokenizer]
_ESTIMATORS = {cls.__name__: cls for cls in _SAVED}


def save(estimator, path):
    """Write a fitted estimator to one file.

    Parameters
    ----------
    estimator : estimator of skvae, or Pipeline of such
        Fitted estimator made of skvae's own parts, or a pipeline of such, as a
        :class:`~skvae.Tokenizer` with a sequence model behind it is.
    path : str or path-like
        File to write, by convention with suffix ``.skvae``.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If the estimator, a step or a part is not skvae's, or a parameter is a live
        object such as a RandomState.
    ValueError
        If parameters were changed after fit so that they no longer describe the
        fitted network.

    See Also
    --------
    load : Reads the file.

    Notes
    -----
    Callbacks are not kept. `pickle` and `joblib` work as well, and keep everything.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAE, load, save
    >>> X = load_iris().data
    >>> vae = VAE(n_components=1, width=64, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "iris.skvae")
    ...     save(vae, path)
    ...     again = load(path)
    >>> bool((again.transform(X) == vae.transform(X)).all())
    True
    """
    tensors = {}
    content = _content(estimator, "", tensors)
    header = {
        "format": "skvae",
        "format_version": str(FORMAT_VERSION),
        "skvae_version": __version__,
        "content": json.dumps(content),
    }
    save_file(tensors, path, metadata=header)


def _content(estimator, place, tensors):
    """What `estimator` is in JSON; its numbers go to `tensors` under `place`."""
    name = type(estimator).__name__
    if type(estimator) is Pipeline:
        options = estimator.get_params(deep=False)
        steps = options.pop("steps")
        return {
            "pipeline": {k: _encode(v, k, tensors) for k, v in options.items()},
            "steps": [[s, _content(e, f"{place}{s}/", tensors)] for s, e in steps],
        }
    if _ESTIMATORS.get(name) is not type(estimator):
        raise TypeError(
            f"save writes the estimators {sorted(_ESTIMATORS)} and pipelines of them. "
            f"Got {name}; use joblib.dump for other steps and classes of your own."
        )
    check_is_fitted(estimator)
    parameters = estimator.get_params(deep=False)
    attributes = {
        k: v
        for k, v in vars(estimator).items()
        if k not in parameters | _APART.keys() and "callback" not in k
    }
    content = {
        "estimator": name,
        "parameters": {
            k: _encode(v, place + k, tensors) for k, v in parameters.items()
        },
        "attributes": {
            k: _encode(v, place + k, tensors) for k, v in attributes.items()
        },
        "requests": _requests(estimator),
    }
    if hasattr(estimator, "module_"):
        state = estimator.module_.state_dict()
        if _outline(estimator.module_) != _outline(rebuild_model(estimator, state)):
            raise ValueError(
                f"The parameters of this {name} were changed after fit and no longer "
                "describe its network. Set them back, or fit again, before saving."
            )
        tensors.update({f"{place}module/{k}": v.contiguous() for k, v in state.items()})
    return content


def load(path):
    """Read an estimator written by :func:`save`.

    Parameters
    ----------
    path : str or path-like
        File to read.

    Returns
    -------
    estimator : estimator of skvae, or Pipeline
        Fitted, with its networks on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not skvae's, is damaged, or was written in a later format.

    See Also
    --------
    save : Writes the file.

    Examples
    --------
    >>> from skvae import load
    >>> load("nothing.skvae")
    Traceback (most recent call last):
    ...
    FileNotFoundError: No such file or directory: nothing.skvae
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a file of skvae.save: it is damaged, or something else "
            f"({error}). Pickles are read by joblib.load."
        ) from error
    if header.get("format") != "skvae":
        raise ValueError(
            f"{path} holds tensors, but was not written by skvae.save: it says "
            f"format={header.get('format')!r}."
        )
    if int(header["format_version"]) > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written in format {header['format_version']} by skvae "
            f"{header['skvae_version']}; this is skvae {__version__}, which reads "
            f"formats up to {FORMAT_VERSION}. Update skvae."
        )
    content = json.loads(header["content"])
    unknown = _names(content) - _ESTIMATORS.keys()
    if unknown:
        raise ValueError(
            f"{path} holds an estimator unknown to this skvae: {unknown.pop()!r}."
        )
    if header["skvae_version"] != __version__:
        warnings.warn(
            InconsistentVersionWarning(
                estimator_name="/".join(sorted(_names(content))),
                current_sklearn_version=__version__,
                original_sklearn_version=header["skvae_version"],
            ),
            stacklevel=2,
        )
    return _estimator(content, "", tensors)


def _names(content):
    """The classes that a file holds."""
    if "steps" in content:
        return set().union(*(_names(step) for _, step in content["steps"]))
    return {content["estimator"]}


def _estimator(content, place, tensors):
    """Inverse of :func:`_content`."""
    if "steps" in content:
        steps = [
            (s, _estimator(c, f"{place}{s}/", tensors)) for s, c in content["steps"]
        ]
        options = content["pipeline"].items()
        return Pipeline(steps, **{k: _decode(v, tensors) for k, v in options})
    parameters = {k: _decode(v, tensors) for k, v in content["parameters"].items()}
    estimator = _ESTIMATORS[content["estimator"]](**parameters)
    for key, value in content["attributes"].items():
        setattr(estimator, key, _decode(value, tensors))
    _set_requests(estimator, content.get("requests"))
    prefix = f"{place}module/"
    state = {
        k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
    }
    if state:
        estimator.module_ = rebuild_model(estimator, state)
        estimator.module_.load_state_dict(state)
    return estimator


def _outline(module):
    """What a module is besides its numbers: shapes, types and plain options."""
    plain = (bool, int, float, str, Specification)
    options = [
        (
            type(part),
            {
                name: repr(value)
                for name, value in vars(part).items()
                if isinstance(value, plain) and name != "training"
            },
        )
        for part in module.modules()
    ]
    return {k: v.shape for k, v in module.state_dict().items()}, options


def _requests(estimator):
    """Metadata requests set by the user, ``{method: {parameter: alias}}``, or None."""
    request = vars(estimator).get("_metadata_request")
    if request is None:
        return None
    methods = vars(request).items()
    return {m: r.requests for m, r in methods if hasattr(r, "requests")}


def _set_requests(estimator, requests):
    if requests:
        request = estimator._get_metadata_request()
        for method, values in requests.items():
            for parameter, alias in values.items():
                getattr(request, method).add_request(param=parameter, alias=alias)
        estimator._metadata_request = request


def _encode(value, name, tensors):
    """JSON for a value; tensors and numeric arrays go to `tensors` under a key."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item(), name, tensors)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return _encode_array(value, name, tensors)
    if isinstance(value, Seeds):
        return {"seeds": list(value)}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        items = enumerate(value)
        return {kind: [_encode(v, f"{name}.{i}", tensors) for i, v in items]}
    if isinstance(value, dict):
        items = value.items()
        return {"dict": {k: _encode(v, f"{name}.{k}", tensors) for k, v in items}}
    if isinstance(value, AuxiliaryEncoder):
        return {"auxiliary": _encode(vars(value), name, tensors)["dict"]}
    kind = type(value).__name__
    if isinstance(value, Specification) and _SPECIFICATIONS.get(kind) is type(value):
        parameters = value.get_params(deep=False)
        return {"specification": kind, **_encode(parameters, name, tensors)}
    name = name.rpartition("/")[2].split(".")[0]
    raise TypeError(
        f"save cannot write {name}={value!r}: {kind} is neither a plain "
        "value nor one of skvae's own parts. Use an int for random_state, or "
        "joblib.dump."
    )


def _encode_array(value, name, tensors):
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        return {"strings": [str(item) for item in value], "kind": value.dtype.kind}
    key = f"attribute/{name}"
    if isinstance(value, torch.Tensor):
        tensors[key] = value.detach().clone()
        return {"tensor": key}
    tensors[key] = torch.tensor(value)
    return {"array": key}


def _decode(value, tensors):
    """Inverse of :func:`_encode`."""
    if not isinstance(value, dict):
        return value
    if "specification" in value:
        return _SPECIFICATIONS[value["specification"]](**_decode_dict(value, tensors))
    if "dict" in value:
        return _decode_dict(value, tensors)
    if "auxiliary" in value:
        return AuxiliaryEncoder(**_decode_dict(value, tensors, "auxiliary"))
    if "strings" in value:
        dtype = object if value["kind"] == "O" else str
        return np.array(value["strings"], dtype=dtype)
    if "seeds" in value:
        return Seeds(*value["seeds"])
    if "list" in value:
        return [_decode(item, tensors) for item in value["list"]]
    if "tuple" in value:
        return tuple(_decode(item, tensors) for item in value["tuple"])
    if "array" in value:
        return tensors[value["array"]].numpy()
    return tensors[value["tensor"]]


def _decode_dict(value, tensors, key="dict"):
    return {k: _decode(v, tensors) for k, v in value[key].items()}
