"""Every example in a docstring gives what it says."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import think_tools

MODULES = [module.name for module in pkgutil.walk_packages(think_tools.__path__, "think_tools.")]


def examples(module) -> list[doctest.DocTest]:
    own = [obj for obj in vars(module).values() if inspect.getmodule(obj) is module and inspect.getdoc(obj)]
    members = [
        member for obj in own if inspect.isclass(obj) for member in vars(obj).values() if inspect.isfunction(member)
    ]
    parser = doctest.DocTestParser()
    tests = []
    for obj in [module, *own, *members]:
        text = re.sub(r"(?m)^\s*```.*$", "", inspect.getdoc(obj) or "")  # the closing fence is no expected output
        name = getattr(obj, "__qualname__", module.__name__)
        tests.append(parser.get_doctest(text, {}, name, module.__file__, 0))
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    for test in examples(importlib.import_module(name)):
        assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0
