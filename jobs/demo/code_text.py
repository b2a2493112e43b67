"""Extra labelled training text: the code of the standard library, without anything held out.

A small model that reads some thousands of docstrings has seen few of the words that mark an area. The functions around
those docstrings use the same names, so each function body is one more labelled example, written as `docstrings.py`
writes a row: enclosing class, signature, then code in place of the docstring. All docstrings are removed first, and
a function is skipped when it or anything that encloses it (a class, an outer function) has a held-out docstring.
"""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

from docstrings import MODULE_AREA, Definition, compose, definitions, parse_module, split_of, stdlib_modules

MIN_CODE_LETTERS = 30
# About as long as the usual docstring; more of each function would only make training slower.
CODE_BYTES = 240


def is_heldout(node: Definition) -> bool:
    """Whether the object's docstring is one that training must not see."""
    docstring = ast.get_docstring(node)
    return docstring is not None and split_of(docstring) == "heldout"


class _WithoutDocstrings(ast.NodeTransformer):
    """Remove every bare string statement and every held-out definition."""

    def visit(self, node: ast.AST) -> ast.AST | None:
        if isinstance(node, Definition) and is_heldout(node):
            return None
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)


def body_code(node: Definition) -> str:
    """The source of a function's body, without its docstring and comments."""
    stripped = [_WithoutDocstrings().visit(statement) for statement in node.body]
    return "\n".join(ast.unparse(statement) for statement in stripped if statement is not None)


def code_examples(stdlib: Path | None = None) -> list[tuple[str, str]]:
    """(text, area) of each function whose code is free to train on, each text once."""
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    examples: dict[str, str] = {}
    for name, path in stdlib_modules(root):
        tree = parse_module(path)
        if tree is None:
            continue
        chains = [c for c in definitions(tree) if not isinstance(c[-1], ast.ClassDef) and not any(map(is_heldout, c))]
        for chain in chains:
            # Unparsing edits the tree in place, which is safe here: the chains hold the nodes, outermost first.
            code = body_code(chain[-1])
            if sum(character.isalpha() for character in code) >= MIN_CODE_LETTERS:
                examples.setdefault(compose(chain, code, CODE_BYTES), MODULE_AREA[name.partition(".")[0]])
    return list(examples.items())
