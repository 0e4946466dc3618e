"""The prose of the public modules says what the code has."""

import importlib
import inspect
import re

import numpy as np
import pytest

import sklearn_gradhess
from sklearn_gradhess import GradientCovarianceEstimator
from tests.test_floors import PUBLIC as PUBLIC_MODULES

TITLES = {"Parameters", "Attributes", "Returns", "Raises", "See Also", "Notes"}
TITLES |= {"References", "Examples", "Warns"}
SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n-{3,}\n", re.MULTILINE)
ENTRY = re.compile(r"^(?P<names>[\w*]+(?:, [\w*]+)*)(?: : (?P<type>.+))?$", re.MULTILINE)


def public():
    for module in PUBLIC_MODULES:
        loaded = importlib.import_module(f"sklearn_gradhess.{module}")
        for name in loaded.__all__:
            yield f"{module}.{name}", getattr(loaded, name)


def methods(cls):
    """Public methods of a class that the package wrote, by qualified name."""
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        method = getattr(method, "fn", method)  # available_if
        method = getattr(method, "__func__", method)  # classmethod
        if not name.startswith("_") and getattr(method, "__module__", "").startswith(
            "sklearn_gradhess"
        ):
            yield f"{cls.__name__}.{name}", method


PUBLIC = dict(public())
CLASSES = {name: item for name, item in PUBLIC.items() if inspect.isclass(item)}
FUNCTIONS = {name: item for name, item in PUBLIC.items() if name not in CLASSES}
METHODS = {
    name: method
    for cls in CLASSES.values()
    for name, method in methods(cls)
    if inspect.isfunction(method)
}


def each(items):
    return pytest.mark.parametrize("item", items.values(), ids=items.keys())


def sections(item):
    """Text of each section of a numpydoc docstring, the summary under an empty title."""
    titles = ["", *SECTION.findall(doc := inspect.getdoc(item))]
    return dict(zip(titles, SECTION.split(doc)[::2], strict=True))


def entries(item, title):
    """Type of each name in a section, in order."""
    text = re.sub(r" \\\n\s+", " ", sections(item).get(title, ""))
    return {
        name: entry["type"] for entry in ENTRY.finditer(text) for name in entry["names"].split(", ")
    }


def parameters(item):
    names = inspect.signature(item).parameters.values()
    prefix = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return {prefix.get(p.kind, "") + p.name: p for p in names if p.name not in ("self", "cls")}


@pytest.fixture(scope="module")
def fitted():
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(np.random.default_rng(0).standard_normal((40, 3)), columns=list("abc"))
    return GradientCovarianceEstimator(random_state=0).fit(X, X["a"])


@pytest.fixture(scope="module")
def of_components():
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(np.random.default_rng(0).standard_normal((40, 3)), columns=list("abc"))
    return GradientCovarianceEstimator(n_components=2, random_state=0).fit(X, X["a"])


@each(FUNCTIONS | METHODS | CLASSES)
def test_the_summary_is_one_sentence_on_one_line(item):
    summary, _, rest = inspect.getdoc(item).partition("\n")
    assert re.fullmatch(r"[A-Z].*[^.][.]", summary)
    assert rest[:1] in ("", "\n")


@each(FUNCTIONS | METHODS)
def test_parameters_are_those_of_the_signature_in_its_order(item):
    assert list(entries(item, "Parameters")) == list(parameters(item))


@each(CLASSES)
def test_a_class_documents_what_it_is_made_of(item):
    # Records document their fields, which are read more often than passed, as attributes
    is_record = hasattr(item, "_fields") or hasattr(item, "__dataclass_fields__")
    documented = entries(item, "Attributes" if is_record else "Parameters")
    made_of = {} if issubclass(item, Warning) else parameters(item)
    assert list(documented) == list(made_of)


@each(FUNCTIONS | METHODS | CLASSES)
def test_every_entry_has_a_type(item):
    for title in ("Parameters", "Attributes"):
        assert [name for name, kind in entries(item, title).items() if not kind] == []


@each(FUNCTIONS | METHODS | CLASSES)
def test_documented_defaults_are_those_of_the_signature(item):
    for name, kind in entries(item, "Parameters").items():
        default = parameters(item)[name].default
        told = re.search(r"default=(.+)$", kind)
        if default is inspect.Parameter.empty:
            assert told is None, name
        elif kind != "Ignored":
            assert told is not None, name
            assert eval(told[1], {"inf": np.inf}) == default, name


@each(FUNCTIONS | METHODS)
def test_functions_say_what_they_return(item):
    assert sections(item)["Returns"].strip()


@each(FUNCTIONS)
def test_functions_show_an_example_or_cite_a_reference(item):
    assert {"Examples", "References"} & sections(item).keys()


@each(FUNCTIONS | METHODS)
def test_functions_that_raise_say_so(item):
    if re.search(r"^\s+raise ", inspect.getsource(item), re.MULTILINE):
        assert "Raises" in sections(item)


@each(FUNCTIONS | METHODS | CLASSES)
def test_sections_are_those_of_numpydoc_and_none_is_empty(item):
    assert sections(item).keys() <= TITLES | {""}
    assert [title for title, text in sections(item).items() if not text.strip()] == []


OF_COMPONENTS = {"components_", "eigenvalues_", "residual_variance_", "n_components_"}
OF_ALL = {"covariance_", "precision_", "gradient_covariance_"}


def test_documented_attributes_exist_after_fit(fitted, of_components):
    documented = entries(GradientCovarianceEstimator, "Attributes").keys()
    assert {name for name in documented if not hasattr(fitted, name)} == OF_COMPONENTS
    assert {name for name in documented if not hasattr(of_components, name)} == OF_ALL


def test_attributes_of_a_fit_are_documented(fitted):
    named = {name for name in dir(fitted) if re.fullmatch(r"[^_].*[^_]_", name)}
    named |= OF_COMPONENTS
    assert named == entries(GradientCovarianceEstimator, "Attributes").keys()


def test_documented_shapes_of_attributes_are_those_of_a_fit(fitted, of_components):
    sizes = {"n_features": 3, "n_features_in_": 3, "n_components_": 2, "n_kept": 2}
    whole = fitted
    for name, kind in entries(GradientCovarianceEstimator, "Attributes").items():
        fitted = of_components if name in OF_COMPONENTS else whole
        if told := re.fullmatch(r"ndarray of shape \((.*)\)", kind):
            shape = tuple(sizes[size] for size in re.findall(r"\w+", told[1]))
            assert np.shape(getattr(fitted, name)) == shape, name
        elif kind in ("int", "float"):
            assert type(getattr(fitted, name)).__name__ == kind, name


def test_the_map_of_the_package_names_its_modules():
    listed = re.findall(r"^(\w+)  +\S", sklearn_gradhess.__doc__, re.MULTILINE)
    assert {*listed, "exceptions"} == {*PUBLIC_MODULES, "torch"}  # installed or not
