"""The floors of the package, held by reading its source: imports go strictly downwards."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_gradhess

PACKAGE = "sklearn_gradhess"
FLOORS = {
    "_conjugate_gradients": 0,
    "_descent": 0,
    "_kept_rows": 0,
    "_law": 0,
    "_link": 0,
    "_loss": 0,
    "_memory": 0,
    "_moments": 0,
    "_penalty": 0,
    "_risk": 0,
    "_sample_size": 0,
    "_scale": 0,
    "_squares": 0,
    "_weights": 0,
    "_worst": 0,
    "exceptions": 0,
    "noise": 0,
    "plotting._inputs": 0,
    "_batches": 1,
    "_containers": 1,
    "_deviances": 1,
    "_excess_risk": 1,
    "_gradients": 1,
    "_low_rank": 1,
    "_plan": 1,
    "_preconditioner": 1,
    "_rows": 1,
    "_validation": 1,
    "datasets": 1,
    "plotting._style": 1,
    "torch._loss_hessian": 1,
    "torch._spectrum": 1,
    "_block_newton": 2,
    "_diagonal": 2,
    "_gradient_risk": 2,
    "_gradient_sums": 2,
    "_inference": 2,
    "_monitor": 2,
    "_multinomial": 2,
    "_newton": 2,
    "_nuisance": 2,
    "_scaled_losses": 2,
    "_sketch": 2,
    "_steps": 2,
    "_table": 2,
    "torch._kfac": 2,
    "torch._noise": 2,
    "_blocks": 3,
    "_categories": 3,
    "_diagonal_hessian": 3,
    "_estimate": 3,
    "_losses": 3,
    "_mahalanobis": 3,
    "_online": 3,
    "_pooled": 3,
    "_sample_space": 3,
    "_schemes": 3,
    "torch": 3,
    "_attack_on_table": 4,
    "_dask": 4,
    "_fitted": 4,
    "_probe": 4,
    "_rounds": 4,
    "_solver": 4,
    "_affine": 5,
    "_attack": 5,
    "_auto_penalty": 5,
    "_components": 5,
    "_culprit": 5,
    "_dask_covariance": 5,
    "_failures": 5,
    "_sample": 6,
    "_scale_estimate": 5,
    "_search": 5,
    "_accumulation": 6,
    "_attributes": 6,
    "_diagonal_stream": 6,
    "_linear": 6,
    "diagnostics": 6,
    "_options": 7,
    "_stream": 7,
    "covariance": 7,
    "_classification_risk": 8,
    "_distributed": 8,
    "_hessian_attributes": 8,
    "_regression_risk": 8,
    "_single": 8,
    "federated": 8,
    "plotting._hessian_spectrum": 8,
    "plotting._noise_calibration": 8,
    "_scorer": 9,
    "_sgd": 9,
    "_adversarial_metrics": 10,
    "_attacked_rows": 10,
    "_classifier": 10,
    "_regressor": 10,
    "plotting._convergence": 10,
    "plotting._risk_curves": 10,
    "linear_model": 11,
    "metrics": 11,
    "__init__": 12,
    "plotting._adversarial_risk": 12,
    "plotting": 13,
}
OPTIONAL = {
    "plotting": "matplotlib",
    "torch": "torch",
    "_containers": "narwhals",
    "_dask": "dask",
}  # besides
MAX_FILE_LINES = 710  # docstrings included
MAX_BODY_LINES = 60
FILES = {  # a subpackage goes by its own name, the package itself by that of its file
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
    for root in [Path(sklearn_gradhess.__file__).parent]
    for path in sorted(root.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text("utf-8")) for module, path in FILES.items()}
TORCH = {module for module in FLOORS if module.partition(".")[0] == "torch"}
IMPORTABLE = FLOORS.keys() - (TORCH if importlib.util.find_spec("torch") is None else set())
PUBLIC = sorted(m for m in IMPORTABLE if not any(part.startswith("_") for part in m.split(".")))
PLOTTING = sorted(module for module in FLOORS if module.partition(".")[0] == "plotting")
each_module = pytest.mark.parametrize("module", sorted(FILES))
each_floor = pytest.mark.parametrize("module", sorted(FLOORS))


def qualified(module):
    return PACKAGE if module == "__init__" else f"{PACKAGE}.{module}"


def imports(module):
    """Dotted name of everything that a module imports anywhere, functions and `if`s included."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def third_party(module):
    return {name.partition(".")[0] for name in imports(module)} - set(sys.stdlib_module_names)


def siblings(module):
    """Modules of the package that a module imports."""
    for name in imports(module):
        top, *rest = name.split(".")
        if top == PACKAGE:
            above = (".".join(rest[:i]) for i in range(len(rest), 0, -1))
            yield next((module for module in above if module in FILES), "__init__")


def body_lines(function):
    """Lines of a function, signature and docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(module):
    """Private names that a module gives to something: functions, attributes, declarations."""
    for node in ast.walk(TREES[module]):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


PRIVATE = {module: set(filter(is_private, private_names(module))) for module in TREES}


def private_names_of_others(module):
    """Attributes of something else than itself that are private to other modules."""
    others = set().union(*PRIVATE.values()) - PRIVATE[module]
    for node in ast.walk(TREES[module]):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                continue
            case ast.Attribute(attr=name) if name in others:
                yield f"{ast.unparse(node)} in line {node.lineno}"


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_module_has_a_floor_and_every_floor_a_module():
    assert set(FILES) == set(FLOORS)


@each_floor
def test_imports_within_the_package_go_strictly_downwards(module):
    wrong = {name for name in siblings(module) if not FLOORS.get(name, 99) < FLOORS[module]}
    assert not wrong, f"{module} on floor {FLOORS[module]} imports {wrong}"


@each_floor
def test_the_ground_floor_needs_numpy_and_scipy_and_the_rest_scikit_learn_only(module):
    allowed = {"numpy", "scipy"} if FLOORS[module] == 0 else {"numpy", "scipy", "sklearn", PACKAGE}
    optional = OPTIONAL.get(module, OPTIONAL.get(module.partition(".")[0]))
    assert third_party(module) <= allowed | {optional}


@pytest.mark.parametrize("module", PLOTTING)
def test_plotting_imports_matplotlib_in_functions_only(module):
    in_functions = {
        node
        for function in ast.walk(TREES[module])
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    elsewhere = [
        ast.unparse(node)
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in in_functions
    ]
    assert elsewhere
    assert not [statement for statement in elsewhere if "matplotlib" in statement]


def test_narwhals_is_imported_in_functions_only():
    assert "narwhals" in third_party("_containers")
    top = [node for node in TREES["_containers"].body if isinstance(node, ast.Import)]
    assert "narwhals" not in {alias.name for node in top for alias in node.names}


@pytest.mark.parametrize("subpackage", OPTIONAL)
def test_a_subpackage_does_import_its_optional_library(subpackage):
    modules = [module for module in FLOORS if module.startswith(subpackage)]
    assert OPTIONAL[subpackage] in {name for module in modules for name in third_party(module)}


@pytest.mark.parametrize("module", sorted(FLOORS.keys() - TORCH))
def test_nothing_imports_the_torch_subpackage(module):
    assert TORCH.isdisjoint(siblings(module))


@pytest.mark.parametrize("module", sorted(set(FILES) - {"_validation"}))
def test_private_scikit_learn_comes_through_validation(module):
    private = [
        name
        for name in imports(module)
        if name.startswith("sklearn.") and any(part.startswith("_") for part in name.split("."))
    ]
    assert private == []


def test_validation_is_where_private_scikit_learn_comes_in():
    assert "sklearn.base._fit_context" in set(imports("_validation"))


def test_importing_the_package_loads_no_optional_library():
    optional = ("matplotlib", "pandas", "dask", "torch", "polars", "jax", "cupy")
    code = (  # scikit-learn itself imports pandas where there is one
        "import sys, sklearn.covariance; before = set(sys.modules); "
        f"import {PACKAGE}; print(*set(sys.modules) - before)"
    )
    loaded = {name.partition(".")[0] for name in run(code)}
    assert PACKAGE in loaded
    assert loaded.isdisjoint(optional)


def test_every_module_can_be_imported_first():
    names = [qualified(module) for module in sorted(IMPORTABLE)]
    # One interpreter for all, which forgets the package in between and compiles each file once: as
    # good as fresh, and faster
    code = (
        "import importlib, sys\n"
        "from importlib.machinery import SourceFileLoader as Loader\n"
        "codes, compiled = {}, Loader.get_code\n"
        "def once(loader, name):\n"
        "    if name not in codes:\n"
        "        codes[name] = compiled(loader, name)\n"
        "    return codes[name]\n"
        "Loader.get_code = once\n"
        f"for name in {names!r}:\n"
        f"    for loaded in [m for m in sys.modules if m.partition('.')[0] == {PACKAGE!r}]:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
        "    print(name)"
    )
    assert run(code) == names


@each_module
def test_no_file_is_long(module):
    assert len(FILES[module].read_text("utf-8").splitlines()) <= MAX_FILE_LINES


@each_module
def test_no_function_body_is_long(module):
    long = {
        node.name: body_lines(node)
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > MAX_BODY_LINES
    }
    assert long == {}


@each_module
def test_private_names_of_another_module_s_objects_are_left_alone(module):
    assert list(private_names_of_others(module)) == []


def test_private_names_are_found():
    assert {"_start", "_rng", "_memory"} <= PRIVATE["_accumulation"]
    assert "_start" in PRIVATE["_dask_covariance"]  # declared, as what it asks for


@each_module
def test_no_file_imports_a_star(module):
    assert not [name for name in imports(module) if name.endswith(".*")]


@pytest.mark.parametrize("module", [*PUBLIC, "__init__"])
def test_public_names_exist_and_are_documented(module):
    loaded = importlib.import_module(qualified(module))
    assert loaded.__doc__
    assert len(loaded.__all__) == len(set(loaded.__all__)) > 0
    assert [name for name in loaded.__all__ if not getattr(loaded, name).__doc__] == []


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_made_in_the_module_that_lists_them(module):
    loaded = importlib.import_module(qualified(module))
    private = {qualified(name) for name in siblings(module) if name not in PUBLIC}
    made_in = {getattr(loaded, name).__module__ for name in loaded.__all__}
    assert made_in <= {qualified(module)} | private
