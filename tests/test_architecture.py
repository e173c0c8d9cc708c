"""The architecture, held in place by reading the source.

Every rule is a function from modules to complaints. Two tests go with each: one runs
it on the package and must find nothing, one runs it on a module written to break it.
"""

import ast
import functools
import importlib
import inspect
import os
import subprocess
import sys
import textwrap
import types
from collections import defaultdict
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import pytest
from numpydoc.validate import validate

ROOT = Path(__file__).parents[1]

# Imports point strictly downwards. Two packages have two layers: public modules of
# `estimators` are at 4 and its underscore modules at 3, those of `networks` at 1 and
# 0.5. `metrics` and `datasets` stand beside.
LAYERS = {
    "__main__": 8,
    "callbacks": 5,
    "cli": 7,
    "diagnostics": 5,
    "displays": 5,
    "model_selection": 5,
    "persistence": 5,
    "reproductions": 6,
    "_training": 2,
    "inference": 2,
    "objectives": 2,
    "_batches": 1,
    "_model": 1,
    "_replay": 1,
    "likelihoods": 1,
    "networks": 1,
    "posteriors": 1,
    "priors": 1,
    "_collapse": 0,
    "_distributed": 0,
    "_gaussian": 0,
    "_memory": 0,
    "_optimizer": 0,
    "_products": 0,
    "_random": 0,
    "_spec": 0,
    "_tokens": 0,
    "_unmixing": 0,
    "_validation": 0,
}
BESIDE = {"metrics", "datasets", "probes", "text"}
# Arrays only, so that what stands above torch can share it with what knows no torch.
WITHOUT_TORCH = {"_collapse", "_tokens", "_validation"}
FAMILIES = {
    "inference",
    "likelihoods",
    "networks",
    "objectives",
    "posteriors",
    "priors",
}
OPTIONAL = {"matplotlib", "pandas", "polars", "pyarrow", "rich"}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


# Reading the source


def top_of(name):
    """The first name below the package: "networks" of skvae.networks.mlp."""
    return name.split(".")[1] if "." in name else ""


@dataclass(frozen=True)
class Module:
    """A parsed module; `name` is the dotted one, a package's without __init__."""

    name: str
    text: str

    @functools.cached_property
    def tree(self):
        return ast.parse(self.text, filename=self.name)

    @property
    def top(self):
        return top_of(self.name)

    @property
    def aliases(self):
        """What each imported name stands for, wherever it was imported."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root = alias.name.split(".")[0]
                    found[alias.asname or root] = alias.name if alias.asname else root
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    found[alias.asname or alias.name] = full
        return found


@dataclass(frozen=True)
class Import:
    """One imported name: ``from module import name`` or ``import module``."""

    line: int
    module: str
    name: str = ""
    relative: bool = False
    deferred: bool = False


def dotted_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def package():
    files = sorted((ROOT / "skvae").rglob("*.py"))
    return tuple(Module(dotted_name(path), path.read_text("utf-8")) for path in files)


def imports(module):
    """Every import; `deferred` if it does not run when the module is imported."""
    found = []

    def visit(node, deferred):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Import(node.lineno, alias.name, deferred=deferred))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found.append(
                    Import(
                        node.lineno,
                        node.module or "",
                        alias.name,
                        node.level > 0,
                        deferred,
                    )
                )
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(
            node.test
        )
        for child in ast.iter_child_nodes(node):
            visit(child, deferred or inside or typing_only)

    visit(module.tree, False)
    return found


def dotted(node, aliases):
    """The full name of ``np.random.seed`` and the like, "" for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in aliases:
        return ""
    return ".".join([aliases[node.id], *reversed(parts)])


def functions(module):
    return [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def report(complaints):
    return "\n  " + "\n  ".join(complaints)


# Imports


def layer_of(name):
    parts = name.split(".")
    if parts == ["skvae"]:
        return 5
    if parts[1] == "estimators":
        return 3 if len(parts) > 2 and parts[2].startswith("_") else 4
    if parts[1] == "networks" and is_private(name):
        return 0.5
    return LAYERS.get(parts[1])


def place(name):
    beside = top_of(name) in BESIDE
    return "beside the layers" if beside else f"in layer {layer_of(name)}"


def is_private(name):
    return any(part.startswith("_") for part in name.split("."))


def within_package(importer, imported):
    """Say whether `importer` may import `imported` as a module of its own package."""
    folder = ".".join(importer.split(".")[:2])
    if not imported.startswith(f"{folder}."):
        return False
    if top_of(importer) in BESIDE | {"cli"} or importer == folder:
        return True
    return is_private(imported)


def may_import(importer, imported):
    top, target = top_of(importer), top_of(imported)
    if importer == "skvae" or within_package(importer, imported):
        return True
    if top in {"cli", "__main__"}:
        return not is_private(imported)
    if imported == "skvae":
        return False
    if top in BESIDE:
        return target in WITHOUT_TORCH
    if target in BESIDE:
        return layer_of(importer) >= 3
    if importer == "skvae._model" and layer_of(imported) == 1:
        return True
    return layer_of(imported) < layer_of(importer)


def resolve(found, known):
    """The module that an import runs: ``from a import b`` may name either."""
    full = f"{found.module}.{found.name}"
    return full if full in known else found.module


def takes_private(found, imported):
    return found.name.startswith("_") and top_of(imported) != "cli"


def layer_complaints(modules, known=None):
    known = known or {module.name for module in modules}
    for module in modules:
        placed = module.top in BESIDE or layer_of(module.name) is not None
        if not placed:
            yield f"{module.name} stands in no layer: give it one in LAYERS"
            continue
        for found in imports(module):
            if found.module.split(".")[0] != "skvae" or found.relative:
                continue
            if (found.module, found.name) == ("skvae", "__version__"):
                continue
            imported = resolve(found, known)
            where = f"{module.name}:{found.line}"
            if top_of(imported) not in BESIDE and layer_of(imported) is None:
                yield f"{where} imports {imported}, which stands in no layer"
            elif not may_import(module.name, imported):
                yield (
                    f"{where} imports {imported}: a module {place(module.name)} may "
                    f"not import one {place(imported)}"
                )
            elif module.top in {"cli", "__main__"} and takes_private(found, imported):
                yield f"{where} imports the private {found.module}.{found.name}"


def cycle_complaints(modules):
    known = {module.name for module in modules}
    graph = {
        module.name: {
            resolve(found, known)
            for found in imports(module)
            if found.module.startswith("skvae.") and not found.deferred
        }
        & known
        for module in modules
    }
    done = set()

    def visit(name, path):
        if name in path:
            yield "imports in a circle: " + " -> ".join([*path, name])
        elif name not in done:
            for target in sorted(graph[name]):
                yield from visit(target, [*path, name])
            done.add(name)

    for name in graph:
        yield from visit(name, [])


def outside_names(module):
    """The libraries that a module must not import, with the reason."""
    layer = None if module.top in BESIDE else layer_of(module.name)
    below = layer is not None and layer <= 2
    if below and module.top not in WITHOUT_TORCH | {"_random"}:
        yield from [(name, "arrays stay above layer 2") for name in ("numpy", "scipy")]
    if below and module.top not in WITHOUT_TORCH | {"_random", "_spec"}:
        yield "sklearn", "scikit-learn enters below layer 3 through _spec only"
    if module.top in BESIDE | WITHOUT_TORCH:
        yield "torch", "this part works without torch"
    if module.top in {"cli", "__main__"}:
        yield "torch", "the command line uses the public interface only"


def library_complaints(modules):
    for module in modules:
        forbidden = dict(outside_names(module))
        for found in imports(module):
            library = found.module.split(".")[0]
            if library in forbidden:
                where = f"{module.name}:{found.line}"
                yield f"{where} imports {library}: {forbidden[library]}"


def relative_complaints(modules):
    for module in modules:
        for found in imports(module):
            if found.relative:
                yield f"{module.name}:{found.line} imports relatively"


def optional_complaints(modules):
    for module in modules:
        for found in imports(module):
            library = found.module.split(".")[0]
            if library in OPTIONAL and not found.deferred:
                where = f"{module.name}:{found.line}"
                yield f"{where} imports {library} outside a function"


# Sizes


def file_complaints(modules):
    for module in modules:
        n_lines = len(module.text.splitlines())
        if n_lines > MAX_FILE_LINES:
            yield f"{module.name} has {n_lines} lines, more than {MAX_FILE_LINES}"


def function_complaints(modules):
    for module in modules:
        for node in functions(module):
            if node.name == "__init__" and module.top == "estimators":
                continue  # one line per parameter, stored and nothing else
            n_lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                n_lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if n_lines > MAX_FUNCTION_LINES:
                yield (
                    f"{module.name}:{node.lineno} {node.name} has {n_lines} lines "
                    f"without its docstring, more than {MAX_FUNCTION_LINES}"
                )


# Global state

GLOBAL_STATE = {
    "os.putenv",
    "os.environ.pop",
    "os.environ.setdefault",
    "os.environ.update",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.dropout",
    "torch.manual_seed",
    "torch.nn.Dropout",
    "torch.nn.functional.dropout",
    "torch.nn.functional.gumbel_softmax",
    "torch.random.manual_seed",
    "torch.random.seed",
    "torch.seed",
    "torch.set_default_device",
    "torch.set_default_dtype",
    "torch.set_default_tensor_type",
    "torch.set_deterministic_debug_mode",
    "torch.set_float32_matmul_precision",
    "torch.set_num_interop_threads",
    "torch.set_num_threads",
    "torch.set_rng_state",
    "torch.use_deterministic_algorithms",
}
OWN_STREAMS = {
    "numpy.random": {
        "BitGenerator",
        "Generator",
        "PCG64",
        "Philox",
        "RandomState",
        "SeedSequence",
        "default_rng",
    },
    "random": {"Random"},
}
DRAWS = {
    "torch.bernoulli",
    "torch.binomial",
    "torch.multinomial",
    "torch.normal",
    "torch.poisson",
    "torch.rand",
    "torch.rand_like",
    "torch.randint",
    "torch.randint_like",
    "torch.randn",
    "torch.randn_like",
    "torch.randperm",
}
DRAWING_METHODS = {
    "bernoulli",
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "log_normal_",
    "multinomial",
    "normal_",
    "orthogonal_",
    "random_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
}


def touches_global_state(name):
    if name in GLOBAL_STATE:
        return True
    for library, own in OWN_STREAMS.items():
        if name.startswith(f"{library}."):
            return name.removeprefix(f"{library}.").split(".")[0] not in own
    return False


def draws_globally(call, aliases):
    if any(keyword.arg in {"generator", None} for keyword in call.keywords):
        return False
    method = isinstance(call.func, ast.Attribute) and call.func.attr in DRAWING_METHODS
    return method or dotted(call.func, aliases) in DRAWS


def written_targets(node, aliases):
    targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
    if isinstance(node, ast.AugAssign):
        targets = [node.target]
    for target in targets:
        where = target.value if isinstance(target, ast.Subscript) else target
        yield dotted(where, aliases)


def global_state_complaints(modules):
    for module in modules:
        aliases = module.aliases
        for node in ast.walk(module.tree):
            where = f"{module.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute | ast.Name):
                name = dotted(node, aliases)
                if touches_global_state(name):
                    yield f"{where} uses {name}, which touches global state"
            if isinstance(node, ast.Call) and draws_globally(node, aliases):
                text = ast.unparse(node.func)
                yield f"{where} draws with {text} from the global stream: generator="
            for name in written_targets(node, aliases):
                if name == "os.environ" or name.startswith("torch.backends."):
                    yield f"{where} writes to {name}, which is global state"


# Parts: nobody but the defining file asks what a part is


def in_family(module):
    return module.top in FAMILIES


def part_classes(modules):
    """The files that define each concrete part, by class name."""
    found = defaultdict(set)
    for module in filter(in_family, modules):
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                if not bases & {"ABC", "Protocol"}:
                    found[node.name].add(module.name)
    return found


def table_keys(value):
    """The names in a table of classes: ``{"mlp": MLP, "skip": Skip}``.

    A table of functions, activations for instance, holds options and no parts.
    """
    if not isinstance(value, ast.Dict):
        return set()
    return {
        key.value
        for key, part in zip(value.keys, value.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
        if any(name[:1].isupper() for name in last_names(part))
    }


def part_names(modules):
    """The files whose tables (LIKELIHOODS, NETWORKS, ...) hold each name."""
    found = defaultdict(set)
    for module in filter(in_family, modules):
        for node in module.tree.body:
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            else:
                continue
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if any(name.isupper() and name.endswith("S") for name in names):
                for key in table_keys(node.value):
                    found[key].add(module.name)
    return found


def last_names(node):
    """The names a class check mentions: ``(nn.Module, MLP)`` gives both."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return set().union(*map(last_names, node.elts))
    if isinstance(node, ast.BinOp):
        return last_names(node.left) | last_names(node.right)
    if isinstance(node, ast.Attribute):
        return {node.attr}
    return {node.id} if isinstance(node, ast.Name) else set()


def checked_classes(node):
    if isinstance(node, ast.Call) and len(node.args) == 2:
        check = ast.unparse(node.func) in {"isinstance", "issubclass"}
        return last_names(node.args[1]) if check else set()
    if isinstance(node, ast.MatchClass):
        return last_names(node.cls)
    if isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
        return set().union(*map(last_names, [node.left, *node.comparators]))
    return set()


def compared_strings(node):
    if isinstance(node, ast.Compare):
        values = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        values = [node.value]
    else:
        return set()
    containers = ast.Tuple | ast.List | ast.Set
    flat = [v for value in values for v in getattr(value, "elts", [value])]
    flat += [v for value in values if isinstance(value, containers) for v in value.elts]
    constants = [value.value for value in flat if isinstance(value, ast.Constant)]
    return {value for value in constants if isinstance(value, str)}


def part_complaints(modules):
    classes, names = part_classes(modules), part_names(modules)
    for module in modules:
        for node in ast.walk(module.tree):
            where = f"{module.name}:{getattr(node, 'lineno', 0)}"
            for name in sorted(checked_classes(node)):
                if name in classes and module.name not in classes[name]:
                    yield f"{where} checks for the class {name}: ask what it can do"
            for name in sorted(compared_strings(node)):
                if name in names and module.name not in names[name]:
                    yield f"{where} compares with the part name {name!r}: use a table"


# The rules on the package, and on modules written to break them

RULES = {
    "imports point downwards": layer_complaints,
    "no import cycles": cycle_complaints,
    "libraries stay in their layers": library_complaints,
    "imports are absolute": relative_complaints,
    "optional libraries are imported in functions": optional_complaints,
    "files are short": file_complaints,
    "functions are short": function_complaints,
    "no global state": global_state_complaints,
    "parts are never asked what they are": part_complaints,
}


@pytest.mark.parametrize("rule", RULES)
def test_package_keeps_the_rule(rule):
    complaints = list(dict.fromkeys(RULES[rule](package())))
    assert not complaints, f"{rule}:" + report(complaints)


LONG_DOCSTRING = '"""' + "\n" * 80 + '"""'
LONG_BODY = "\n".join(["    x = 1"] * 60)
LIKELIHOODS = """
class Poisson:
    pass


LIKELIHOODS: dict[str, type] = {"poisson": Poisson}
ACTIVATIONS = {"relu": torch.relu}
"""

BROKEN = [
    ("imports point downwards", "_training", "import skvae.estimators._base"),
    ("imports point downwards", "_training", "from skvae import objectives"),
    ("imports point downwards", "_training", "def f():\n    from skvae import cli"),
    ("imports point downwards", "priors", "from skvae.likelihoods import Gaussian"),
    ("imports point downwards", "networks.mlp", "from skvae.networks import skip"),
    ("imports point downwards", "networks.mlp", "from skvae.networks.skip import S"),
    ("imports point downwards", "estimators.vae", "import skvae.estimators.ivae"),
    ("imports point downwards", "estimators._base", "import skvae.estimators.ivae"),
    ("imports point downwards", "estimators._base", "import skvae.diagnostics"),
    ("imports point downwards", "estimators._base", "from skvae import VAE"),
    ("imports point downwards", "displays", "from skvae.callbacks import Progress"),
    ("imports point downwards", "cli.fit", "from skvae._random import generator"),
    ("imports point downwards", "cli.fit", "from skvae.metrics import _helper"),
    ("imports point downwards", "metrics._collapse", "import skvae._gaussian"),
    ("imports point downwards", "objectives", "import skvae.metrics"),
    ("imports point downwards", "_unheard_of", ""),
    ("no import cycles", "metrics._a", "import skvae.metrics._a"),
    ("libraries stay in their layers", "priors", "import numpy as np"),
    ("libraries stay in their layers", "_gaussian", "from numpy import pi"),
    ("libraries stay in their layers", "objectives", "from sklearn.base import clone"),
    ("libraries stay in their layers", "metrics._collapse", "import torch.nn"),
    ("libraries stay in their layers", "datasets", "from torch import nn"),
    ("libraries stay in their layers", "cli.fit", "import torch"),
    ("libraries stay in their layers", "_validation", "import torch"),
    ("imports are absolute", "priors", "from . import likelihoods"),
    ("imports are absolute", "priors", "from .likelihoods import Gaussian"),
    (
        "optional libraries are imported in functions",
        "displays",
        "import matplotlib.pyplot",
    ),
    (
        "optional libraries are imported in functions",
        "cli",
        "try:\n    import rich\nexcept ImportError:\n    rich = None",
    ),
    ("files are short", "priors", "\n" * (MAX_FILE_LINES + 1)),
    ("functions are short", "priors", f"def f():\n{LONG_BODY}"),
    ("no global state", "priors", "import torch\ntorch.manual_seed(0)"),
    ("no global state", "priors", "from torch import set_num_threads as s\ns(1)"),
    ("no global state", "priors", "import torch\ntorch.set_default_dtype(x)"),
    ("no global state", "metrics", "import numpy as np\nnp.random.seed(0)"),
    ("no global state", "metrics", "import numpy as np\nx = np.random.rand(3)"),
    ("no global state", "metrics", "from numpy.random import randn\nrandn(3)"),
    ("no global state", "metrics", "import random\nrandom.shuffle(x)"),
    ("no global state", "priors", "import torch\nx = torch.randn(3)"),
    ("no global state", "priors", "x.normal_(0, 1)"),
    ("no global state", "priors", "import torch\ntorch.backends.mkldnn.on = 1"),
    ("no global state", "cli", "import os\nos.environ['A'] = 'b'"),
    ("parts are never asked what they are", "_model", "isinstance(x, Poisson)"),
    ("parts are never asked what they are", "_model", "isinstance(x, (A, m.Poisson))"),
    ("parts are never asked what they are", "_model", "type(x) is Poisson"),
    (
        "parts are never asked what they are",
        "_model",
        "match x:\n    case Poisson():\n        pass",
    ),
    ("parts are never asked what they are", "estimators.vae", "x == 'poisson'"),
    ("parts are never asked what they are", "estimators.vae", "x in {'poisson', 'a'}"),
]
KEPT = [
    ("imports point downwards", "estimators.vae", "import skvae.estimators._base"),
    ("imports point downwards", "estimators", "import skvae.estimators.vae"),
    ("imports point downwards", "estimators._base", "import skvae.estimators._more"),
    ("imports point downwards", "estimators._base", "from skvae import __version__"),
    ("imports point downwards", "networks", "from skvae.networks import mlp"),
    ("imports point downwards", "networks.mlp", "import skvae.networks._layers"),
    ("imports point downwards", "_model", "from skvae.likelihoods import Gaussian"),
    ("imports point downwards", "cli.fit", "import skvae, skvae.cli._tables"),
    ("imports point downwards", "displays", "import skvae.metrics"),
    ("libraries stay in their layers", "_validation", "import numpy as np"),
    ("libraries stay in their layers", "estimators._base", "import numpy, torch"),
    (
        "optional libraries are imported in functions",
        "displays",
        "def plot():\n    import matplotlib.pyplot as plt",
    ),
    ("functions are short", "priors", f"def f():\n    {LONG_DOCSTRING}"),
    ("no global state", "priors", "import torch\ntorch.randn(3, generator=g)"),
    ("no global state", "priors", "from torch import Generator as G\nG().manual_seed"),
    ("no global state", "metrics", "import numpy as np\nnp.random.default_rng(0)"),
    ("parts are never asked what they are", "likelihoods", "isinstance(x, Poisson)"),
    ("parts are never asked what they are", "_model", "x = parts['poisson']"),
    ("parts are never asked what they are", "_model", "x == 'relu'"),
]


def complaints_about(rule, name, text):
    """What a rule says about one module that stands in an otherwise clean package."""
    others = [Module("skvae.likelihoods", LIKELIHOODS)]
    if name == "likelihoods":
        others, text = [], LIKELIHOODS + text
    names = ["skvae", "skvae.objectives", "skvae.cli", "skvae.networks.skip"]
    names += ["skvae.networks.mlp"]
    others += [Module(other, "") for other in names if other != f"skvae.{name}"]
    return list(RULES[rule]([*others, Module(f"skvae.{name}", text)]))


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN)
def test_rule_finds_what_breaks_it(rule, name, text):
    assert complaints_about(rule, name, text)


@pytest.mark.parametrize(("rule", "name", "text"), KEPT)
def test_rule_lets_good_code_pass(rule, name, text):
    assert complaints_about(rule, name, text) == []


# What an import costs


def run_python(code):
    """Run code in a fresh interpreter that finds this checkout first."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_method_is_read_when_it_is_first_used():
    loaded = run_python("""
        import sys
        from skvae import VAE
        print(*(name for name in sys.modules if name.startswith("skvae.estimators.")))
    """)
    public = {name for name in loaded if not name.split(".")[-1].startswith("_")}
    assert public == {"skvae.estimators.vae"}


@pytest.mark.parametrize("part", sorted(BESIDE))
def test_part_works_without_torch(part):
    loaded = run_python(f"""
        import sys
        import skvae.{part}
        print(*sys.modules)
    """)
    assert "torch" not in loaded, f"import skvae.{part} imports torch"


def test_every_public_name_loads_without_optional_libraries():
    # Blocked and not merely absent from sys.modules, because scikit-learn itself
    # imports some of them where they are installed.
    run_python(f"""
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {OPTIONAL!r}:
                    raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

        sys.meta_path.insert(0, Blocked())
        import skvae
        for module in {public_module_names()!r}:
            __import__(module)
        for name in skvae.__all__:
            getattr(skvae, name)
    """)


def test_fitting_never_loads_the_compiler_stack():
    loaded = run_python("""
        import sys, warnings
        import numpy as np
        import skvae
        warnings.simplefilter("ignore")
        X = np.random.default_rng(0).standard_normal((200, 3))
        # Steps enough to be recorded.
        model = skvae.VAE(n_components=1, width=4, batch_size=20, max_iter=12)
        model.fit(X).transform(X)
        print(*sys.modules)
    """)
    assert "torch._dynamo" not in loaded, "fit imports torch._dynamo: two seconds"


# Docstrings

IGNORED = {
    "ES01": "one line is enough where it says everything",
    "RT02": "results are named, as in scikit-learn: ``X_new : ndarray of shape ...``",
}
IGNORED_OUTSIDE_ESTIMATORS = {
    "EX01": "functions, methods and parts are shown in the examples of estimators",
    "SA01": "most functions have no close relative to point to",
}
IGNORED_FOR_RECORDS = {"PR01": "the fields of a record are documented as attributes"}


def public_module_names():
    names = [module.name for module in package()]
    return [name for name in names if not is_private(name)]


def is_estimator(obj):
    return inspect.isclass(obj) and hasattr(obj, "fit")


def public_objects():
    """Each public class and function once, with the path that users import."""
    seen, found = set(), {}
    for name in public_module_names():
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", []):
            obj = getattr(module, public)
            documented = inspect.isclass(obj) or inspect.isfunction(obj)
            if documented and id(obj) not in seen:
                seen.add(id(obj))
                found[f"{name}.{public}"] = obj
    return found


def own_methods(estimator):
    """Public methods that the package defines itself, inherited ones included."""
    for name in dir(estimator):
        member = inspect.getattr_static(estimator, name)
        function = getattr(member, "fget", None) or getattr(estimator, name, None)
        home = getattr(function, "__module__", None) or ""
        own = not name.startswith("_") and home.startswith("skvae")
        if own and callable(function) and not inspect.isclass(function):
            yield name, inspect.unwrap(function)


def is_record(obj):
    return inspect.isclass(obj) and (is_dataclass(obj) or hasattr(obj, "_fields"))


def docstring_complaints(path, obj=None):
    ignored = set(IGNORED)
    if not is_estimator(obj):
        ignored |= set(IGNORED_OUTSIDE_ESTIMATORS)
    if is_record(obj):
        ignored |= set(IGNORED_FOR_RECORDS)
    for code, message in validate(path)["errors"]:
        if code not in ignored:
            yield f"{path}: {code} {message}"


def test_public_names_are_documented():
    complaints, seen = [], set()
    for path, obj in public_objects().items():
        complaints += docstring_complaints(path, obj)
        for name, function in own_methods(obj) if is_estimator(obj) else ():
            if function not in seen:
                seen.add(function)
                complaints += docstring_complaints(f"{path}.{name}")
    assert not complaints, "docstrings:" + report(complaints)


def test_public_modules_are_documented():
    modules = map(importlib.import_module, public_module_names())
    silent = [module.__name__ for module in modules if not module.__doc__]
    assert not silent, "modules without a docstring:" + report(silent)


def test_docstring_rule_can_fail(monkeypatch):
    module = types.ModuleType("synthetic")

    def undocumented(x):
        """does something"""
        return x

    module.undocumented = undocumented
    monkeypatch.setitem(sys.modules, "synthetic", module)
    text = report(docstring_complaints("synthetic.undocumented"))
    assert "PR01" in text
    assert "RT01" in text
    assert "SS03" in text
