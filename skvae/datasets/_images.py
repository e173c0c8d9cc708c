"""Loaders for 28 x 28 images: MNIST, Fashion-MNIST and Omniglot."""

from skvae.datasets._image_files import DESCRIPTIONS, load_images, present

_FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def fetch_mnist(
    *,
    data_home=None,
    subset="train",
    download_if_missing=True,
    return_X_y=False,
    as_frame=False,
    dtype="float32",
    scale="natural",
    n_retries=3,
    delay=1.0,
):
    """Load the MNIST digits from a local file or from OpenML.

    The local file `mnist.npz` in `data_home` is read if it is there; otherwise the
    data are downloaded once and written in that form.

    .. versionadded:: 0.1

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder of the local file. None takes scikit-learn's data folder.

    subset : {"train", "test", "all"}, default="train"
        The 60,000 training rows, the 10,000 test rows, or both in this order.

    download_if_missing : bool, default=True
        Download if there is no local file; otherwise raise an OSError.

    return_X_y : bool, default=False
        Return `(data, target)` instead of a Bunch.

    as_frame : bool, default=False
        Return the data as a DataFrame and the target as a Series; needs pandas.

    dtype : {"float32", "float64", "uint8"}, default="float32"
        Type of the data. The uint8 form takes a quarter of the memory.

    scale : {"natural", "unit"}, default="natural"
        Grey levels from 0 to 255, or divided by 255; the latter needs floats.

    n_retries : int, default=3
        Attempts after a failed download.

    delay : float, default=1.0
        Seconds between attempts.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch` if `return_X_y` is False
        With the attributes

        data : ndarray or DataFrame of shape (n_samples, 784)
            Images, row by row.
        target : ndarray or Series of shape (n_samples,), dtype=int64
            The digit.
        feature_names : list of str
            Names of the pixels.
        target_names : list of str
            Names of the classes.
        frame : DataFrame or None
            Data and target together, if `as_frame`.
        DESCR : str
            Description, source and licence.

    (data, target) : tuple if `return_X_y` is True
        Images and digits.

    Raises
    ------
    OSError
        If there is no local file and downloading is not allowed or fails, or if the
        file is damaged.
    ValueError
        If an option is unknown.
    ImportError
        If `as_frame` is asked without pandas.

    See Also
    --------
    fetch_fashion_mnist : The same form, harder pictures.
    fetch_omniglot : Many characters, few drawings of each.

    Notes
    -----
    *Local form.* An .npz file written by :func:`numpy.savez_compressed` with
    `X_train`, `X_test` of shape (n, 784) and dtype uint8, ink 255 on 0, and
    `y_train`, `y_test` of shape (n,) and an integer dtype. It is read with
    `allow_pickle=False` and taken as it is; downloads are compared with the
    published files by SHA-256, and a difference is a warning.

    Published likelihoods are for binarised pixels, drawn afresh or fixed once, which
    differ by about two nats; nothing is binarised here. The authors' files state no
    licence.

    References
    ----------
    .. [1] Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning
           Applied to Document Recognition", Proceedings of the IEEE 86(11), 1998,
           2278-2324.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skvae.datasets import fetch_mnist
    >>> X, y = np.zeros((3, 784), dtype=np.uint8), np.arange(3, dtype=np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = f"{folder}/mnist.npz"
    ...     np.savez_compressed(file, X_train=X, y_train=y, X_test=X, y_test=y)
    ...     digits = fetch_mnist(data_home=folder, subset="all")
    >>> digits.data.shape, digits.data.dtype.name
    ((6, 784), 'float32')
    """
    X, target, _ = load_images(
        "mnist",
        data_home=data_home,
        subset=subset,
        dtype=dtype,
        scale=scale,
        download=_openml_options(download_if_missing, n_retries, delay),
    )
    return present(
        X,
        target,
        as_frame=as_frame,
        return_X_y=return_X_y,
        target_names=[str(digit) for digit in range(10)],
        DESCR=DESCRIPTIONS["mnist"],
    )


def fetch_fashion_mnist(
    *,
    data_home=None,
    subset="train",
    download_if_missing=True,
    return_X_y=False,
    as_frame=False,
    dtype="float32",
    scale="natural",
    n_retries=3,
    delay=1.0,
):
    """Load the Fashion-MNIST articles from a local file or from OpenML.

    The local file `fashion_mnist.npz` in `data_home` is read if it is there;
    otherwise the data are downloaded once and written in that form.

    .. versionadded:: 0.1

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder of the local file. None takes scikit-learn's data folder.

    subset : {"train", "test", "all"}, default="train"
        The 60,000 training rows, the 10,000 test rows, or both in this order.

    download_if_missing : bool, default=True
        Download if there is no local file; otherwise raise an OSError.

    return_X_y : bool, default=False
        Return `(data, target)` instead of a Bunch.

    as_frame : bool, default=False
        Return the data as a DataFrame and the target as a Series; needs pandas.

    dtype : {"float32", "float64", "uint8"}, default="float32"
        Type of the data. The uint8 form takes a quarter of the memory.

    scale : {"natural", "unit"}, default="natural"
        Grey levels from 0 to 255, or divided by 255; the latter needs floats.

    n_retries : int, default=3
        Attempts after a failed download.

    delay : float, default=1.0
        Seconds between attempts.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch` if `return_X_y` is False
        With the attributes

        data : ndarray or DataFrame of shape (n_samples, 784)
            Images, row by row.
        target : ndarray or Series of shape (n_samples,), dtype=int64
            The class, from 0 to 9.
        feature_names : list of str
            Names of the pixels.
        target_names : list of str
            Names of the classes.
        frame : DataFrame or None
            Data and target together, if `as_frame`.
        DESCR : str
            Description, source and licence.

    (data, target) : tuple if `return_X_y` is True
        Images and classes.

    Raises
    ------
    OSError
        If there is no local file and downloading is not allowed or fails, or if the
        file is damaged.
    ValueError
        If an option is unknown.
    ImportError
        If `as_frame` is asked without pandas.

    See Also
    --------
    fetch_mnist : The same form, easier pictures.
    fetch_omniglot : Many characters, few drawings of each.

    Notes
    -----
    *Local form.* An .npz file written by :func:`numpy.savez_compressed` with
    `X_train`, `X_test` of shape (n, 784) and dtype uint8, background 0, and
    `y_train`, `y_test` of shape (n,) and an integer dtype. It is read with
    `allow_pickle=False` and taken as it is; downloads are compared with the
    published files by SHA-256, and a difference is a warning.

    Likelihoods of binarised pixels and of grey levels do not compare; nothing is
    binarised here. MIT licence, Zalando SE.

    References
    ----------
    .. [1] H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
           Benchmarking Machine Learning Algorithms", 2017, arXiv:1708.07747.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skvae.datasets import fetch_fashion_mnist
    >>> X, y = np.zeros((3, 784), dtype=np.uint8), np.arange(3, dtype=np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = f"{folder}/fashion_mnist.npz"
    ...     np.savez_compressed(file, X_train=X, y_train=y, X_test=X, y_test=y)
    ...     articles = fetch_fashion_mnist(data_home=folder, subset="all")
    >>> articles.data.shape, articles.data.dtype.name
    ((6, 784), 'float32')
    """
    X, target, _ = load_images(
        "fashion_mnist",
        data_home=data_home,
        subset=subset,
        dtype=dtype,
        scale=scale,
        download=_openml_options(download_if_missing, n_retries, delay),
    )
    return present(
        X,
        target,
        as_frame=as_frame,
        return_X_y=return_X_y,
        target_names=list(_FASHION_CLASSES),
        DESCR=DESCRIPTIONS["fashion_mnist"],
    )


def fetch_omniglot(
    *,
    data_home=None,
    subset="train",
    download_if_missing=True,
    return_X_y=False,
    as_frame=False,
    dtype="float32",
    scale="natural",
):
    """Load the Omniglot characters from a local file.

    The file `omniglot.npz` in `data_home` is read; there is no download.

    .. versionadded:: 0.1

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder of the local file. None takes scikit-learn's data folder.

    subset : {"train", "test", "all"}, default="train"
        The background set (30 alphabets), the evaluation set (20 others), or both
        in this order.

    download_if_missing : bool, default=True
        Ignored, present for API consistency: a missing file is an OSError.

    return_X_y : bool, default=False
        Return `(data, target)` instead of a Bunch.

    as_frame : bool, default=False
        Return the data as a DataFrame and the target as a Series; needs pandas.

    dtype : {"float32", "float64", "uint8"}, default="float32"
        Type of the data. The uint8 form takes a quarter of the memory.

    scale : {"natural", "unit"}, default="natural"
        Grey levels from 0 to 255, or divided by 255; the latter needs floats.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch` if `return_X_y` is False
        With the attributes

        data : ndarray or DataFrame of shape (n_samples, 784)
            Images, row by row.
        target : ndarray or Series of shape (n_samples,), dtype=int64
            The character, numbered over all alphabets.
        alphabet : ndarray of shape (n_samples,) or None
            The alphabet, if the file tells.
        drawer : ndarray of shape (n_samples,) or None
            Which of the character's 20 drawings, if the file tells.
        alphabet_names : ndarray of str or None
            Names of the alphabets, if the file tells.
        feature_names : list of str
            Names of the pixels.
        frame : DataFrame or None
            Data and target together, if `as_frame`.
        DESCR : str
            Description, source and licence.

    (data, target) : tuple if `return_X_y` is True
        Images and characters.

    Raises
    ------
    OSError
        If the file is missing or damaged.
    ValueError
        If an option is unknown.
    ImportError
        If `as_frame` is asked without pandas.

    See Also
    --------
    fetch_mnist : Ten classes, many images of each.

    Notes
    -----
    *Local form.* An .npz file written by :func:`numpy.savez_compressed` with
    `X_train`, `X_test` of shape (n, 784) and dtype uint8, ink 255 on 0, and
    `y_train`, `y_test` of shape (n,) and an integer dtype; optionally
    `alphabet_train`, `alphabet_test`, `drawer_train`, `drawer_test` and
    `alphabet_names`. It is read with `allow_pickle=False` and taken as it is.

    Characters and alphabets of the two parts are disjoint. Published likelihoods use
    another split and another reduction to 28 x 28 pixels (24,345 and 8,070 binarised
    images) and do not compare with those of the original two sets. MIT licence.

    References
    ----------
    .. [1] B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, "Human-level concept
           learning through probabilistic program induction", Science 350, 2015,
           1332-1338.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skvae.datasets import fetch_omniglot
    >>> X, y = np.full((3, 784), 255, dtype=np.uint8), np.arange(3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = f"{folder}/omniglot.npz"
    ...     np.savez_compressed(file, X_train=X, y_train=y, X_test=X, y_test=y)
    ...     characters = fetch_omniglot(data_home=folder, scale="unit")
    >>> characters.data.shape, float(characters.data.max())
    ((3, 784), 1.0)
    """
    X, target, extra = load_images(
        "omniglot",
        data_home=data_home,
        subset=subset,
        dtype=dtype,
        scale=scale,
        optional=("alphabet", "drawer"),
    )
    return present(
        X,
        target,
        as_frame=as_frame,
        return_X_y=return_X_y,
        DESCR=DESCRIPTIONS["omniglot"],
        **extra,
    )


def _openml_options(download_if_missing, n_retries, delay):
    if not download_if_missing:
        return None
    return {"n_retries": n_retries, "delay": delay}
