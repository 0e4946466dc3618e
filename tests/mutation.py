"""Do the tests notice? Random mutants of the core modules, each against the tests that reach it.

The mutants and their names are mutmut's; what differs is how they run. Each has a process of its
own, forked after all tests were collected, where the code of the mutated function takes the place
of the function's: nothing is imported or collected again, and signatures, line numbers and tests
of the source stay as they are. Which tests reach which lines, and their seconds, are told by a run
of the suite with coverage. `CONTRIBUTING.md` has the commands and the last result.
"""

import argparse
import ast
import collections
import difflib
import json
import mmap
import os
import resource
import signal
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

PACKAGE = "sklearn_gradhess"
CORE = (
    *("_descent", "_newton", "_rows", "_steps", "_single", "_solver", "_plan", "_sketch"),
    *("_conjugate_gradients", "_diagonal", "_sample_space", "_pooled", "_preconditioner"),
    *("_rounds", "_blocks", "_losses", "_multinomial", "_link", "_penalty", "_weights"),
    *("_stream", "_online", "_block_newton", "_kept_rows"),
    *("covariance", "_attributes", "_moments", "_schemes", "_gradients", "_nuisance", "_fitted"),
    *("_scale", "noise", "_risk", "_attack", "_attacked_rows", "_classification_risk"),
    *("_regression_risk", "metrics", "_affine", "_worst", "_gradient_risk", "_excess_risk"),
)
LONGEST = 4096  # bytes of a test's name
MEMORY = 12 << 30  # bytes of address space: a mutant may ask for any


# --- mutants


def mutants(module):
    """Mutants of a module in mutmut's order: a name and what `made` makes the rest of."""
    import libcst
    from mutmut.mutation.file_mutation import create_mutations
    from mutmut.mutation.trampoline_templates import mangle_function_name

    path = Path(PACKAGE, f"{module}.py")
    source = path.read_text()
    tree, mutations, *_ = create_mutations(str(path), source)
    owner = {}  # of a function: its class
    for node in tree.body:
        if isinstance(node, libcst.FunctionDef):
            owner[node] = None
        elif isinstance(node, libcst.ClassDef):
            owner |= dict.fromkeys(node.body.body, node.name.value)
    numbers = collections.Counter()
    for mutation in mutations:
        function = mutation.contained_by_top_level_function
        if not isinstance(function, libcst.FunctionDef) or function not in owner:
            continue
        mangled = mangle_function_name(name=function.name.value, class_name=owner[function])
        numbers[mangled] += 1
        name = f"{PACKAGE}.{module}.{mangled}__mutmut_{numbers[mangled]}"
        yield name, (module, owner[function], source, tree, mutation)


def made(name, parts):
    """A mutant: where it is, its source and its diff."""
    from mutmut.mutation.file_mutation import deep_replace

    module, owner, source, tree, mutation = parts
    function = mutation.contained_by_top_level_function.name.value
    code = deep_replace(tree, mutation.original_node, mutation.mutated_node).code
    before, after = source.splitlines(), code.splitlines()
    first = next(
        i for i, pair in enumerate(zip(before, after, strict=False), 1) if len({*pair}) > 1
    )
    statements = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt))
    return {
        "name": name,
        "module": module,
        "function": f"{owner}.{function}" if owner else function,
        "lines": list(min((x for x in map(lines_of, statements) if first in x), key=len)),
        "diff": [*difflib.unified_diff(before, after, n=0, lineterm="")][3:],
        "source": code,
    }


def lines_of(node):
    """Lines of a statement, of a compound one its head's."""
    body = getattr(node, "body", None)
    last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
    return range(node.lineno, last + 1)


def draw(count, seed):
    """Mutants at random, each as likely as any other: a module has as many as its share."""
    of = [mutant for module in CORE for mutant in mutants(module)]
    chosen = np.random.default_rng(seed).permutation(len(of))[:count]
    return [made(*of[i]) for i in sorted(chosen)]


def replace_code(mutant):
    """The mutated function's code and defaults in place of the function's."""
    module = sys.modules[f"{PACKAGE}.{mutant['module']}"]
    mutated = {"__name__": module.__name__, "__package__": PACKAGE}
    exec(compile(mutant["source"], module.__file__, "exec"), mutated)
    old, new = (named(space, mutant["function"]) for space in (vars(module), mutated))
    old.__code__ = new.__code__
    old.__defaults__, old.__kwdefaults__ = new.__defaults__, new.__kwdefaults__


def named(namespace, function):
    """Function or method; mutmut leaves alone all decorated ones but static and class methods."""
    first, *rest = function.split(".")
    found = vars(namespace[first])[rest[0]] if rest else namespace[first]
    return getattr(found, "__func__", found)


# --- tests


class Reached:
    """Which tests execute the statement of a mutant: no other can notice it. Fast ones first."""

    def __init__(self, coverage_file, durations_file):
        import coverage

        self.data = coverage.CoverageData(coverage_file)
        self.data.read()
        self.files = {Path(file).parts[-2:]: file for file in self.data.measured_files()}
        self.seconds = {
            (case.get("classname"), case.get("name")): float(case.get("time"))
            for case in ET.parse(durations_file).iter("testcase")
        }

    def cost(self, item):
        """Seconds that a test took."""
        path, bracket, parameters = item.nodeid.partition("[")
        names = path.replace(".py", "").replace("/", ".").split("::")
        return self.seconds.get((".".join(names[:-1]), names[-1] + bracket + parameters), 1.0)

    def tests(self, mutant, items):
        """Tests, in the order in which they should run."""
        file = self.files[PACKAGE, f"{mutant['module']}.py"]
        by_line = self.data.contexts_by_lineno(file)
        contexts = (context for line in mutant["lines"] for context in by_line.get(line, ()))
        reaching = {context.rpartition("|")[0] for context in contexts}
        own = mutant["module"].strip("_")

        def rank(item):
            octave = int(np.log2(max(self.cost(item), 0.05)))
            return octave, own not in item.nodeid, item.nodeid

        return sorted((item for item in items if item.nodeid in reaching), key=rank)


# --- runs


class Mutation:
    """A plugin that in place of the tests' loop runs each mutant in a process of its own."""

    def __init__(self, chosen, reached, jobs):
        self.chosen, self.reached, self.jobs = chosen, reached, jobs
        self.running, self.verdicts = {}, []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        for mutant in self.chosen:
            if len(self.running) == self.jobs:
                self.reap()
            tests = self.reached.tests(mutant, session.items)
            current = mmap.mmap(-1, LONGEST)  # shared with the child
            pid = os.fork()
            if not pid:
                self.child(mutant, tests, session, current)
            self.running[pid] = mutant, current
        while self.running:
            self.reap()
        return True

    def reap(self):
        """Wait for a mutant's end: its status tells whether the current test failed."""
        pid, status = os.wait()
        mutant, current = self.running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        verdict = "timeout" if code < 0 else {0: "survived", 1: "killed"}.get(code, "not run")
        about = {key: value for key, value in mutant.items() if key != "source"}
        self.verdicts.append(about | {"verdict": verdict, "test": told(current)})

    def child(self, mutant, tests, session, current):
        """Run the tests up to the first that fails."""
        code = 3
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            replace_code(mutant)
            code = 0
            for item, following in zip(tests, [*tests[1:], None], strict=True):
                tell(current, item.nodeid)
                limit = 10 + 5 * self.reached.cost(item)  # seconds, of the processor
                signal.setitimer(signal.ITIMER_VIRTUAL, limit)
                signal.setitimer(signal.ITIMER_REAL, 20 * limit)  # of a clock that others share
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    code = 1
                    break
        except BaseException as problem:  # the mutant could not be made
            code = 3
            tell(current, repr(problem))
        finally:
            os._exit(code)


def tell(memory, text):
    """Leave a text in shared memory."""
    memory[:] = text.encode()[:LONGEST].ljust(LONGEST, b"\0")


def told(memory):
    """Read it."""
    return memory[:].rstrip(b"\0").decode(errors="replace")


def main():
    """Draw, run and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--coverage", default=".coverage")
    parser.add_argument("--durations", default="durations.xml")
    parser.add_argument("--out", default="mutation.json", help="all mutants and their verdicts")
    options, tests = parser.parse_known_args()
    reached = Reached(options.coverage, options.durations)
    run = Mutation(draw(options.count, options.seed), reached, options.jobs)
    pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[run])
    Path(options.out).write_text(json.dumps(run.verdicts, indent=1))
    for mutant in run.verdicts:
        if mutant["verdict"] != "killed":
            print(mutant["verdict"], mutant["name"], mutant["test"], *mutant["diff"], sep="\n  ")
    counts = collections.Counter((mutant["module"], mutant["verdict"]) for mutant in run.verdicts)
    for module, verdict in sorted(counts):
        print(f"{module:24}{verdict:10}{counts[module, verdict]:4}")
    print(collections.Counter(mutant["verdict"] for mutant in run.verdicts))


if __name__ == "__main__":
    main()
