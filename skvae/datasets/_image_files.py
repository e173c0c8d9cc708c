"""From a local file or OpenML to arrays, for the image loaders."""

import hashlib
import os
import warnings
from importlib.util import find_spec

import numpy as np
from sklearn.datasets import fetch_openml, get_data_home
from sklearn.utils import Bunch

from skvae.datasets._io import read_arrays, write_arrays
from skvae.datasets._validation import check_option

N_PIXELS = 784
_N_TRAIN, _N_TEST = 60_000, 10_000
_SUBSETS = {"train": ["train"], "test": ["test"], "all": ["train", "test"]}
_DTYPES = ("float32", "float64", "uint8")
_SCALES = ("natural", "unit")
_OPENML_NAMES = {"mnist": "mnist_784", "fashion_mnist": "Fashion-MNIST"}
_SHA256 = {
    "mnist": {
        "X_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "X_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    "fashion_mnist": {
        "X_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "X_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    },
}
DESCRIPTIONS = {
    "mnist": """\
MNIST handwritten digits
------------------------
60,000 training and 10,000 test images of 28 x 28 grey levels, ink 255 on 0, ten
classes. LeCun, Bottou, Bengio, Haffner, Proceedings of the IEEE 86, 1998. Source:
OpenML, "mnist_784", version 1. The authors' files state no licence.
""",
    "fashion_mnist": """\
Fashion-MNIST articles of clothing
----------------------------------
60,000 training and 10,000 test images of 28 x 28 grey levels, ten classes. Xiao,
Rasul, Vollgraf, arXiv:1708.07747, 2017. Source: OpenML, "Fashion-MNIST", version 1.
MIT licence, Zalando SE.
""",
    "omniglot": """\
Omniglot handwritten characters
-------------------------------
1,623 characters of 50 alphabets, each drawn by 20 people, as 28 x 28 grey levels, ink
255 on 0. The training part is the background set (30 alphabets), the test part the
evaluation set (20 others). Lake, Salakhutdinov, Tenenbaum, Science 350, 2015. Source:
brendenlake/omniglot on GitHub, MIT licence.
""",
}


def load_images(name, *, data_home, subset, dtype, scale, download=None, optional=()):
    """Return the converted images, the targets and optional arrays of a data set.

    `download` holds the arguments of :func:`~sklearn.datasets.fetch_openml` if a
    missing file may be downloaded, and is None if it may not.
    """
    check_option("subset", subset, _SUBSETS)
    dtype = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    check_option("dtype", dtype, _DTYPES)
    check_option("scale", scale, _SCALES)
    if dtype == "uint8" and scale == "unit":
        raise ValueError("scale='unit' needs dtype 'float32' or 'float64'.")
    path = os.path.join(get_data_home(data_home), f"{name}.npz")
    if not os.path.exists(path):
        if download is None:
            raise OSError(_missing(name, path))
        arrays = _download(name, path, data_home, download)
    else:
        wanted = [f"{key}_{part}" for key in "Xy" for part in _SUBSETS[subset]]
        extra = [f"{key}_{part}" for key in optional for part in _SUBSETS[subset]]
        arrays = read_arrays(path, wanted, [*extra, "alphabet_names"])
        for part in _SUBSETS[subset]:
            _check_part(path, arrays[f"X_{part}"], arrays[f"y_{part}"], part)
    joined = {
        key: _join(arrays, key, _SUBSETS[subset]) for key in ("X", "y", *optional)
    }
    X = _convert(joined.pop("X"), dtype, scale)
    target = joined.pop("y").astype(np.int64)
    return X, target, {**joined, "alphabet_names": arrays.get("alphabet_names")}


def present(X, target, *, as_frame, return_X_y, **attributes):
    """Return the data as the tuple or the Bunch that scikit-learn's loaders give."""
    feature_names = [f"pixel{i}" for i in range(1, N_PIXELS + 1)]
    frame = None
    if as_frame:
        pandas = _import_pandas()
        X = pandas.DataFrame(X, columns=feature_names)
        target = pandas.Series(target, name="target")
        frame = X.assign(target=target)
    if return_X_y:
        return X, target
    return Bunch(
        data=X, target=target, feature_names=feature_names, frame=frame, **attributes
    )


def _missing(name, path):
    message = f"Data not found: there is no {path}"
    if name in _OPENML_NAMES:
        return f"{message} and `download_if_missing` is False."
    return (
        f"{message}, and {name} has no download. Write that file as described under "
        f"'Local form' in the documentation of fetch_{name}, or pass its folder as "
        "data_home."
    )


def _check_part(path, X, y, part):
    if X.dtype != np.uint8 or X.ndim != 2 or X.shape[1] != N_PIXELS:
        raise OSError(
            f"X_{part} in {path} must be uint8 of shape (n, {N_PIXELS}); it is "
            f"{X.dtype} of shape {X.shape}."
        )
    if y.dtype.kind not in "iu" or y.shape != (len(X),):
        raise OSError(
            f"y_{part} in {path} must hold {len(X)} integers; it is {y.dtype} of "
            f"shape {y.shape}."
        )


def _join(arrays, key, parts):
    found = [arrays[f"{key}_{part}"] for part in parts if f"{key}_{part}" in arrays]
    if len(found) < len(parts):
        return None
    return found[0] if len(found) == 1 else np.concatenate(found)


def _convert(X, dtype, scale):
    X = X.astype(dtype, copy=False)
    if scale == "unit":
        X /= 255.0
    return X


def _download(name, path, data_home, options):
    """Fetch all rows from OpenML and keep them in the local form."""
    fetched = fetch_openml(
        _OPENML_NAMES[name],
        version=1,
        data_home=data_home,
        as_frame=False,
        parser="pandas" if find_spec("pandas") else "liac-arff",
        **options,
    )
    if fetched.data.shape != (_N_TRAIN + _N_TEST, N_PIXELS):
        raise OSError(
            f"OpenML returned {fetched.data.shape} for {_OPENML_NAMES[name]}, not "
            f"{(_N_TRAIN + _N_TEST, N_PIXELS)}."
        )
    X, y = fetched.data.astype(np.uint8), fetched.target.astype(np.uint8)
    arrays = {
        "X_train": X[:_N_TRAIN],
        "X_test": X[_N_TRAIN:],
        "y_train": y[:_N_TRAIN],
        "y_test": y[_N_TRAIN:],
    }
    _compare_checksums(name, arrays)
    try:
        write_arrays(path, arrays)
    except OSError as error:
        warnings.warn(f"The data could not be kept as {path}: {error}", stacklevel=4)
    return arrays


def _compare_checksums(name, arrays):
    different = [
        key
        for key, expected in _SHA256[name].items()
        if hashlib.sha256(np.ascontiguousarray(arrays[key])).hexdigest() != expected
    ]
    if different:
        warnings.warn(
            f"The downloaded arrays {different} of {name} differ from the published "
            "files; results may not compare with published ones.",
            stacklevel=5,
        )


def _import_pandas():
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "as_frame=True needs pandas; install it or pass as_frame=False."
        ) from error
    return pandas
